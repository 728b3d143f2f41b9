"""The small parts of training: settings, averages, meters, grids, prefetching, recipes."""

from __future__ import annotations

import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unclip.images import grid
from unclip.training import TrainConfig, read_log
from unclip.training.ema import Ema
from unclip.training.log import Log, Meter, console_line
from unclip.training.prefetch import Prefetch
from unclip.training.state import State, newest, save
from unclip.types import Losses

CONFIG = TrainConfig(steps=100, batch=8, lr=1e-3)
NO, YES = torch.tensor(False), torch.tensor(True)


BAD = "steps=0 lr=0 floor=2 betas=[0.9,1.0] clip=0 ema=1 save_every=0 save_every=soon save_every=xs keep=0"
BAD += " sample_every=0 eps=0 weight_decay=-1 precision=half decay=exp warmup=-1 rate=1"
BAD += ' validation_samples=0 validate_every=0 workers=0 micro_batch=0 ema=[] ema=[0.9,0.9] ema=[0.5,2] best=- trackers=["disk"]'


@pytest.mark.parametrize("setting", BAD.split())
def test_settings_that_cannot_work_are_refused_by_name(setting: str) -> None:
    with pytest.raises(ValueError, match=setting.partition("=")[0]):
        CONFIG.override(setting)


def test_settings() -> None:
    assert (CONFIG.save_steps, CONFIG.save_seconds) == (None, 600)
    assert (CONFIG.replace(save_every=5).save_steps, CONFIG.replace(save_every=5).save_seconds) == (5, float("inf"))
    assert TrainConfig.from_json(CONFIG.to_json()) == CONFIG
    assert CONFIG.differences(CONFIG.replace(steps=7, keep=9, log_every=1, save_every=4)) == []
    assert CONFIG.differences(CONFIG.replace(batch=16)) == ["batch: 8 -> 16"]
    assert CONFIG.differences(CONFIG.replace(ema=(0.999,), shard=True, micro_batch=2, best="-loss", workers=3)) == []
    assert CONFIG.differences(CONFIG.replace(freeze=("a",))) == ["freeze: () -> a"]
    with pytest.raises(ValueError, match="shard and channels_last"):
        CONFIG.replace(shard=True, channels_last=True)


def test_the_average_follows_its_formula() -> None:
    torch.manual_seed(0)
    model = nn.BatchNorm1d(3)
    ema, expected = Ema(model, 0.95), model.weight.detach().double().clone()
    for k in range(400):
        with torch.no_grad():
            model.weight.copy_(torch.randn(3))
            model.running_mean.fill_(k)
        ema.update(k)
        decay = min(0.95, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(ema.state_dict()["weight"].double(), expected, rtol=1e-5, atol=1e-6)
    assert ema.state_dict()["running_mean"][0] == 399
    own = model.weight.detach().clone()
    with ema.applied():
        assert torch.equal(model.weight, ema.state_dict()["weight"])
    assert torch.equal(model.weight, own)


def feed(meter: Meter, steps: list[tuple[Tensor, Tensor, Tensor]], rows: slice = slice(None)) -> None:
    for k, (total, t, bad) in enumerate(steps):
        losses = Losses(total[rows], t[rows], {"double": 2 * total[rows]})
        meter.add(k + 1, losses, torch.tensor(float(k)), bad)


def test_meters_count_samples() -> None:
    torch.manual_seed(0)
    steps = [(torch.rand(8), torch.randint(1, 41, (8,)), NO) for _ in range(5)]
    steps[2] = (torch.full((8,), torch.nan), steps[2][1], YES)
    meter = Meter(T=40)
    feed(meter, steps)
    seen = meter.flush()
    assert [s.fine for s in seen] == [True, True, False, True, True] and np.isnan(seen[2].loss)
    row = meter.take()
    loss = torch.cat([total for total, _, bad in steps if not bad]).double()
    t = torch.cat([t for _, t, bad in steps if not bad])
    assert row["loss"] == pytest.approx(float(loss.mean()), rel=1e-5)
    assert row["double"] == pytest.approx(2 * float(loss.mean()), rel=1e-5)
    for q in range(4):
        inside = (t > 10 * q) & (t <= 10 * (q + 1))
        assert row[f"loss_q{q + 1}"] == pytest.approx(float(loss[inside].mean()), rel=1e-5)
    assert row["grad_norm"] == (0 + 1 + 3 + 4) / 4 and row["skipped"] == 1
    assert meter.take() == {"skipped": 0}


def test_meters_do_not_depend_on_processes_or_on_when_they_are_flushed() -> None:
    torch.manual_seed(0)
    steps = [(torch.rand(8), torch.randint(1, 41, (8,)), NO) for _ in range(5)]
    alone, often = Meter(T=40), Meter(T=40)
    feed(alone, steps)
    alone.flush()
    for step in steps:
        feed(often, [step])
        often.flush()
        often.load(often.state())
    assert often.state()["sums"]["loss"] == alone.state()["sums"]["loss"]

    # Two processes: the other one's half arrives by gathering, after this one's.
    halves: list[Tensor] = []
    second = Meter(T=40, gather=lambda tensor: halves.append(tensor) or tensor)  # type: ignore[func-returns-value]
    feed(second, steps, slice(4, 8))
    second.flush()
    first = Meter(T=40, gather=lambda tensor: torch.cat([tensor, halves.pop(0)]))
    feed(first, steps, slice(0, 4))
    first.flush()
    assert first.state() == alone.state()


def test_meters_need_no_float64_on_the_device() -> None:
    class Mps(Tensor):
        """A tensor of Apple's GPUs, as far as a meter is concerned."""

        def double(self, *arguments: object, **named: object) -> Tensor:
            raise TypeError("no float64 on MPS")

        def cpu(self, *arguments: object, **named: object) -> Tensor:
            return self.as_subclass(Tensor)

    meter = Meter(T=40, gather=lambda tensor: tensor.as_subclass(Mps))
    feed(meter, [(torch.ones(8), torch.ones(8, dtype=torch.int64), NO)])
    assert meter.flush()[0].loss == 1


def test_a_log_is_valid_json_and_readable(tmp_path: Path, capsys) -> None:
    with Log(tmp_path / "new", 0) as log:
        log.write({"step": 1, "loss": float("inf")})
        log.write({"step": 2, "loss": 0.5})
    assert read_log(tmp_path / "new") == [{"step": 1, "loss": "inf"}, {"step": 2, "loss": 0.5}]
    Log(tmp_path / "new", 1)
    assert [row["step"] for row in read_log(tmp_path / "new")] == [1]
    row = {"step": 5, "loss": None, "loss_q1": 0.25, "loss_q2": None, "mse": 1.0, "lr": 1e-4}
    row |= {"samples_per_second": 9.0}
    assert console_line(row, 10) == "step 5/10  loss -  by t 0.25 - - -  mse 1  grad -  lr 0.0001  9/s"


def test_lines_that_the_disk_refuses_wait(tmp_path: Path, capsys) -> None:
    resource = pytest.importorskip("resource")
    path, before = tmp_path / "log.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)

    def room(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    try:
        with Log(tmp_path, 0) as log:
            log.write({"step": 1})
            whole = path.stat().st_size
            room(whole + 4)
            log.write({"step": 2})
            log.write({"step": 3})
            assert path.stat().st_size == whole, "half a line is taken back"
            with pytest.raises(OSError, match="too large"):
                log.sync()
            assert path.stat().st_size == whole
            room(before[0])
            log.sync()
            assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3]
            room(path.stat().st_size + 4)
            log.write({"step": 4})
            room(before[0])
            log.write({"step": 5})
            room(path.stat().st_size + 4)
            log.write({"step": 6})  # closing cannot write it either
    finally:
        room(before[0])
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3, 4, 5]
    assert capsys.readouterr().out.count("could not be written") == 3, "once each time"


def test_a_log_without_its_last_half_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_log(tmp_path) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"log.jsonl, line 2 cannot be read"):
        read_log(tmp_path)


def test_a_grid_holds_the_pictures_in_order() -> None:
    from PIL import Image

    images = torch.stack([torch.full((3, 4, 5), value) for value in (-1.0, 0.0, 1.0, -7.0, float("nan"))])
    pixels = np.asarray(Image.open(BytesIO(grid(images))))
    assert pixels.shape == (8, 15, 3)
    assert [pixels[r, c, 0] for r in (0, 4) for c in (0, 5, 10)] == [0, 128, 255, 0, 128, 255]


def test_prefetching_keeps_order_and_stops_early() -> None:
    with Prefetch(lambda k: k * k, 3, 9) as squares:
        assert list(squares) == [9, 16, 25, 36, 49, 64]
    made: list[int] = []
    with Prefetch(lambda k: made.append(k), 0, 10**9) as endless:  # type: ignore[func-returns-value]
        next(iter(endless))
    assert len(made) < 6


def test_states_keep_tied_and_strided_weights(tmp_path: Path) -> None:
    weight = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    model = {"a": weight, "b": weight, "c": weight.transpose(0, 1)}
    save(tmp_path, State(3, {"model": model}, {"x": 1}), keep=1)
    state = newest(tmp_path)
    assert state is not None and state.step == 3 and state.values == {"x": 1}
    assert torch.equal(state.tensors["model"]["b"], weight)
    assert torch.equal(state.tensors["model"]["c"], weight.transpose(0, 1))


def test_importing_is_light() -> None:
    program = "import sys, unclip.training; print([m for m in ('accelerate', 'PIL', 'torchvision') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_cublas_is_told_before_anybody_uses_it() -> None:
    name = "CUBLAS_WORKSPACE_CONFIG"
    program = f"import os, unclip.training; print(os.environ[{name!r}])"
    rest = {key: value for key, value in os.environ.items() if key != name}
    for given, expected in (({}, ":4096:8"), ({name: ":16:8"}, ":16:8")):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=rest | given)
        assert done.stdout.strip() == expected

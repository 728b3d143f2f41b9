"""The training loop on a toy: points on a circle, a small network that removes their noise."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unclip.config import Config
from unclip.diffusion.denoiser import Denoiser
from unclip.diffusion.schedule import NoiseSchedule
from unclip.randomness import Noise
from unclip.training import TrainConfig, load_ema, read_log, train
from unclip.training.task import Task
from unclip.types import Batch, Losses

ROOT = Path(__file__).resolve().parents[1]


class ToyConfig(Config, frozen=True, kw_only=True):
    width: int = 32
    dropout: float = 0.0


class ToyModel(nn.Module):
    """Removes noise from points (b, 2)."""

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.config, self.schedule = config, NoiseSchedule.cosine(100)
        self.network = nn.Sequential(
            nn.Linear(3, config.width), nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(config.width, 2)
        )
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x_t: Tensor, t: Tensor, cond: None = None) -> Tensor:
        self.calls += 1
        return self.network(torch.cat([x_t, t[:, None].to(x_t) / 100], 1))


class ToyTask(Task):
    """`bad`: steps (0, 1, ...) at which the loss is not a number."""

    def __init__(self, dropout: float = 0.0, bad: Sequence[int] = (), sam_rho: float | None = None):
        super().__init__()
        torch.manual_seed(7)
        self.model = ToyModel(ToyConfig(dropout=dropout))
        self.teacher = nn.Linear(2, 2)
        self.bad, self.sam_rho, self.seen = [f"step/{step}" for step in bad], sam_rho, []

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        assert batch.image_embed is not None
        self.seen += batch.keys
        x0 = batch.image_embed
        t = noise.at("t").integers(1, 101)
        losses = Denoiser(self.model, self.model.schedule, "x0").loss(x0, t, noise.at("eps").normal((2,)))
        if "/".join(noise.paths[0].split("/")[2:4]) in self.bad:
            losses = losses._replace(total=losses.total * float("nan"))
        return losses

    def sample_images(self, batch: Batch, noise: Noise) -> Tensor:
        return noise.normal((3, 4, 4)).clamp(-1, 1)


class Circle:
    """n points on a circle; slow: seconds per batch."""

    def __init__(self, n: int = 50, slow: float = 0.0):
        self.keys, self.slow = [f"{i}" for i in range(n)], slow

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        time.sleep(self.slow)
        angle = torch.tensor([float(i) for i in indices])
        points = torch.stack([angle.sin(), angle.cos()], 1)
        if noise is not None:
            points = points + 0.01 * noise.at("shake").normal((2,))
        return Batch(keys=[self.keys[i] for i in indices], image_embed=points)


BASE = TrainConfig(steps=10, batch=8, lr=1e-2, warmup=2, decay="constant", ema=0.9, log_every=3, save_every=1000, seed=3)


def states(run: Path) -> list[str]:
    return sorted(folder.name for folder in (run / "state").iterdir())


def everything(run: Path) -> dict[str, bytes]:
    """The files of the newest state, and the log without what a clock says."""
    newest = run / "state" / states(run)[-1]
    files = {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_second")} for row in read_log(run)]
    return files | {"log": json.dumps(rows).encode()}


def test_the_loss_falls_and_the_log_says_so(tmp_path: Path) -> None:
    task = ToyTask()
    teacher = task.teacher.weight.clone()
    trained = train(task, Circle(), BASE.replace(steps=240, batch=32, lr=2e-2, log_every=60), tmp_path)
    rows = read_log(tmp_path)
    assert [row["step"] for row in rows] == [60, 120, 180, 240]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert rows[-1]["loss_q1"] < 0.2 * rows[-1]["loss_q4"]  # little noise is easy to remove
    assert rows[-1]["samples"] == 240 * 32 and rows[-1]["mse"] == rows[-1]["loss"] and rows[-1]["lr"] == 2e-2
    assert torch.equal(task.teacher.weight, teacher) and task.teacher.weight.grad is None
    assert set(trained.ema) == set(task.model.state_dict()), "the teacher is not part of the result"
    saved = load_ema(tmp_path)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in trained.ema.items())
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_resuming_is_bit_equal(tmp_path: Path, precision: str) -> None:
    config = BASE.replace(precision=precision)
    train(ToyTask(dropout=0.3), Circle(), config, tmp_path / "straight")
    train(ToyTask(dropout=0.3), Circle(), config.replace(steps=5), tmp_path / "cut")
    torch.manual_seed(99)  # nothing may depend on the global generator
    train(ToyTask(dropout=0.3), Circle(), config, tmp_path / "cut")
    assert states(tmp_path / "cut") == ["step-00000005", "step-00000010"]
    assert everything(tmp_path / "straight") == everything(tmp_path / "cut")
    moments = (tmp_path / "cut/state/step-00000010/optimizer.safetensors").read_bytes()
    assert b"exp_avg_sq/network.0.weight" in moments


class Stripes(Circle):
    """Pictures (3, 8, 8) in place of points."""

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        images = torch.linspace(-1, 1, 8).expand(len(indices), 3, 8, 8) * torch.tensor(indices).reshape(-1, 1, 1, 1) / 50
        return Batch(keys=[self.keys[i] for i in indices], images=images)


class Convolutions(Task):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        assert batch.images is not None
        self.strides = batch.images.stride()
        return Losses((self.model(batch.images) - batch.images.flip(3)).square().flatten(1).mean(1), None, {})


def test_channels_last_resumes_bit_equal_too(tmp_path: Path) -> None:
    task, config = Convolutions(), BASE.replace(channels_last=True)
    train(task, Stripes(), config, tmp_path / "straight")
    assert task.strides == (192, 1, 24, 3) and task.model[0].weight.stride()[1] == 1
    train(Convolutions(), Stripes(), config.replace(steps=5), tmp_path / "cut")
    train(Convolutions(), Stripes(), config, tmp_path / "cut")
    assert everything(tmp_path / "straight") == everything(tmp_path / "cut")
    plain = train(Convolutions(), Stripes(), BASE, tmp_path / "plain").ema
    for name, tensor in load_ema(tmp_path / "cut").items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(tmp_path: Path) -> None:
    plain = train(Convolutions(), Stripes(), BASE, tmp_path / "plain").ema
    compiled = train(Convolutions(), Stripes(), BASE.replace(compile=True), tmp_path / "compiled").ema
    assert set(plain) == set(compiled)
    for name, tensor in compiled.items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-3, atol=1e-4)


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    task = ToyTask(dropout=0.5)
    before = torch.get_rng_state()
    train(task, Circle(), BASE, tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_each_step_sees_its_own_batch_and_noise(tmp_path: Path) -> None:
    straight, cut, again = ToyTask(), ToyTask(), ToyTask()
    train(straight, Circle(), BASE, tmp_path / "straight")
    train(cut, Circle(), BASE.replace(steps=4), tmp_path / "cut")
    train(again, Circle(), BASE, tmp_path / "cut")
    assert cut.seen + again.seen == straight.seen
    assert len(set(straight.seen[:48])) == 48, "48 of 50 points: an epoch repeats none"


def test_a_log_cut_off_in_the_middle_is_mended(tmp_path: Path) -> None:
    train(ToyTask(), Circle(), BASE, tmp_path / "straight")
    train(ToyTask(), Circle(), BASE.replace(steps=7, save_every=5, keep=5), tmp_path / "cut")
    (tmp_path / "cut/state/step-00000007").rename(tmp_path / "gone")  # killed after step 7, when 5 was the last state
    with (tmp_path / "cut/log.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    train(ToyTask(), Circle(), BASE, tmp_path / "cut")
    assert everything(tmp_path / "straight") == everything(tmp_path / "cut")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", ["ema.safetensors", "state.json"])
def test_a_broken_state_is_passed_over(tmp_path: Path, damage, name: str) -> None:
    config = BASE.replace(save_every=4, keep=3)
    train(ToyTask(), Circle(), config, tmp_path)
    whole = everything(tmp_path)
    newest = tmp_path / "state" / "step-00000010"
    damage(newest / name)
    (tmp_path / "state" / ".writing-step-00000012").mkdir()  # killed while writing
    with pytest.warns(UserWarning, match="step-00000010 is broken"):
        train(ToyTask(), Circle(), config, tmp_path)
    assert states(tmp_path) == ["step-00000004", "step-00000008", "step-00000010"]
    assert everything(tmp_path) == whole


@pytest.mark.parametrize(("keep", "broken", "left"), [(1, (10,), [9]), (2, (8, 10), [4, 5]), (1, (8, 10), [5])])
def test_a_state_behind_broken_ones_is_kept(tmp_path: Path, keep: int, broken: tuple[int, ...], left: list[int]) -> None:
    train(ToyTask(), Circle(), BASE.replace(save_every=4, keep=3), tmp_path)
    for step in broken:
        truncate(tmp_path / f"state/step-{step:08d}/model.safetensors")
    with pytest.warns(UserWarning, match="is broken"):
        train(ToyTask(), Circle(), BASE.replace(steps=left[-1], keep=keep), tmp_path)
    assert states(tmp_path) == [f"step-{step:08d}" for step in left]
    assert load_ema(tmp_path)["calls"] == left[-1]


@pytest.mark.filterwarnings("ignore:training state")
def test_a_run_whose_states_are_all_broken_is_not_started_anew(tmp_path: Path) -> None:
    train(ToyTask(), Circle(), BASE.replace(save_every=5), tmp_path)
    index = tmp_path / "state/step-00000005/state.json"
    index.write_text(index.read_text().replace('"format": 2', '"format": 3'))
    (tmp_path / "state/step-00000010/ema.safetensors").unlink()
    before = states(tmp_path), (tmp_path / "log.jsonl").read_bytes()
    problems = r"step-00000010 \(ema.safetensors is missing\), step-00000005 \(its format is 3, .*\)"
    for use in (lambda: train(ToyTask(), Circle(), BASE, tmp_path), lambda: load_ema(tmp_path)):
        with pytest.raises(ValueError, match=rf"state can be read: {problems}. Move that folder away to start anew"):
            use()
    assert before == (states(tmp_path), (tmp_path / "log.jsonl").read_bytes())
    (tmp_path / "state").rename(tmp_path / "away")
    assert train(ToyTask(), Circle(), BASE, tmp_path).step == 10


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes train, .* ACCELERATE_USE_CPU=true"):
        train(ToyTask(), Circle(), BASE, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    train(ToyTask(), Circle(), BASE.replace(steps=1), tmp_path / "run")


def test_old_states_are_dropped(tmp_path: Path) -> None:
    train(ToyTask(), Circle(), BASE.replace(save_every=2, keep=2), tmp_path)
    assert states(tmp_path) == ["step-00000008", "step-00000010"]


def test_a_full_disk_does_not_stop_training(tmp_path: Path, monkeypatch, capsys) -> None:
    from unclip.weights import tensors

    write, calls = tensors._bytes, []

    def full(tensor: Tensor) -> memoryview:
        calls.append(tensor)
        if len(calls) == 30:  # in the middle of the second state
            raise OSError(28, "No space left on device")
        return write(tensor)

    monkeypatch.setattr(tensors, "_bytes", full)
    train(ToyTask(), Circle(), BASE.replace(save_every=3, keep=5), tmp_path)
    assert states(tmp_path) == ["step-00000003", "step-00000009", "step-00000010"]
    assert "step 6 could not be saved" in capsys.readouterr().out


def test_a_full_disk_at_log_and_samples_does_not_stop_training(tmp_path: Path, capsys) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = tmp_path / "full/log.jsonl"

    class Filling(ToyTask):
        """From step 3 to step 6 files take no more than a part of a line; then there is room again."""

        def forward(self, batch: Batch, noise: Noise) -> Losses:
            if self.model.calls == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 9, before[1]))
            if self.model.calls == 6:
                assert log.read_bytes().endswith(b"}\n") and [row["step"] for row in read_log(log.parent)] == [1, 2, 3]
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            return super().forward(batch, noise)

        def sample_images(self, batch: Batch, noise: Noise) -> Tensor:
            return noise.normal((3, 32, 32))  # larger than the log

    config = BASE.replace(log_every=1, sample_every=5, save_every=4)
    try:
        train(Filling(), Circle(), config, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    train(ToyTask(), Circle(), config, tmp_path / "straight")
    assert everything(tmp_path / "full") == everything(tmp_path / "straight"), "no line is lost"
    out = capsys.readouterr().out
    assert out.count("log.jsonl could not be written") == 1, "said once"
    assert "samples of step 5 could not be saved" in out and "state after step 4 could not be saved" in out
    assert [path.name for path in (tmp_path / "full/samples").iterdir()] == ["step-00000010.png"]
    assert states(tmp_path / "full") == ["step-00000008", "step-00000010"]


def test_without_its_log_no_state_is_written_but_other_processes_are_served(tmp_path: Path, monkeypatch) -> None:
    from unclip.training import state
    from unclip.training.log import Log

    def refuse(log: Log) -> None:
        raise OSError(28, "No space left on device")

    asked: list[bool] = []
    save = state.save
    monkeypatch.setattr(Log, "sync", refuse)
    monkeypatch.setattr(state, "save", lambda *given, writes: asked.append(writes) or save(*given, writes=writes))
    with pytest.raises(OSError, match="No space"):
        train(ToyTask(), Circle(), BASE.replace(save_every=5), tmp_path)
    assert asked == [False, False] and not (tmp_path / "state").exists()


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    train(ToyTask(), Circle(), BASE.replace(steps=4), tmp_path / "four")
    train(ToyTask(bad=[4]), Circle(), BASE.replace(steps=5, log_every=5), tmp_path / "five")
    four, five = everything(tmp_path / "four"), everything(tmp_path / "five")
    assert four["optimizer.safetensors"] == five["optimizer.safetensors"]
    weights = b"network.0.weight"
    assert weights in four["model.safetensors"]
    event, row = read_log(tmp_path / "five")
    skipped = {"step": 5, "event": "skipped", "loss": "nan", "grad_norm": "nan"}
    assert event == skipped | {"module": "ToyTask", "direction": "forward"}
    assert row["skipped"] == 1 and row["loss"] > 0 and row["grad_norm"] > 0


def test_many_bad_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"3 steps in a row, up to step 7.*first in ToyTask, forward"):
        train(ToyTask(bad=[1, 4, 5, 6]), Circle(), BASE.replace(max_skips=3), tmp_path)
    assert states(tmp_path) == ["step-00000007"]
    assert all(tensor.isfinite().all() for tensor in load_ema(tmp_path).values())


def test_another_run_is_refused(tmp_path: Path) -> None:
    train(ToyTask(), Circle(), BASE.replace(steps=2), tmp_path)
    with pytest.raises(ValueError, match=r"holds another run.*lr: 0.01 -> 0.5"):
        train(ToyTask(), Circle(), BASE.replace(lr=0.5), tmp_path)
    with pytest.raises(ValueError, match="samples: 50 -> 49"):
        train(ToyTask(), Circle(49), BASE, tmp_path)
    with pytest.raises(ValueError, match="dropout"):
        train(ToyTask(dropout=0.5), Circle(), BASE, tmp_path)
    with pytest.raises(ValueError, match="2 steps already, more than the 1"):
        train(ToyTask(), Circle(), BASE.replace(steps=1), tmp_path)
    with pytest.raises(ValueError, match="no complete training state"):
        load_ema(tmp_path / "nothing")


def test_a_new_run_starts_from_given_weights(tmp_path: Path) -> None:
    task = ToyTask()
    init = {name: torch.ones_like(tensor) for name, tensor in task.model.state_dict().items()}
    trained = train(task, Circle(), BASE.replace(steps=1, lr=1e-9, warmup=0), tmp_path / "a", init=init)
    assert torch.allclose(trained.ema["network.0.weight"], torch.ones(32, 3))
    with pytest.raises(ValueError, match="missing calls, network.0.bias"):
        train(ToyTask(), Circle(), BASE, tmp_path / "b", init={"network.0.weight": torch.ones(32, 3)})


def test_samples_use_the_averaged_weights_and_leave_the_run_alone(tmp_path: Path) -> None:
    from PIL import Image

    class Looking(ToyTask):
        def sample_images(self, batch: Batch, noise: Noise) -> Tensor:
            looked.append(self.model.network[0].weight.clone())
            assert not self.model.training and len(noise) == 16 == len(batch.keys)
            return super().sample_images(batch, noise)

    looked: list[Tensor] = []
    trained = train(Looking(), Circle(), BASE.replace(sample_every=10), tmp_path / "a")
    train(ToyTask(), Circle(), BASE, tmp_path / "b")
    assert torch.equal(looked[0], trained.ema["network.0.weight"])
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    assert Image.open(tmp_path / "a/samples/step-00000010.png").size == (16, 16)


def test_errors_of_the_data_arrive(tmp_path: Path) -> None:
    class Broken(Circle):
        def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
            raise KeyError("lost picture")

    with pytest.raises(KeyError, match="lost picture"):
        train(ToyTask(), Broken(), BASE, tmp_path)
    with pytest.raises(ValueError, match="the data is empty"):
        train(ToyTask(), Circle(0), BASE, tmp_path)


def test_sharpness_aware_steps_use_the_gradient_nearby(tmp_path: Path) -> None:
    plain = train(ToyTask(), Circle(), BASE.replace(steps=1, warmup=0), tmp_path / "plain").ema
    tiny = train(ToyTask(sam_rho=1e-7), Circle(), BASE.replace(steps=1, warmup=0), tmp_path / "tiny").ema
    large = train(ToyTask(sam_rho=0.5), Circle(), BASE.replace(steps=1, warmup=0), tmp_path / "large").ema
    assert torch.allclose(plain["network.3.weight"], tiny["network.3.weight"], atol=1e-4)
    assert not torch.allclose(plain["network.3.weight"], large["network.3.weight"], atol=1e-4)


def test_sigterm_saves_exits_143_and_the_run_goes_on(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import test_training_loop as t; "
        "t.train(t.ToyTask(), t.Circle(slow=0.02), t.BASE.replace(steps=100_000, log_every=1), sys.argv[3])"
    )
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", program, str(ROOT), str(ROOT / "tests"), str(run)])
    try:
        for _ in range(2400):  # a busy machine takes its time to import torch
            time.sleep(0.05)
            if (run / "log.jsonl").exists() and len(read_log(run)) > 3:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 143
    finally:
        process.kill()
    (name,) = states(run)
    step = int(name.removeprefix("step-"))
    assert step == read_log(run)[-1]["step"]
    config = BASE.replace(steps=step + 3, log_every=1)
    train(ToyTask(), Circle(), config, run)
    train(ToyTask(), Circle(), config, tmp_path / "straight")
    assert everything(run) == everything(tmp_path / "straight")

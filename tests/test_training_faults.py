"""What may go wrong in a training, on purpose: numbers that are not finite, kills, damaged states."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Captioned, clip, decoder, prior
from test_training_loop import BASE, ROOT, Circle, ToyTask, everything, states
from torch import Tensor, nn

from unclip.randomness import Noise
from unclip.training import load_ema, read_log, train
from unclip.training.blocks import recomputed
from unclip.training.nan_origin import nan_origin
from unclip.training.task import Task
from unclip.types import Batch, Losses


class Root(nn.Module):
    """A square root, of which the slope at 0 is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


class Parts(nn.Module):
    """Between its layers it divides and multiplies by numbers that a test may spoil."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.root, self.last = nn.Linear(2, 3), Root(), nn.Linear(3, 1)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3)) for _ in range(2))
        self.gain, self.zero = nn.Parameter(torch.ones(3)), 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.last(self.gain * self.root(x.square() * self.zero) / 2)


class PartsTask(Task):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Parts()

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        assert batch.image_embed is not None
        return Losses(self.model(batch.image_embed).flatten().square(), None, {})


def origin(task: PartsTask, x: Tensor | None = None) -> tuple[str, str] | None:
    x = torch.ones(4, 2) if x is None else x

    def run() -> None:
        task(Batch(keys=["a"] * len(x), image_embed=x), Noise.of(0, range(len(x)))).total.mean().backward()

    found = nan_origin(task, run)
    return None if found is None else tuple(found)


def test_the_module_that_made_a_bad_number_is_found() -> None:
    assert origin(PartsTask()) is None
    task = PartsTask()
    task.model.layers[1][1].weight.data[0, 0] = torch.nan
    assert origin(task) == ("model.layers.1.1", "forward")
    task = PartsTask()
    task.model.gain.data[1] = torch.inf  # a parameter that no module within has
    assert origin(task) == ("model", "forward")
    assert origin(PartsTask(), torch.full((4, 2), torch.nan)) == ("the batch", "forward")
    task = PartsTask()
    task.model.zero = 0.0  # the loss is finite, the slope of the root is not
    assert origin(task) == ("model.root", "backward")
    assert task.model.first.weight.grad is not None and task.model.first.weight.grad.isnan().any()


class Spoil(torch.autograd.Function):
    """What comes back is no number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.nan


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("task", "name"),
    [
        (prior, "network.transformer.blocks.1.down"),
        (decoder, "network.unet.up.2.conv1"),
        (clip, "network.visual.transformer.resblocks.0.mlp.c_proj"),
    ],
)
def test_it_is_found_in_every_stage(task, name: str, recompute: bool) -> None:
    def look(made: Task) -> tuple[str, str] | None:
        def run() -> None:
            made(Captioned().batch(range(4)), Noise.of(0, range(4))).total.mean().backward()

        with recomputed(made.model.train(), recompute):
            found = nan_origin(made, run)
        return None if found is None else tuple(found)

    assert look(task()) is None
    spoilt = task()
    spoilt.model.get_submodule(name).weight.data.view(-1)[0] = torch.nan
    assert look(spoilt) == (f"model.{name}", "forward")
    spoilt = task()
    module = spoilt.model.get_submodule(name)
    forward = module.forward
    module.forward = lambda x: Spoil.apply(forward(x))
    assert look(spoilt) == (f"model.{name}", "backward")


def test_a_bad_gradient_is_told_with_its_module(tmp_path: Path, capsys) -> None:
    task = PartsTask()
    task.model.zero = 0.0
    with pytest.raises(FloatingPointError, match=r"2 steps in a row.*first in model\.root, backward\). Stopped"):
        train(task, Circle(), BASE.replace(max_skips=2), tmp_path)
    event = read_log(tmp_path)[0]
    assert event["module"] == "model.root" and event["direction"] == "backward" and event["grad_norm"] == "nan"
    assert "step 1 skipped: loss" in (out := capsys.readouterr().out) and "first in model.root, backward" in out
    assert all(torch.equal(value, PartsTask().model.state_dict()[name]) for name, value in load_ema(tmp_path).items())


def test_looking_for_a_bad_number_leaves_no_trace(tmp_path: Path) -> None:
    """Without the search the run would be the same, to the bit: buffers, dropout and optimiser."""
    bad = [2, 5]
    found = train(ToyTask(dropout=0.3, bad=bad), Circle(), BASE, tmp_path / "found").ema
    from unclip.training import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "nan_origin", lambda *arguments: None)
        blind = train(ToyTask(dropout=0.3, bad=bad), Circle(), BASE, tmp_path / "blind").ema
    assert all(torch.equal(found[name], blind[name]) for name in found)
    assert found["calls"] == 10
    newest = [(tmp_path / name / "state/step-00000010/optimizer.safetensors").read_bytes() for name in ("found", "blind")]
    assert newest[0] == newest[1]


def test_deterministic_kernels_are_asked_for_and_given_back(tmp_path: Path) -> None:
    class Asking(ToyTask):
        def forward(self, batch: Batch, noise: Noise) -> Losses:
            asked.append(torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic)
            return super().forward(batch, noise)

    asked: list[bool] = []
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    train(Asking(), Circle(), BASE.replace(steps=2, deterministic=True), tmp_path)
    assert asked == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before


# Forked children of one process, which has paid for importing torch, run the training; it kills them.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import accelerate, safetensors.torch
import test_training_faults as t

run, kills, rng = Path(sys.argv[3]), int(sys.argv[4]), random.Random(int(sys.argv[5]))
state = run / "state"

def child():
    sys.stdout = open(os.devnull, "w")
    code = 1
    try:
        t.train(t.ToyTask(dropout=0.3), t.Circle(), t.KILLED.replace(steps=12 * kills), run)
        code = 0
    finally:
        os._exit(code)

def launch():
    pid = os.fork()
    return pid if pid else child()

writing = 0
for kill in range(kills):
    before = max(map(t.step_of, state.glob("step-*")), default=0)
    pid = launch()
    while max(map(t.step_of, state.glob("step-*")), default=0) <= before:  # it gets on
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the child ended by itself"
        time.sleep(0.001)
    if kill % 2:
        time.sleep(rng.uniform(0, 0.03))
    else:
        while True:  # stopped, so that it is in the middle of writing however busy the machine is
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the child ended by itself"
            if any(state.glob(".writing-*/*")):
                time.sleep(rng.uniform(0, 0.002))
                os.kill(pid, signal.SIGSTOP)
                assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]), "the child ended by itself"
                if any(state.glob(".writing-*")):
                    break
                os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    writing += any(state.glob(".writing-*"))
pid = launch()
assert os.waitpid(pid, 0)[1] == 0
print("killed while writing:", writing)
"""
KILLED = BASE.replace(save_every=1, log_every=3, keep=3, ema=(0.9, 0.99))


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_a_run_ends_as_if_nothing_had_been(tmp_path: Path, kills: int) -> None:
    arguments = [str(ROOT), str(ROOT / "tests"), str(tmp_path / "killed"), str(kills), "11"]
    environment = {**os.environ, "UNCLIP_UNCHECKED": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", KILLER, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 1, "no kill met a state being written"
    steps = 12 * kills
    train(ToyTask(dropout=0.3), Circle(), KILLED.replace(steps=steps, save_every=1000), tmp_path / "straight")
    assert states(tmp_path / "killed") == [f"step-{step:08d}" for step in range(steps - 2, steps + 1)]
    straight, killed = everything(tmp_path / "straight"), everything(tmp_path / "killed")
    assert {*straight} == {"model.safetensors", "ema.safetensors", "ema-0.99.safetensors", "optimizer.safetensors", "log"}
    assert straight == killed


def test_random_damage_to_a_state_is_always_found(tmp_path: Path) -> None:
    config = BASE.replace(save_every=5)
    train(ToyTask(), Circle(), config, tmp_path)
    whole, rng = everything(tmp_path), random.Random(5)
    newest = tmp_path / "state" / "step-00000010"
    for path in sorted(newest.iterdir()):
        data = path.read_bytes()
        letters = [k for k, byte in enumerate(data) if path.suffix != ".json" or not chr(byte).isspace()]
        for at in rng.sample(letters, 3 if path.suffix != ".json" else 40):
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
            with pytest.warns(UserWarning, match="have changed|cannot be read|its format is") as told:
                assert load_ema(tmp_path)["calls"] == 5
            assert [str(one.message).count("\n") for one in told] == [0]
        path.write_bytes(data[: rng.randrange(len(data))])
        with pytest.warns(UserWarning, match="bytes instead of|cannot be read"):
            assert load_ema(tmp_path)["calls"] == 5
        path.write_bytes(data)
    assert load_ema(tmp_path)["calls"] == 10
    (newest / "state.json").unlink()
    with pytest.warns(UserWarning, match="state.json is missing"):
        train(ToyTask(), Circle(), config, tmp_path)
    assert everything(tmp_path) == whole

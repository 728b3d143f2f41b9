"""What leaves the result as it is: gradients in pieces, recomputed blocks, readers; frozen parts, several averages, the best."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch
from processes import CONFIG, Captioned, decoder, prior
from test_training_loop import BASE, Circle, ToyTask, everything, states
from torch import Tensor, nn

from unclip.clip.task import CLIPTask
from unclip.randomness import Noise
from unclip.training import load_ema, read_log, train
from unclip.training.backward import Backward
from unclip.training.blocks import blocks, recomputed
from unclip.training.prefetch import Prefetch
from unclip.training.task import Task
from unclip.types import Batch, Losses


@pytest.mark.parametrize("task", [ToyTask, prior])
def test_gradients_in_pieces_add_up(tmp_path: Path, task) -> None:
    data = Circle() if task is ToyTask else Captioned()
    config = CONFIG.replace(steps=10)
    whole = train(task(), data, config, tmp_path / "whole")
    pieces = train(task(), data, config.replace(micro_batch=3), tmp_path / "pieces")  # 3 + 3 + 2
    names = [name for name, _ in task().model.named_parameters()]
    for name in names:
        torch.testing.assert_close(pieces.ema[name], whole.ema[name], rtol=0, atol=1e-6)
    single = train(task(), data, config.replace(steps=1), tmp_path / "single")
    assert max(float((whole.ema[name] - single.ema[name]).abs().max()) for name in names) > 1e-4, "it must have moved"


def test_a_loss_that_couples_samples_is_not_taken_to_pieces(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="micro_batch is 4, but this loss is one number for the whole batch"):
        train(CLIPTask(tiny.clip()), Captioned(), BASE.replace(micro_batch=4), tmp_path / "a")
    train(CLIPTask(tiny.clip()), Captioned(), BASE.replace(micro_batch=8, steps=1), tmp_path / "b")  # one piece


def gradients(task: Task, recompute: bool) -> tuple[dict[str, Tensor], int]:
    """And the bytes kept for the backward pass, weights aside."""
    batch, noise = Captioned().batch(range(6)), Noise.of(1, range(6))
    own = {p.untyped_storage().data_ptr() for p in task.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no address is used twice
        return tensor

    def hold(module: nn.Module, args: tuple[object, ...]) -> None:
        """Inputs of blocks are kept beside the graph."""
        for arg in args:
            if isinstance(arg, Tensor):
                pack(arg)

    alive: list[Tensor] = []
    for block in blocks(task.model):
        block.register_forward_pre_hook(hold)
    for module in task.modules():
        if isinstance(context := getattr(module, "context", None), nn.Linear):
            context.register_forward_hook(lambda module, args, output: hold(module, (output,)))
    task.train()
    with torch.random.fork_rng(devices=[]), recomputed(task.model, recompute):
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = task(batch, noise).total.mean()
        loss.backward()
    return {name: p.grad for name, p in task.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("task", [prior, decoder])
def test_recomputed_blocks_give_the_same_gradients_from_less_memory(task) -> None:
    plain, all_kept = gradients(task(dropout=0.3), False)
    again, kept = gradients(task(dropout=0.3), True)
    assert plain.keys() == again.keys() and len(plain) > 30
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-6, atol=1e-7, msg=name)
    assert kept < 0.5 * all_kept


def test_blocks_are_found_and_put_back(tmp_path: Path) -> None:
    assert len(blocks(prior().model)) == 3
    model = decoder().model
    unet = model.network.unet
    assert set(blocks(model)) == {*unet.down, *unet.middle, *unet.up} and len(blocks(model)) == 10
    task = prior(dropout=0.2)
    names = list(task.state_dict())
    train(task, Captioned(), BASE.replace(checkpointing=True), tmp_path / "recomputed")
    assert "forward" not in vars(task.model.network.transformer.blocks[0]) and list(task.state_dict()) == names
    train(prior(dropout=0.2), Captioned(), BASE, tmp_path / "plain")
    recomputed_ema, plain_ema = load_ema(tmp_path / "recomputed"), load_ema(tmp_path / "plain")
    for name, tensor in ((n, t) for n, t in plain_ema.items() if n.startswith("network")):
        torch.testing.assert_close(recomputed_ema[name], tensor, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="checkpointing finds no blocks in ToyModel"):
        train(ToyTask(), Circle(), BASE.replace(checkpointing=True), tmp_path / "none")


def test_frozen_parameters_stay_to_the_bit_and_have_no_moments(tmp_path: Path) -> None:
    task = prior()
    before = {name: tensor.detach().clone() for name, tensor in task.model.named_parameters()}
    config = BASE.replace(freeze=("network.transformer.blocks.0.*", "*.query"), weight_decay=0.1)
    ema = train(task, Captioned(), config, tmp_path / "a").ema
    frozen = {n for n in before if n.startswith("network.transformer.blocks.0.") or n == "network.query"}
    trained = set(before) - frozen
    assert len(frozen) > 10
    for name, tensor in before.items():
        after = task.model.state_dict()[name]
        assert torch.equal(after, tensor) == (name not in trained), name
        assert name in trained or torch.equal(ema[name], tensor)
    moments = (tmp_path / "a/state/step-00000010/optimizer.safetensors").read_bytes()
    assert b"exp_avg/network.transformer.blocks.1.up.weight" in moments and b"blocks.0." not in moments
    with pytest.raises(ValueError, match=r"no parameter of DiffusionPrior matches 'netwrok\.\*'; there are .*network\.query"):
        train(prior(), Captioned(), BASE.replace(freeze=("netwrok.*",)), tmp_path / "b")
    with pytest.raises(ValueError, match="no trainable parameters"):
        train(prior(), Captioned(), BASE.replace(freeze=("*",)), tmp_path / "b")
    with pytest.raises(ValueError, match="freeze: .* -> "):
        train(prior(), Captioned(), BASE.replace(steps=12), tmp_path / "a")


def test_several_averages_at_once(tmp_path: Path) -> None:
    several = BASE.replace(ema=(0.9, 0.5))
    train(ToyTask(), Circle(), several.replace(steps=6), tmp_path / "several")
    trained = train(ToyTask(), Circle(), several, tmp_path / "several")
    for decay in (0.9, 0.5):
        alone = train(ToyTask(), Circle(), BASE.replace(ema=decay), tmp_path / f"{decay}").ema
        loaded = load_ema(tmp_path / "several", decay=decay)
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in alone.items())
        assert all(torch.equal(tensor, trained.ema[name]) for name, tensor in alone.items()) == (decay == 0.9)
    with pytest.raises(ValueError, match=r"no average of decay 0.7: this run has 0.9, 0.5"):
        load_ema(tmp_path / "several", decay=0.7)


class Graded(ToyTask):
    """Examined after k steps it says grades[k]."""

    grades = {2: 5.0, 4: 1.0, 6: 3.0, 8: float("nan"), 10: 1.0}

    def __init__(self) -> None:
        super().__init__()
        self.looked: dict[int, Tensor] = {}

    def validate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        assert not self.model.training
        step = int(self.model.calls)  # a buffer, which averaged weights have too
        self.looked[step] = self.model.network[0].weight.clone()
        return {"grade": torch.full((len(batch.keys),), self.grades[step])}


def test_the_best_state_is_kept(tmp_path: Path) -> None:
    config = BASE.replace(validate_every=2, best="-grade", keep=1, save_every=1000, validation_samples=4)
    straight, cut = Graded(), Graded()
    train(straight, Circle(), config, tmp_path / "straight", held_out=Circle(6))
    train(cut, Circle(), config.replace(steps=6), tmp_path / "cut", held_out=Circle(6))
    assert states(tmp_path / "cut") == ["step-00000004", "step-00000006"]
    train(cut, Circle(), config, tmp_path / "cut", held_out=Circle(6))
    for task, run in ((straight, tmp_path / "straight"), (cut, tmp_path / "cut")):
        assert states(run) == ["step-00000004", "step-00000010"], "an equal number later is not better"
        best = load_ema(run, best=True)
        assert best["calls"] == 4 and torch.equal(best["network.0.weight"], task.looked[4])
        assert load_ema(run)["calls"] == 10
    assert everything(tmp_path / "straight") == everything(tmp_path / "cut")
    examined = [row for row in read_log(tmp_path / "cut") if row.get("event") == "validated"]
    assert [(row["step"], row["grade"]) for row in examined] == [(2, 5.0), (4, 1.0), (6, 3.0), (8, None), (10, 1.0)]
    train(Graded(), Circle(), config.replace(best="grade"), tmp_path / "largest", held_out=Circle(6))
    assert load_ema(tmp_path / "largest", best=True)["calls"] == 2
    with pytest.raises(ValueError, match="best is 'accuracy', but the validation has no such number: grade. .* state saved"):
        train(Graded(), Circle(), config.replace(best="accuracy"), tmp_path / "none", held_out=Circle(6))
    assert states(tmp_path / "none") == ["step-00000002"], "what was trained is not lost"
    train(Graded(), Circle(), config, tmp_path / "none", held_out=Circle(6))
    assert states(tmp_path / "none") == states(tmp_path / "straight")
    with pytest.raises(ValueError, match="best is '-grade', but there is no held-out data"):
        train(Graded(), Circle(), config, tmp_path / "blind")
    assert not (tmp_path / "blind").exists()
    train(ToyTask(), Circle(), BASE.replace(steps=1), tmp_path / "plain")
    with pytest.raises(ValueError, match="kept no best state"):
        load_ema(tmp_path / "plain", best=True)


def test_examining_leaves_the_run_alone(tmp_path: Path) -> None:
    train(ToyTask(dropout=0.3), Circle(), BASE, tmp_path / "plain")
    train(ToyTask(dropout=0.3), Circle(), BASE.replace(validate_every=3), tmp_path / "examined", held_out=Circle(6))
    plain, examined = everything(tmp_path / "plain"), everything(tmp_path / "examined")
    assert plain["model.safetensors"] == examined["model.safetensors"]
    assert plain["optimizer.safetensors"] == examined["optimizer.safetensors"]
    rows = [row for row in read_log(tmp_path / "examined") if row.get("event") == "validated"]
    assert [row["step"] for row in rows] == [3, 6, 9, 10] and all(row["loss"] > 0 for row in rows)


def test_many_readers_keep_the_order() -> None:
    threads: set[str] = set()

    def make(k: int) -> int:
        threads.add(threading.current_thread().name)
        time.sleep(0.02 if k % 4 == 0 else 0.0)  # later ones are ready first
        return k

    with Prefetch(make, 0, 40, workers=4) as numbers:
        assert list(numbers) == list(range(40))
    assert len(threads) > 1

    def broken(k: int) -> int:
        if k == 3:
            raise KeyError("lost")
        return k

    with Prefetch(broken, 0, 9, workers=3) as numbers, pytest.raises(KeyError, match="lost"):
        for k, number in enumerate(numbers):
            assert number == k < 3


def test_readers_do_not_change_a_run(tmp_path: Path) -> None:
    train(ToyTask(), Circle(), BASE, tmp_path / "one")
    train(ToyTask(), Circle(slow=0.002), BASE.replace(workers=4), tmp_path / "four")
    assert everything(tmp_path / "one") == everything(tmp_path / "four")


def test_weights_of_the_data_change_what_is_drawn(tmp_path: Path) -> None:
    class Weighted(Circle):
        weights = [1.0] * 5 + [0.0] * 45

    task = ToyTask()
    train(task, Weighted(), BASE, tmp_path)
    assert set(task.seen) == {"0", "1", "2", "3", "4"}


def test_processes_average_once_however_many_the_pieces() -> None:
    class Wrapped(nn.Module):
        """As DDP: inside `no_sync` a backward pass stays with the process."""

        def __init__(self) -> None:
            super().__init__()
            self.task, self.apart, self.passes = ToyTask(), False, []

        @contextmanager
        def no_sync(self) -> Iterator[None]:
            self.apart = True
            yield
            self.apart = False

        def forward(self, batch: Batch, noise: Noise) -> Losses:
            self.passes.append((len(noise), not self.apart))
            return self.task(batch, noise)

    wrapped, noise = Wrapped(), Noise.of(0, range(8)).at("step/0")
    backward = Backward(wrapped, BASE.replace(micro_batch=3), torch.device("cpu"), 0)
    with torch.random.fork_rng(devices=[]):
        losses, mean = backward(Circle().batch(range(8)), noise, 0, torch.tensor(1.0))
    assert wrapped.passes == [(3, False), (3, False), (2, True)]
    assert losses.total.shape == losses.t.shape == (8,)
    torch.testing.assert_close(mean, losses.total.mean())

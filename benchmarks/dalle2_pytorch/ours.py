"""Our side of `training.py`, a process of its own: a job's JSON in, its result's JSON out.

`unclip.training.train` does the steps, as `unclip train` runs it.  The clock is looked at when a step's loss is computed, so that
reading data, optimiser, averaged weights and the log all count; writing the state at the end of a training does not.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.dalle2_pytorch.common import Clock, Spec, Ticks, begin, finish, speed_of
from benchmarks.machine import memory
from prior import DiffusionPrior
from unclip.randomness import Noise
from unclip.runs import Training, build
from unclip.runs.recipes import find
from unclip.training import TrainConfig, load_ema, train
from unclip.training.task import Task
from unclip.types import Batch, Cond, Text, best_of

FIRST = 6  # steps that tell what a step takes, and so how many there will be
AIM = 0.99  # part of the time to plan for; at its end the training is stopped

COMMON = ("train.sample_every=null", "train.save_every=86400s", "train.keep=1")


class Material:
    """CLIP's answers and the pictures of training (a `Data`), and of any rows."""

    def __init__(self, path: str, reads_pictures: bool):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            self.image_embed = file.get_tensor("image_embed")
            names = ("tokens", "embed", "states", "mask")
            self._text = Text(json.loads(metadata["strings"]), *(file.get_tensor(f"text.{name}") for name in names))
            self._train = file.get_tensor("train").nonzero()[:, 0]
            self._pictures = file.get_tensor("pictures") if reads_pictures else None
        all_keys = json.loads(metadata["keys"])
        self.keys: Sequence[str] = [all_keys[i] for i in self._train.tolist()]

    def __len__(self) -> int:
        return len(self._train)

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        rows = self._train[torch.tensor(list(indices))]
        images = None if self._pictures is None else self._pictures[rows].float().div_(127.5).sub_(1)
        text = self.text(rows)
        keys = [self.keys[i] for i in indices]
        return Batch(keys=keys, images=images, captions=text.strings, image_embed=self.image_embed[rows], text=text)

    def text(self, rows: Tensor) -> Text:
        return Text([self._text.strings[i] for i in rows.tolist()], *(x[rows] for x in self._text[1:]))

    def training_embeds(self, n: int | None = None) -> tuple[Tensor, Text]:
        rows = self._train if n is None else self._train[:: max(1, len(self._train) // n)][:n]
        return self.image_embed[rows], self.text(rows)


def recipe_of(spec: Spec) -> Training:
    changes = [*spec["changes"], *COMMON, f"train.seed={spec['seed']}"]
    if spec["precision"] != "own":
        changes.append(f"train.precision={spec['precision']}")
    return find(f"emoji.{spec['stage']}").override(*changes)


def task_of(recipe: Training, material: Material) -> Task:
    """The stage of a recipe, new weights, on this material."""
    return build(recipe, data=material).task


@contextmanager
def at_each_step(task: Task, call: Callable[[], object]) -> Iterator[None]:
    """`call` before each loss of the training."""
    hook = task.register_forward_pre_hook(lambda module, inputs: call())
    try:
        yield
    finally:
        hook.remove()


def speed(spec: Spec) -> None:
    start = memory("VmRSS")
    recipe, material = recipe_of(spec), Material(spec["material"], spec["stage"] == "decoder")
    task, ticks = task_of(recipe, material), Ticks()
    with tempfile.TemporaryDirectory() as folder, at_each_step(task, ticks):
        train(task, material, recipe.train.replace(steps=spec["repeats"] + 2), folder)
    gflop = gflop_of(task, material, min(4, len(material)))
    finish(spec, speed_of(ticks, recipe.train.batch, start, parameters(task), gflop))


def gflop_of(task: Task, material: Material, batch: int) -> float:
    """Products and convolutions of a sample's forward and backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    chunk = material.batch(range(batch))
    with FlopCounterMode(display=False) as counter:
        task(chunk, Noise.of(0, range(batch))).total.float().mean().backward()
    return counter.get_total_flops() / batch / 1e9


def parameters(task: Task) -> int:
    return sum(p.numel() for p in task.model.parameters())


def learn(spec: Spec) -> None:
    recipe, material = recipe_of(spec), Material(spec["material"], spec["stage"] == "decoder")
    task = task_of(recipe, material)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        updates, seconds = train_for(task, material, recipe.train, spec["seconds"], spec["threads"], Path(folder))
        wall = time.perf_counter() - began
        task.model.load_state_dict(load_ema(folder))
    task.model.eval()
    results = {"updates": updates, "samples": updates * recipe.train.batch, "seconds": seconds, "wall": wall}
    sampled = time.process_time()
    drawn = draw(task.model, material, torch.tensor(spec["rows"]))
    results |= {"parameters": parameters(task), "sampling seconds": time.process_time() - sampled}
    finish(spec, results, {"averaged weights": drawn})


def train_for(task: Task, data: Material, config: TrainConfig, budget: float, threads: int, run_dir: Path) -> tuple[int, float]:
    """Train for `budget` seconds of `Clock`; updates and seconds.

    The rate falls over the steps that the first few promise; if they promised too many, the training is stopped at its time.
    """
    clock, ticks = Clock(threads), list[float]()
    with at_each_step(task, lambda: ticks.append(clock.seconds())):
        first = train(task, data, config.replace(steps=FIRST), run_dir).step
    laps = [b - a for a, b in zip(ticks, ticks[1:])]
    spent = sum(laps) + laps[-1]  # the last one ran into the writing of the state
    more = int((AIM * budget - spent) / statistics.median(laps))
    if more < 1:
        return first, spent
    again: list[float] = []
    late = False

    def look() -> None:
        nonlocal late
        again.append(clock.seconds())
        if not late and spent + again[-1] - again[0] >= budget:
            late = True
            os.kill(os.getpid(), signal.SIGTERM)  # the loop ends after this step, with its state saved

    try:
        with at_each_step(task, look):
            updates = train(task, data, config.replace(steps=first + more), run_dir).step
    except SystemExit:
        if not late:  # somebody else's signal
            raise
        updates = first + len(again)
    laps = [b - a for a, b in zip(again, again[1:])] or laps
    return updates, spent + sum(laps[: len(again) - 1]) + statistics.median(laps)


@torch.no_grad()
def draw(model: Any, material: Material, rows: Tensor) -> Tensor:
    """With the recipe's own sampling: of a prior the better of two draws, of a decoder pictures in [-1, 1]."""
    noise = Noise.of(0, range(len(rows))).at("draw")
    text = material.text(rows)
    if isinstance(model, DiffusionPrior):
        # The variance of its steps is measured after training.
        embeds, captions = material.training_embeds(256)
        model.measure_variance(embeds, captions, model.config.sampling.steps, Noise.of(0, range(len(embeds))).at("measure"))
        return best_of(model.sample(text, noise=noise, n=2), text.embed)
    pictures = []
    for part in (slice(i, i + 20) for i in range(0, len(rows), 20)):
        cond = Cond(material.image_embed[rows[part]], text.rows(part))
        pictures.append(model.sample(cond, noise=noise[part]))
    return torch.cat(pictures)


def main(path: str) -> None:
    spec = begin(path)
    {"speed": speed, "learn": learn}[spec["task"]](spec)


if __name__ == "__main__":
    main(sys.argv[1])

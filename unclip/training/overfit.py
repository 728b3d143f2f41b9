"""Overfitting a handful of samples as a self-test: does the stage learn, and does it use what it is given?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from unclip.data.order import Data
from unclip.randomness import Noise
from unclip.types import Batch

from .config import TrainConfig
from .evaluation import Judged, judge
from .loop import train
from .task import Task
from .validation import Validation

STEPS = 400
# The baselines that a stage reaches which learns nothing or does not look at its condition.
BLIND = ("start", "other", "chance", "bicubic")


class Verdict(NamedTuple):
    """`passed`: every check did.  `text`: what was found, one paragraph.  `numbers`: of the validation afterwards."""

    passed: bool
    text: str
    checks: tuple[tuple[Judged, bool], ...]
    numbers: dict[str, float | None]


class First:
    """The first n samples of some data, clean: no augmentation, the first caption."""

    def __init__(self, data: Data, n: int):
        self.data, self.keys = data, list(data.keys[:n])

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        return self.data.batch(indices, None)


def overfit(task: Task, data: Data, config: TrainConfig, run_dir: str | Path, n: int, steps: int = STEPS) -> Verdict:
    """Train `task` on the first n samples and say whether it is wired right; its model is left with the averaged weights.

    The settings are `config`'s but for the length, a constant rate, a batch of at most n and an average of the weights that
    a short run reaches.  On several processes all return the same.  ValueError: fewer than 2 samples.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="no")
    n = min(n, len(data))
    if n < max(2, accelerator.num_processes):
        raise ValueError(f"a self-test needs at least {max(2, accelerator.num_processes)} samples, not {n}")
    subset, config = First(data, n), self_test(config, n, steps, accelerator.num_processes)
    task.to(accelerator.device)
    validation = Validation(task, subset, config, accelerator)
    start = _validate(task, validation, 0)
    trained = train(task, subset, config, run_dir)
    task.model.load_state_dict(trained.ema)
    return verdict(start, _validate(task, validation, trained.step), n, trained.step)


def self_test(config: TrainConfig, n: int, steps: int, world: int = 1) -> TrainConfig:
    """The settings of a self-test on n samples."""
    batch = min(config.batch, n) // world * world
    ema = min(min(config.decays), 0.98)
    changes: dict[str, Any] = {"steps": steps, "batch": batch, "warmup": min(config.warmup, steps // 20), "decay": "constant"}
    changes |= {"ema": ema, "validation_samples": n, "sample_every": None, "validate_every": None, "best": None, "trackers": ()}
    changes["shard"] = False  # every process loads the averaged weights
    micro = config.micro_batch
    return config.replace(**changes, micro_batch=None if micro is None or batch // world % micro else micro)


def verdict(start: Mapping[str, float | None], end: Mapping[str, float | None], n: int, steps: int) -> Verdict:
    """Judge the validations before and after `steps` steps on n samples."""
    row = dict(end) | {"loss/start": start.get("loss")}
    telling = [judged for judged in judge(row) if judged.baseline in BLIND and judged.number != "sharpness"]
    # Among five samples or fewer everybody has the right one among the first five.
    telling = [judged for judged in telling if judged.baseline != "chance" or not judged.number.endswith("R@5") or n > 5]
    checks = tuple((judged, _enough(judged)) for judged in telling)
    finite = end.get("loss") is not None
    passed = finite and bool(checks) and all(fine for _, fine in checks)
    good = [f"{judged.number} {judged.value:.3g} ({judged.baseline} {judged.base:.3g})" for judged, fine in checks if fine]
    missed = [_missed(judged) for judged, fine in checks if not fine]
    ignored = [name.removeprefix("change_") for name, value in end.items() if name.startswith("change_") and value == 0]
    sentences = [f"After {steps} steps on {n} samples this stage is {'wired right' if passed else 'NOT wired right'}."]
    sentences += [] if finite else ["The loss is not a number."]
    sentences += [f"It fails: {'; '.join(missed)}."] if missed else []
    sentences += [f"The output does not change at all with another {' or '.join(ignored)}: it is ignored."] if ignored else []
    sentences += [f"Good: {', '.join(good)}."] if good else []
    return Verdict(passed, " ".join(sentences), checks, dict(end))


def _enough(judged: Judged) -> bool:
    """Is a number so much better than what a blind stage reaches that chance is no excuse?"""
    value, base = judged.value, judged.base
    if judged.number == "psnr":
        return value > base + 0.5
    if judged.number == "loss" and judged.baseline == "start":
        return value < base - 0.25 * abs(base)
    if judged.number.startswith(("loss", "error")):
        return value < 0.9 * base
    return value > base + 0.25 * (1 - base)  # cosines and hit rates: a quarter of the way to 1


def _missed(judged: Judged) -> str:
    why = {
        "start": f"the loss was {judged.base:.3g} at the start and is {judged.value:.3g}: is anything trained, and at what rate?",
        "other": f"{judged.number} is {judged.value:.3g} where {judged.base:.3g} is what another sample gets: "
        "the condition is ignored, or belongs to other samples",
        "chance": f"{judged.number} is {judged.value:.3g}, chance {judged.base:.3g}: "
        "captions and pictures do not belong together",
        "bicubic": f"{judged.number} is {judged.value:.3g}, bicubic's {judged.base:.3g}: nothing is gained over resizing",
    }
    return why[judged.baseline]


def _validate(task: Task, validation: Validation, step: int) -> dict[str, float | None]:
    modes = [(module, module.training) for module in task.modules()]
    task.eval()
    try:
        with torch.random.fork_rng(_devices(task)):
            return validation(step)
    finally:
        for module, training in modes:
            module.training = training


def _devices(task: nn.Module) -> list[int]:
    device = next(task.parameters()).device
    return [device.index or 0] if device.type == "cuda" else []

"""Run a training, from its beginning or resumed, to the finished component."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from unclip.checks import path_of
from unclip.progress import Bars
from unclip.training import train as run

from . import record
from .build import build
from .finish import finish
from .training import Training


def train(training: Training, run_dir: str | Path, device: Any = "cpu", bars: Bars | None = None) -> Path:
    """Train into `run_dir`, which the same call goes on with, and return the folder of the component in it.

    device: of the frozen CLIP; the loop takes accelerate's.  Of several processes the main one talks and writes.  bars: None =
    where somebody watches.
    ValueError: the folder holds another training, or something in it does not fit.
    """
    run_dir, main = path_of(run_dir), int(os.environ.get("RANK", "0")) == 0
    record.refuse_other(training, run_dir)
    with bars or Bars() as bars:
        built = build(training, device, bars.say if main else _silent, bars=bars if main else None)
        run_dir.mkdir(parents=True, exist_ok=True)
        if main:
            record.begin(training, run_dir)
            count = sum(p.numel() for p in built.task.model.parameters())
            bars.say(f"{training.name}: {count / 1e6:.2f}M parameters, {len(built.data)} samples, on {device}, run {run_dir}")
        trained = run(built.task, built.data, training.train, run_dir, held_out=built.held_out, bars=bars)
        return finish(training, built, trained.ema, run_dir) if main else run_dir


def _silent(text: str) -> None:
    pass

"""Run a training, from its beginning or resumed, to the finished component."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from unclip.checks import path_of
from unclip.files import check_folder
from unclip.index import COMPONENT_FILES
from unclip.progress import Bars
from unclip.training import train as run
from unclip.training.lock import locked

from . import record
from .build import build
from .components import MODEL
from .finish import finish
from .training import Training


def train(training: Training, run_dir: str | Path, device: Any = "cpu", bars: Bars | None = None) -> Path:
    """Train into `run_dir`, which the same call goes on with, and return the folder of the component in it.

    device: of the frozen CLIP; the loop takes accelerate's.  Of several processes the main one talks and writes.  bars: None =
    where somebody watches.
    ValueError: the folder holds another training, or something in it does not fit.
    """
    run_dir, main = path_of(run_dir), int(os.environ.get("RANK", "0")) == 0
    with locked(run_dir, main), bars or Bars() as bars:
        check_folder(run_dir / MODEL, True, COMPONENT_FILES)  # which the end will write
        record.refuse_other(training, run_dir)
        built = build(training, device, bars.say if main else _silent, bars=bars if main else None)
        if main:
            record.begin(training, run_dir)
            count = sum(p.numel() for p in built.task.model.parameters())
            bars.say(f"{training.name}: {count / 1e6:.2f}M parameters, {len(built.data)} samples, on {device}, run {run_dir}")
        trained = run(built.task, built.data, training.train, run_dir, held_out=built.held_out, bars=bars)
        return finish(training, built, trained.ema, run_dir) if main else run_dir


def _silent(text: str) -> None:
    pass

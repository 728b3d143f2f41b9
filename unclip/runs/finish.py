"""Finish a training: the averaged weights become a component in the run's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from unclip.clip.identity import identity
from unclip.files import write_files

from . import record
from .build import Built
from .components import IDENTITY, MODEL
from .training import Training


def finish(training: Training, built: Built, ema: dict[str, Tensor], run_dir: Path) -> Path:
    """Measure what sampling needs, and put the averaged weights as a component into the run folder, in place of older ones."""
    trained: Any = built.task.model
    component = type(trained)(trained.config)  # the trained one may be shared out over processes
    component.load_state_dict(ema)
    component.eval()
    if built.clip is not None:
        component.to(built.clip.device)
        write_files([(run_dir / IDENTITY, (json.dumps(identity(built.clip)) + "\n").encode())])
    built.task.measure(component, built.answers)
    record.write(training, run_dir)
    aside = run_dir / f".new-{MODEL}"
    shutil.rmtree(aside, ignore_errors=True)
    component.save_pretrained(aside)
    shutil.rmtree(run_dir / MODEL, ignore_errors=True)
    aside.rename(run_dir / MODEL)
    return run_dir / MODEL

"""Finish a training: the averaged weights become a component in the run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from unclip.clip.identity import identity
from unclip.files import write_files
from unclip.training.lock import STATES

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
    built.task.measure(component, built.answers)
    try:
        if built.clip is not None:
            write_files([(run_dir / IDENTITY, (json.dumps(identity(built.clip)) + "\n").encode())])
        record.write(training, run_dir)
        component.save_pretrained(run_dir / MODEL, overwrite=True)
    except ValueError as error:  # a full disk
        told = f"the trained weights are safe in {run_dir / STATES}"
        raise ValueError(f"{error}.  But {told}: make room, and the same command ends the training") from None
    return run_dir / MODEL

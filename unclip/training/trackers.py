"""TensorBoard and Weights & Biases beside the JSON lines, through accelerate's trackers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

HELD_OUT = "held_out"  # what names of validated numbers start with; those of the training itself start with "train"


class Trackers:
    """`log(row, step)` to every tracker named; only on the main process, only numbers.

    They start at the first line, when it is known where the run stands: what they hold of later steps, of a run that was cut
    off there, is dropped by TensorBoard.  ValueError: a library is not installed.
    """

    def __init__(self, names: Sequence[str], run_dir: str | Path, accelerator: Accelerator, config: TrainConfig):
        needs = {"tensorboard": "tensorboard", "wandb": "wandb"}
        for name in names:  # on every process, so that all stop
            if name not in needs:
                raise ValueError(f"no tracker {name!r}; there are {', '.join(needs)}")
            if find_spec(needs[name]) is None:
                raise ValueError(f"the tracker {name!r} is not installed: pip install {needs[name]}, or leave it out of trackers")
        self.names = tuple(names) if accelerator.is_main_process else ()
        self.run_dir, self.config = Path(run_dir), config
        self._started: list[GeneralTracker] | None = None

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """A line of the log: a validation's numbers go under "held_out/", all others under "train/"; events have no curve."""
        event = row.get("event")
        if not self.names or event not in (None, "validated"):
            return
        if self._started is None:
            self._started = [self._start(name, step) for name in self.names]
        folder = HELD_OUT if event else "train"
        values = {f"{folder}/{name}": value for name, value in row.items() if name != "step" and _is_number(value)}
        for tracker in self._started:
            tracker.log(values, step=step)

    def close(self) -> None:
        for tracker in self._started or []:
            tracker.finish()
        self._started, self.names = None, ()

    def _start(self, name: str, step: int) -> GeneralTracker:
        from accelerate.tracking import TensorBoardTracker, WandBTracker

        settings = json.loads(self.config.to_json())
        if name == "tensorboard":  # in <run>/tensorboard
            board = TensorBoardTracker("tensorboard", self.run_dir, purge_step=step)
            board.start()
            board.log({"config": f"```\n{self.config.to_json()}```"}, step=step)
            return board
        # One run of W&B for one run folder, also when it is continued.
        identity = hashlib.blake2b(str(self.run_dir.resolve()).encode(), digest_size=8).hexdigest()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        wandb = WandBTracker("unclip", name=self.run_dir.name, dir=str(self.run_dir), id=identity, resume="allow")
        wandb.start()
        wandb.store_init_configuration(settings)
        return wandb


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

"""Validation during training: always the same held-out samples with the same noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unclip.data.order import Data
from unclip.randomness import Noise
from unclip.trees import move
from unclip.types import Batch

from .config import TrainConfig
from .log import digits
from .task import Task

if TYPE_CHECKING:
    from accelerate import Accelerator


class Validation:
    """`validation(step)` -> the task's numbers of `config.validation_samples` evenly spaced samples, equal on every process.

    All processes take part: rows are shared out, gathered and summed up by the main one.  A sample's noise depends on the
    seed and the sample alone.  The caller sees to evaluation mode and to the weights.
    """

    def __init__(self, task: Task, data: Data, config: TrainConfig, accelerator: Accelerator):
        if len(data) < 1:
            raise ValueError("the held-out data is empty: nothing to validate on")
        self.task, self.data, self.config, self.accelerator = task, data, config, accelerator
        n = min(config.validation_samples, len(data))
        self.rows = [i * len(data) // n for i in range(n)]
        # Shares and batches are even, so that rows 2k and 2k + 1 stay together (`evaluation.partners`), and equal, so that each
        # process runs a sharded network as often as the others; for that the first samples come once more.
        world, rank = accelerator.num_processes, accelerator.process_index
        share = 2 * math.ceil(n / world / 2)
        padded = [self.rows[i % n] for i in range(share * world)]
        self.mine = padded[share * rank : share * (rank + 1)]
        self.batch = max(2, (config.micro_batch or config.batch // world) // 2 * 2)

    @torch.no_grad()
    def __call__(self, step: int) -> dict[str, float | None]:
        """The numbers after `step` updates; None where there is no number (NaN)."""
        pieces = [self._rows(self.mine[i : i + self.batch]) for i in range(0, len(self.mine), self.batch)]
        rows = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        if self.accelerator.num_processes > 1:
            gather = self.accelerator.gather
            rows = {name: gather(value.to(self.accelerator.device).contiguous()) for name, value in rows.items()}
        rows = {name: value[: len(self.rows)].cpu() for name, value in rows.items()}
        validated: list[Any] = [None]
        if self.accelerator.is_main_process:
            numbers = self.task.summarize(rows)
            validated = [{name: None if math.isnan(value) else digits(value) for name, value in numbers.items()}]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(validated)
        return validated[0]

    def _rows(self, indices: list[int]) -> dict[str, Tensor]:
        batch = move(self._read(indices), self.accelerator.device)
        noise = Noise.of(self.config.seed, indices).at("examine")  # its name when runs began that go on today
        precision, kind = getattr(torch, self.config.precision), self.accelerator.device.type
        with torch.autocast(kind, precision, enabled=precision != torch.float32):
            rows = self.task.validate(batch, noise)
        for name, value in rows.items():
            if len(value) != len(indices):
                problem = f"{type(self.task).__name__}.validate gave {len(value)} rows of {name!r} for {len(indices)} samples"
                raise ValueError(f"{problem}; there must be one each")
        return rows

    def _read(self, indices: list[int]) -> Batch:
        batch = self.data.batch(indices, None)  # no noise: the clean picture, the first caption
        if self.config.channels_last and batch.images is not None:
            return batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))
        return batch

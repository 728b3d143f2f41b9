"""Gradient accumulation: a process's rows of a batch to gradients, at once or in micro-batches."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from unclip.randomness import Noise
from unclip.types import Batch, Losses, Text

from .config import TrainConfig
from .exact import seed_dropout


class Backward:
    """backward(batch, noise, step, scale) -> losses and their mean; gradients of scale * mean are left in the parameters.

    `wrapped`: the task, or what shares it among processes; these average their gradients, and their shares of a batch are equal.
    """

    def __init__(self, wrapped: nn.Module, config: TrainConfig, device: torch.device, rank: int):
        self.wrapped, self.config, self.device, self.rank = wrapped, config, device, rank

    def __call__(self, batch: Batch, noise: Noise, step: int, scale: Tensor) -> tuple[Losses, Tensor]:
        n = len(noise)
        size = min(self.config.micro_batch or n, n)
        pieces = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        precision = getattr(torch, self.config.precision)
        seen, mean = [], torch.zeros((), device=self.device)
        for i, rows in enumerate(pieces):
            seed_dropout(self.device, self.config.seed, step, self.rank, *([i] if i else []))
            with self._averaging(i == len(pieces) - 1):
                with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
                    losses = self.wrapped(_rows(batch, rows) if len(pieces) > 1 else batch, noise[rows])
                if len(pieces) > 1:
                    self._refuse_coupled(losses)
                loss = losses.total.float().mean() * ((rows.stop - rows.start) / n)
                (loss * scale).backward()
            mean = mean + loss.detach()
            seen.append(_detached(losses))
        return _joined(seen), mean

    def _averaging(self, now: bool) -> AbstractContextManager[Any]:
        """DDP averages once, after the last piece.  (FSDP2 after each: until then gradients are whole, and fill memory.)"""
        no_sync = getattr(self.wrapped, "no_sync", None)
        return nullcontext() if now or no_sync is None else no_sync()

    def _refuse_coupled(self, losses: Losses) -> None:
        if losses.total.stride(0) == 0:  # one number, expanded over the batch
            raise ValueError(
                f"micro_batch is {self.config.micro_batch}, but this loss is one number for the whole batch, whose samples are "
                "each other's negatives: in pieces it would be another loss. Set micro_batch to null; checkpointing also "
                "saves memory"
            )


def _rows(batch: Batch, rows: slice) -> Batch:
    def select(field: Any) -> Any:
        return field if field is None else field.rows(rows) if isinstance(field, Text) else field[rows]

    return Batch(**{name: select(field) for name, field in batch._asdict().items()})


def _detached(losses: Losses) -> Losses:
    total = losses.total.detach()
    return Losses(total, losses.t, {name: term.detach().to(total).expand(len(total)) for name, term in losses.terms.items()})


def _joined(pieces: list[Losses]) -> Losses:
    if len(pieces) == 1:
        return pieces[0]
    ts = [piece.t for piece in pieces if piece.t is not None]
    terms = {name: torch.cat([piece.terms[name] for piece in pieces]) for name in pieces[0].terms}
    return Losses(torch.cat([piece.total for piece in pieces]), torch.cat(ts) if ts else None, terms)

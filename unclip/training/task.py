"""What the training loop trains: a module from batch to losses."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from unclip.randomness import Noise
from unclip.types import Batch, Losses


class Task(nn.Module):
    """A module from batch to losses: what the training loop trains.  Frozen teachers live here, outside `model`."""

    model: nn.Module

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        raise TypeError(f"{type(self).__name__} must define forward(batch, noise) -> Losses")

    def sample_images(self, batch: Batch, noise: Noise) -> Float[Tensor, "n 3 h w"] | None:
        """Pictures for the grid that the loop saves at intervals; None = this task draws none."""
        return None

    def examine(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """What held-out samples tell: per-sample tensors (b, ...), the same however the samples are split into batches."""
        return {"loss": self.forward(batch, noise).total}

    def summarize(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """The numbers to log, of what `examine` said about all samples; by default means over them."""
        return {name: float(values.double().mean()) for name, values in rows.items()}


def require(batch: Batch, names: Sequence[str], task: str) -> None:
    """Raise a ValueError when the batch lacks a field that the task needs."""
    missing = [name for name in names if getattr(batch, name) is None]
    if missing:
        has = [name for name in batch._fields if getattr(batch, name) is not None]
        raise ValueError(f"{task} needs batches with {', '.join(names)}; this one has only {', '.join(has)}")

"""Properties that a pipeline delegates to its cascade."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .cascade import Cascade
from .surface import Surface


class OverCascade(Surface):
    """Properties and sizes of the cascade that a pipeline has."""

    cascade: Cascade

    @property
    def name(self) -> str:
        return self.cascade.name

    @property
    def provenance(self) -> dict[str, Any]:
        return self.cascade.provenance

    @property
    def device(self) -> torch.device:
        return self.cascade.device

    @property
    def dtype(self) -> torch.dtype:
        return self.cascade.dtype

    @property
    def offload(self) -> Any:
        return self.cascade.offload

    @property
    def sizes(self) -> tuple[int, ...]:
        """Side lengths of the pictures that the stages make, in pixels."""
        return self.cascade.sizes

    def stages(self, size: int | None = None) -> tuple[int, ...]:
        """The sizes made on the way to `size`, which must be one of `sizes`; None = the largest."""
        return self.cascade.stages(size)

    def chunks(self, count: int, size: int) -> Iterator[slice]:
        """Rows that go through a stage together, for pictures of `size` pixels a side."""
        return self.cascade.chunks(count, size)

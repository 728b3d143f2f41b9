"""Load a pipeline of any kind by its name, folder or hub id."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unclip import checkpoint

from .cascade import Cascade
from .unclip import UnCLIP


def from_pretrained(
    source: str | Path,
    classes: Mapping[str, type[checkpoint.Component[Any]]] | None = None,
    dtype: torch.dtype | str | None = None,
    prior: str = "prior",
    offload: bool = False,
    variant: str | None = None,
    revision: str | None = None,
    progress: bool | None = None,
) -> UnCLIP | Cascade:
    """Load a pipeline as what its index says it is; the arguments are those of `UnCLIP.from_pretrained`.

    prior: of an UnCLIP; ValueError where another than the first is asked of a cascade.
    """
    if checkpoint.kind_of(source, revision) == "UnCLIP":
        return UnCLIP.from_pretrained(source, classes, dtype, prior, offload, variant, revision, progress)
    if prior != checkpoint.PRIORS[0]:
        raise ValueError(f"{source} holds a cascade, which has no component {prior!r}")
    return Cascade.from_pretrained(source, classes, dtype, offload, variant, revision, progress)

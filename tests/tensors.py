"""Tensors and files that the tests of unclip.weights share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


STATE = {"a.weight": random(4, 3), "a.bias": random(4, seed=1), "n": torch.tensor(7), "none": torch.zeros(0, 2)}


def read(lazies: dict[str, Any]) -> dict[str, Tensor]:
    return {name: lazy.read(lazy.dtype) for name, lazy in lazies.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)

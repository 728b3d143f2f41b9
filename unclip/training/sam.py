"""Sharpness-aware minimisation (Foret et al. 2021): the gradient at the worst point of a small ball around the weights.

    backward at w; before = sam_ascend(parameters, rho)
    zero_grad; backward at w + e; sam_restore(parameters, before); step

SAM (Foret 2021, eq. 2): e = rho g / |g|.  unCLIP's CLIP was trained with rho = 0.1, e computed per replica (App. C).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def sam_ascend(parameters: Iterable[nn.Parameter], rho: float, norm: Tensor | None = None) -> list[Tensor]:
    """Move the weights by rho g / |g| (one norm over all of them) and return them as they were, for `sam_restore`.

    norm: |g|, when the parameters are shards of which other processes have the rest.
    A zero or non-finite gradient moves nothing: the caller's own check of it decides what becomes of the step.
    """
    parameters = list(parameters)
    before = [p.detach().clone() for p in parameters]
    moved = [p for p in parameters if p.grad is not None]
    if not moved:
        return before
    grads = [p.grad.float() for p in moved if p.grad is not None]
    norm = torch.stack([g.norm() for g in grads]).norm() if norm is None else norm
    if bool(torch.isfinite(norm) & (norm > 0)):
        for p, g in zip(moved, grads):
            p.add_((g * (rho / norm)).to(p.dtype))
    return before


@torch.no_grad()
def sam_restore(parameters: Iterable[nn.Parameter], before: list[Tensor]) -> None:
    """Put the weights back, bit for bit (subtracting the perturbation would round)."""
    for p, old in zip(list(parameters), before, strict=True):
        p.copy_(old)

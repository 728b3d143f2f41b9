"""Sinusoidal timestep embedding."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def sinusoid(t: Int[Tensor, " b"], dim: int, max_period: float = 10000.0) -> Float[Tensor, "b dim"]:
    """Cosines, then sines, of t at dim / 2 frequencies from 1 down to nearly 1 / max_period; float32."""
    if dim % 2:
        raise ValueError(f"a sinusoidal embedding has an even width, not {dim}: half cosines, half sines")
    powers = torch.arange(dim // 2, dtype=torch.float32, device=t.device) / (dim // 2)
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * powers)  # (b, dim / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """t (b) in 1..T, on any device -> (b, width), by a sinusoid of width `dim` and two linear layers with SiLU between.

    `first` is the number that the network sees for t = 1: 0 for public weights that count timesteps from 0.
    """

    def __init__(self, dim: int, width: int, first: int = 1):
        super().__init__()
        self.dim, self.first = dim, first
        self.hidden = nn.Linear(dim, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Int[Tensor, " b"]) -> Float[Tensor, "b width"]:
        weight = self.hidden.weight
        waves = sinusoid(t.to(weight.device) - 1 + self.first, self.dim)
        return self.out(nn.functional.silu(self.hidden(waves.to(weight.dtype))))

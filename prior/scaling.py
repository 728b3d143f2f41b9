"""Standardise CLIP image embeddings for diffusion, and back."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

ScalingKind = Literal["std", "sqrt_d", "statistics"]

STD = 17.2 / 32  # unCLIP 2.2 multiplies unit vectors of 1024 dimensions by 17.2: 0.5375 per dimension, as ImageNet's pixels


class Scaling(nn.Module):
    """Raw CLIP embeddings -> standardised ones and back.

    `embedding` "unit" diffuses directions and returns them at the data's mean norm; "raw" keeps lengths.
    `kind`: "std" gives 0.5375 per dimension on average, "sqrt_d" 1, "statistics" mean 0 and std 1 in each dimension.
    """

    norm: Tensor  # mean norm of the raw embeddings
    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, kind: ScalingKind, embedding: Literal["unit", "raw"]):
        super().__init__()
        self.dim, self.kind, self.embedding = dim, kind, embedding
        # Zero = not fitted, which is refused; but directions can be scaled without knowing their lengths.
        self.register_buffer("norm", torch.tensor(1.0 if embedding == "unit" else 0.0))
        if kind == "statistics":
            self.register_buffer("mean", torch.zeros(dim))
            self.register_buffer("std", torch.zeros(dim))

    @property
    def fitted(self) -> bool:
        """Whether statistics were ever taken: embeddings of norm exactly 1 on average are those of one just made."""
        known = bool(torch.isfinite(self.norm)) and float(self.norm) not in (0.0, 1.0)
        return known and (self.kind != "statistics" or bool((self.std > 0).all()))

    @torch.no_grad()
    def fit(self, raw: Float[Tensor, "n d"]) -> None:
        """Take the statistics from data, all or nothing."""
        if raw.ndim != 2 or raw.shape[1] != self.dim or len(raw) < 2:
            raise ValueError(f"statistics are fitted to embeddings (n, {self.dim}) with n > 1, not {tuple(raw.shape)}")
        raw = raw.to(self.norm.device, torch.float32).cpu().double()
        x = normalize(raw, dim=-1) if self.embedding == "unit" else raw
        norm, mean, std = raw.norm(dim=-1).mean(), x.mean(0), x.std(0, unbiased=False)
        if not torch.isfinite(raw).all() or norm == 0:
            raise ValueError("the embeddings are zero, or hold NaN or infinity: look at the CLIP that made them")
        if self.kind == "statistics":
            # Rounding leaves a constant dimension with a std of some 1e-8 of its size.
            dead = (std <= 1e-6 * x.abs().amax(0).clamp(min=1e-12)).nonzero().flatten().tolist()
            if dead:
                raise ValueError(f"the embeddings do not vary in dimension {dead[:8]}: give more of them, or use scaling 'std'")
            self.mean.copy_(mean)
            self.std.copy_(std)
        self.norm.copy_(norm)

    def scale(self, raw: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Raw -> standardised, in float32 on this module's device."""
        self._check()
        x = raw.to(self.norm.device, torch.float32)
        if self.embedding == "unit":
            x = normalize(x, dim=-1)
        return (x - self._mean()) / self._std()

    def unscale(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Standardised -> raw."""
        self._check()
        raw = x.float() * self._std() + self._mean()
        return normalize(raw, dim=-1) * self.norm.float() if self.embedding == "unit" else raw

    def text(self, raw: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """CLIP's text embedding as the network reads it: as it is, or its direction with entries of about 1."""
        return normalize(raw.float(), dim=-1) * self.dim**0.5 if self.embedding == "unit" else raw

    def check(self) -> None:
        """ValueError for statistics that no data have.  Zero is allowed: they were not fitted yet, which is refused in use."""
        for name, value in self.named_buffers():
            if not torch.isfinite(value).all() or (name != "mean" and (value < 0).any()):
                raise ValueError(f"the embedding statistics cannot be: {name} is negative or not finite")

    def _mean(self) -> Tensor | float:
        return self.mean.float() if self.kind == "statistics" else 0.0

    def _std(self) -> Tensor | float:
        if self.kind == "statistics":
            return self.std.float()
        length = 1.0 if self.embedding == "unit" else self.norm.float()
        return length / (self.dim**0.5 * (STD if self.kind == "std" else 1.0))

    def _check(self) -> None:
        names = ["norm", "mean", "std"] if self.kind == "statistics" else ["norm"]
        for name in names:
            value = getattr(self, name)
            if not torch.isfinite(value).all() or (name != "mean" and (value <= 0).any()):
                raise ValueError(
                    f"the prior's embedding statistics are missing ({name} is zero or not finite): "
                    "call prior.fit(image_embeds) with CLIP image embeddings of the training data first"
                )

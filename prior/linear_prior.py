"""z_i by linear regression from z_t: the least that any prior has to beat.

Not in the paper, but the question that everyone asks of it: what does a draw add to a line through the data?
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unclip.checkpoint import Component
from unclip.config import Config
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.types import Losses, Text

from .scaling import Scaling

RIDGES = tuple(10.0**k for k in range(-7, 3))  # tried, as shares of the mean variance of z_t


class LinearPriorConfig(Config, frozen=True, kw_only=True):
    embed_dim: int


class LinearPrior(Component[LinearPriorConfig]):
    """The direction of  W (z_t - mean) + b  at the data's mean norm, always the same.  Fitted in closed form, not trained."""

    config_class = LinearPriorConfig
    candidates = 1  # every draw is the same
    text_mean: Tensor

    def __init__(self, config: LinearPriorConfig):
        super().__init__()
        self.config = config
        self.embed_dim = config.embed_dim
        self.scaling = Scaling(self.embed_dim, "std", "unit")
        self.network = nn.Linear(self.embed_dim, self.embed_dim)
        nn.init.zeros_(self.network.weight)
        nn.init.zeros_(self.network.bias)
        self.register_buffer("text_mean", torch.zeros(self.embed_dim))

    @torch.no_grad()
    def fit(self, image_embeds: Float[Tensor, "n d"], text_embeds: Float[Tensor, "n d"]) -> float:
        """Ridge regression on raw embeddings; returns the ridge, of `RIDGES` the one of the least leave-one-out error."""
        if image_embeds.shape != text_embeds.shape or image_embeds.shape[1] != self.embed_dim or len(image_embeds) < 3:
            raise ValueError(
                f"a linear prior of {self.embed_dim} dimensions is fitted to at least 3 image embeddings with as many of "
                f"their captions; got {tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}"
            )
        self.scaling.fit(image_embeds)
        y = self.scaling.scale(image_embeds).cpu().double()
        x = self.scaling.text(text_embeds).cpu().double()
        if not torch.isfinite(x).all():
            raise ValueError("the text embeddings hold NaN or infinity: look at the CLIP that made them")
        x_mean, y_mean = x.mean(0), y.mean(0)
        u, s, vt = torch.linalg.svd(x - x_mean, full_matrices=False)
        projected, total = u.T @ (y - y_mean), s.square().mean()

        def error(ridge: float) -> float:
            """Leave-one-out error through the diagonal of the hat matrix (Allen's PRESS)."""
            shrink = s.square() / (s.square() + ridge * total)
            rest = (y - y_mean) - u @ (shrink[:, None] * projected)
            leverage = (u.square() @ shrink + 1 / len(x)).clamp(max=1 - 1e-9)
            return float((rest / (1 - leverage)[:, None]).square().mean())

        ridge = min(RIDGES, key=error)
        weight = vt.T @ ((s / (s.square() + ridge * total))[:, None] * projected)
        self.network.weight.copy_(weight.T)
        self.network.bias.copy_(y_mean)
        self.text_mean.copy_(x_mean)
        return ridge

    def check(self) -> None:
        self.scaling.check()

    def loss(self, image_embed: Float[Tensor, "b d"], text: Text, *, noise: Noise) -> Losses:
        """Squared error per sample and dimension, standardised."""
        error = self._predict(text) - self.scaling.scale(image_embed)
        return Losses(error.square().mean(1), None, {})

    @torch.no_grad()
    def sample(self, text: Text, *, noise: Noise, n: int = 1, sampling: Sampling | None = None) -> Float[Tensor, "b n d"]:
        """n equal raw embeddings for each caption; a blank one gets the mean of the data."""
        return repeated(self.scaling.unscale(self._predict(text)), n, sampling)

    def _predict(self, text: Text) -> Float[Tensor, "b d"]:
        if text.z_t.shape[1] != self.embed_dim:
            raise ValueError(f"text embeddings have {text.z_t.shape[1]} dimensions, this prior reads {self.embed_dim}")
        x = self.scaling.text(text.z_t.to(self.device)) - self.text_mean
        made = self.network(x.to(self.network.weight.dtype))
        return torch.where(text.blank.to(self.device)[:, None], self.network.bias, made)


def repeated(embeds: Float[Tensor, "b d"], n: int, sampling: Sampling | None) -> Float[Tensor, "b n d"]:
    """n times the same, as a prior that draws nothing at random answers; ValueError for settings it has no use for."""
    if n < 1:
        raise ValueError(f"n is {n}; at least one embedding is drawn")
    if sampling not in (None, Sampling()):
        raise ValueError("a regression prior draws nothing and so has no guidance, steps or sampler: leave its sampling out")
    return embeds[:, None].repeat(1, n, 1)

"""Pre-norm transformer: causal or not, with padding masks and a key/value cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unclip.config import AtMost100, Config, Layers
from unclip.nn.cpu.linear import Linear

from .attention import Attention, KeyValue, triangle


class TransformerConfig(Config, frozen=True, kw_only=True):
    width: int
    layers: Layers
    heads: int
    mlp: AtMost100 = 4  # hidden width of the feed-forward part, in widths
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.width, self.layers, self.heads, self.mlp) < 1:
            raise ValueError(f"width, layers, heads and mlp are at least 1; got {self}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability below 1, not {self.dropout}")


class Cache(NamedTuple):
    """Key/value cache: keys and values of earlier tokens per layer, and which tokens are real (None = all)."""

    layers: tuple[KeyValue, ...]
    mask: Bool[Tensor, "b l"] | None = None

    def extend(self, new: Cache) -> Cache:
        """This cache followed by newer tokens of the same rows."""
        layers = tuple(
            KeyValue(torch.cat([a.k, b.k], dim=2), torch.cat([a.v, b.v], dim=2)) for a, b in zip(self.layers, new.layers)
        )
        if self.mask is None and new.mask is None:
            return Cache(layers)
        return Cache(layers, torch.cat([self._mask(), new._mask()], dim=1))

    def _mask(self) -> Tensor:
        k = self.layers[0].k
        return torch.ones(len(k), k.shape[2], dtype=torch.bool, device=k.device) if self.mask is None else self.mask


class Block(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        width, hidden = config.width, config.width * config.mlp
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, config.heads)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = Linear(width, hidden), Linear(hidden, width)
        self.dropout = nn.Dropout(config.dropout)
        # As in CLIP: activations keep their size at any width, and the residual sum its size at any depth.
        depth = (2 * config.layers) ** -0.5
        nn.init.normal_(self.attention.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.attention.out.weight, std=width**-0.5 * depth)
        nn.init.normal_(self.up.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(self.down.weight, std=hidden**-0.5 * depth)
        for layer in (self.attention.qkv, self.attention.out, self.up, self.down):
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Tensor,
        visible: Tensor | None,
        causal: bool,
        past: Sequence[tuple[KeyValue, Tensor | None]],
    ) -> tuple[Tensor, KeyValue]:
        y, key_value = self.attention(self.norm1(x), visible, causal, past)
        x = x + self.dropout(y)
        return x + self.dropout(self.down(nn.functional.gelu(self.up(self.norm2(x))))), key_value


class Transformer(nn.Module):
    """Blocks and a final norm.  Token and position embeddings are the caller's business."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self,
        x: Float[Tensor, "b l w"],
        mask: Bool[Tensor, "b l"] | None = None,
        causal: bool = False,
        past: Sequence[Cache] = (),
    ) -> tuple[Float[Tensor, "b l w"], Cache]:
        """Output and what x leaves behind.  `mask`: True = real token; the others are seen by nobody but themselves.

        `past` are earlier tokens, visible where their mask says so; the rows of each divide the rows of x, so that
        several rows may share one past.  Feeding a sequence at once or in pieces, causally, is the same.
        """
        visible = None
        if mask is not None:
            # Every token sees itself, else a padded row would have nothing to attend to and turn to NaN.
            diagonal = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
            visible = mask[:, None, None, :] | diagonal
            if causal:
                visible = visible & triangle(x.shape[1], x.device)
        left = []
        for i, block in enumerate(self.blocks):
            x, key_value = block(x, visible, causal, [(cache.layers[i], cache.mask) for cache in past])
            left.append(key_value)
        return self.norm(x), Cache(tuple(left), mask)

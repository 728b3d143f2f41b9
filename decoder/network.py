"""The decoder's network: conditions -> one embedding vector, context tokens and channels -> UNet."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unclip.conditions import ConditionEncoder, Drops
from unclip.nn.embeddings import TimestepEmbedding
from unclip.nn.unet import UNet
from unclip.types import Cond

from .config import DecoderConfig


class Encoded(NamedTuple):
    """Conditions as the UNet reads them, computed once per picture."""

    emb: Float[Tensor, "b e"] | None  # added to the timestep embedding
    context: list[Tensor] | None  # keys and values of every attention layer (b, l, 2 width)
    mask: Bool[Tensor, "b l"] | None
    channels: Float[Tensor, "b c h w"] | None  # beside the noisy picture's


class DecoderNetwork(nn.Module):
    """(x_t, t, encoded) -> raw output (b, 3 or 6, h, w)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        unet = config.unet
        self.size = (config.image_size, config.image_size)
        self.unet = UNet(unet, config.in_channels, config.out_channels, config.conditions.context_width)
        self.time = TimestepEmbedding(unet.sinusoid, unet.emb, config.first_timestep)
        self.conditions = ConditionEncoder(config.conditions, unet.emb, "decoder")

    def encode(self, cond: Cond, count: int, drops: Drops | None = None) -> Encoded:
        """Conditions of `count` pictures; what is absent or dropped becomes its null."""
        share = self.conditions(cond, count, self.size, drops)
        context = None if share.tokens is None else self.unet.encode_context(share.tokens)
        channels = None if share.channels is None else share.channels.to(self.unet.input.weight.device)
        return Encoded(share.emb, context, share.mask, channels)

    def forward(self, x_t: Float[Tensor, "b 3 h w"], t: Int[Tensor, " b"], encoded: Encoded) -> Tensor:
        x = x_t if encoded.channels is None else torch.cat([x_t, encoded.channels.to(x_t)], dim=1)  # (b, 3 + c, h, w)
        emb = self.time(t.to(x_t.device))
        emb = emb if encoded.emb is None else emb + encoded.emb
        return self.unet(x.to(self.unet.input.weight.dtype), emb, encoded.context, encoded.mask)

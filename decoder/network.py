"""The decoder's network: conditions -> one embedding vector and context tokens -> UNet."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from unclip.nn.embeddings import TimestepEmbedding
from unclip.nn.unet import UNet
from unclip.types import Cond

from .text_encoder import TextEncoder

if TYPE_CHECKING:
    from .decoder import DecoderConfig


class Encoded(NamedTuple):
    """Conditions as the UNet reads them, computed once per picture."""

    emb: Float[Tensor, "b e"]  # added to the timestep embedding
    context: list[Tensor]  # keys and values of every attention layer (b, l, 2 width)
    mask: Bool[Tensor, "b l"]


class DecoderNetwork(nn.Module):
    """(x_t, t, encoded) -> raw output (b, 3 or 6, h, w)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        width = config.unet.context_width
        assert width is not None
        self.unet = UNet(config.unet)
        self.time = TimestepEmbedding(config.unet.channels, config.unet.emb, config.first_timestep)
        self.image_to_emb = nn.Linear(config.embed_dim, config.unet.emb)
        self.image_to_tokens = nn.Linear(config.embed_dim, config.image_tokens * width)
        self.null_image = nn.Parameter(torch.zeros(config.embed_dim))
        self.text = TextEncoder(config.text, width, config.unet.emb) if config.text is not None else None

    def encode(
        self,
        cond: Cond,
        count: int,
        drop_image: Bool[Tensor, " b"] | None = None,
        drop_text: Bool[Tensor, " b"] | None = None,
    ) -> Encoded:
        """Conditions of `count` pictures; what is absent or dropped becomes its learned null."""
        image = self.null_image.expand(count, -1)
        if cond.image_embed is not None:
            given = cond.image_embed.to(image.device, torch.float32)
            if self.config.embedding == "unit":  # the direction, at unit variance per dimension
                given = normalize(given, dim=-1) * self.config.embed_dim**0.5
            given = given.to(image.dtype)
            image = given if drop_image is None else torch.where(drop_image[:, None], image, given)
        emb = self.image_to_emb(image)
        tokens = self.image_to_tokens(image).unflatten(-1, (self.config.image_tokens, -1))
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if self.text is not None:
            pooled, states, real = self.text(cond.text, count, drop_text)
            emb = emb + pooled
            tokens, mask = torch.cat([tokens, states.to(tokens.dtype)], dim=1), torch.cat([mask, real], dim=1)
        return Encoded(emb, self.unet.encode_context(tokens), mask)

    def forward(self, x_t: Float[Tensor, "b 3 h w"], t: Int[Tensor, " b"], encoded: Encoded) -> Tensor:
        x_t = x_t.to(self.unet.input.weight.dtype)
        return self.unet(x_t, self.time(t.to(x_t.device)) + encoded.emb, encoded.context, encoded.mask)

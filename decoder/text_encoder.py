"""How a caption enters the decoder: GLIDE's own text transformer, or a projection of CLIP's token states."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unclip.config import Config
from unclip.nn.transformer import Transformer, TransformerConfig
from unclip.types import Text


class TextEncoderConfig(Config, frozen=True, kw_only=True):
    kind: Literal["tokens", "clip_states"] = "tokens"
    context: int = 256  # tokens; longer captions are cut, with the end token kept by the tokenizer
    transformer: TransformerConfig | None = None  # "tokens": GLIDE's text transformer
    vocab: int = 49408  # "tokens"
    states_width: int | None = None  # "clip_states": width of CLIP's token states
    embed_dim: int | None = None  # "clip_states": width of CLIP's text embedding

    def __post_init__(self) -> None:
        if self.kind == "tokens" and self.transformer is None:
            raise ValueError("a text encoder over tokens needs a transformer")
        if self.kind == "clip_states" and (self.states_width is None or self.embed_dim is None):
            raise ValueError("a text encoder over CLIP states needs states_width and embed_dim, CLIP's text widths")


class TextEncoder(nn.Module):
    """Text -> a vector (b, emb) to add to the timestep embedding and context tokens (b, context, width) with their mask.

    "tokens" (GLIDE 2.1): non-causal, every padding position holds a learned vector and is attended to, the state at the last
    position is the pooled one.  "clip_states" (Karlo): states after CLIP's final norm, projected and normed; padding is masked.
    Dropped or absent captions: all positions padding, respectively one learned token.
    """

    def __init__(self, config: TextEncoderConfig, width: int, emb: int):
        super().__init__()
        self.config = config
        if config.kind == "tokens":
            assert config.transformer is not None
            inner = config.transformer.width
            self.embedding = nn.Embedding(config.vocab, inner)
            self.positions = nn.Parameter(0.01 * torch.randn(config.context, inner))
            self.padding = nn.Parameter(0.01 * torch.randn(config.context, inner))
            self.transformer = Transformer(config.transformer)
            nn.init.normal_(self.embedding.weight, std=0.02)
            self.to_states, self.to_emb = nn.Linear(inner, width), nn.Linear(inner, emb)
        else:
            assert config.states_width is not None and config.embed_dim is not None
            self.to_states = nn.Sequential(nn.Linear(config.states_width, width), nn.LayerNorm(width))  # type: ignore
            self.to_emb = nn.Linear(config.embed_dim, emb)
            self.null_state = nn.Parameter(torch.zeros(width))
            self.null_pooled = nn.Parameter(torch.zeros(emb))

    def forward(
        self, text: Text | None, count: int, drop: Bool[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b l w"], Bool[Tensor, "b l"]]:
        if text is not None and len(text.mask) != count:
            raise ValueError(f"{count} pictures but {len(text.mask)} captions: give one caption for each picture")
        if text is not None:
            blank = text.blank.to(self.to_emb.weight.device)
            drop = blank if drop is None else drop | blank
        return (self._tokens if self.config.kind == "tokens" else self._clip_states)(text, count, drop)

    def _tokens(self, text: Text | None, count: int, drop: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        device, context = self.positions.device, self.config.context
        tokens = torch.zeros(count, context, dtype=torch.int64, device=device)
        real = torch.zeros(count, context, dtype=torch.bool, device=device)
        if text is not None:
            if int(text.tokens.max()) >= self.config.vocab:
                raise ValueError(f"a caption has token {int(text.tokens.max())}, the vocabulary ends at {self.config.vocab - 1}")
            length = min(context, text.tokens.shape[1])
            tokens[:, :length], real[:, :length] = text.tokens[:, :length].to(device), text.mask[:, :length].to(device)
        if drop is not None:
            real = real & ~drop[:, None]
        x = torch.where(real[..., None], self.embedding(tokens) + self.positions, self.padding)
        states, _ = self.transformer(x)
        return self.to_emb(states[:, -1]), self.to_states(states), torch.ones_like(real)

    def _clip_states(self, text: Text | None, count: int, drop: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        device, context = self.null_state.device, self.config.context
        states = torch.zeros(count, context, len(self.null_state), device=device)
        pooled = self.null_pooled.expand(count, -1)
        real = torch.zeros(count, context, dtype=torch.bool, device=device)
        if text is not None:
            widths = (text.states.shape[-1], text.embed.shape[-1])
            if widths != (self.config.states_width, self.config.embed_dim):
                raise ValueError(
                    f"captions come with states and embeddings of widths {widths}, the decoder reads "
                    f"{(self.config.states_width, self.config.embed_dim)}: were they made by another CLIP?"
                )
            length = min(context, text.states.shape[1])
            given = self.to_states(text.states[:, :length].to(device, torch.float32))
            keep = torch.ones(count, 1, dtype=torch.bool, device=device) if drop is None else ~drop[:, None]
            real[:, :length] = text.mask[:, :length].to(device) & keep
            states = torch.cat([given, states[:, length:].to(given.dtype)], dim=1)
            pooled = torch.where(keep, self.to_emb(text.embed.to(device, torch.float32)), pooled)
        # One learned token stands in front: alone when there is no caption, hidden when there is one.
        null = self.null_state.expand(count, 1, -1).to(states.dtype)
        absent = ~real.any(dim=1, keepdim=True)
        return pooled, torch.cat([null, states], dim=1), torch.cat([absent, real], dim=1)

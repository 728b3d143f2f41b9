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
    context: int = 256  # tokens; longer captions are cut, their end token with the rest: give it what CLIP has
    transformer: TransformerConfig | None = None  # "tokens": GLIDE's text transformer
    vocab: int = 49408  # "tokens"
    states_width: int | None = None  # "clip_states": width of CLIP's token states
    embed_dim: int | None = None  # "clip_states": width of CLIP's text embedding
    null: Literal["learned", "empty"] = "learned"  # "clip_states": no caption is a learned token, or CLIP's empty caption

    def __post_init__(self) -> None:
        if self.kind == "tokens" and self.transformer is None:
            raise ValueError("a text encoder over tokens needs a transformer")
        if self.kind == "clip_states" and (self.states_width is None or self.embed_dim is None):
            raise ValueError("a text encoder over CLIP states needs states_width and embed_dim, CLIP's text widths")
        if self.kind == "tokens" and self.null == "empty":
            raise ValueError("null 'empty' is CLIP's empty caption; a text encoder over tokens has learned padding instead")


class TextEncoder(nn.Module):
    """Text -> a vector (b, emb) to add to the timestep embedding and context tokens (b, context, width) with their mask.

    "tokens" (GLIDE 2.1): non-causal, every padding position holds a learned vector and is attended to, the state at the last
    position is the pooled one.  "clip_states" (Karlo): states after CLIP's final norm, projected and normed; padding is masked.
    Dropped or absent captions: all positions padding, respectively one learned token or CLIP's empty caption.
    """

    empty_text: Tensor  # CLIP's empty caption, when config.null is "empty"
    empty_embed: Tensor
    empty_mask: Tensor

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
            if config.null == "learned":
                self.null_state = nn.Parameter(torch.zeros(width))
                self.null_pooled = nn.Parameter(torch.zeros(emb))
            else:
                self.register_buffer("empty_text", torch.zeros(config.context, config.states_width))
                self.register_buffer("empty_embed", torch.zeros(config.embed_dim))
                self.register_buffer("empty_mask", torch.zeros(config.context, dtype=torch.bool))

    def forward(
        self, text: Text | None, count: int, drop: Bool[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b l w"], Bool[Tensor, "b l"]]:
        if text is not None and len(text.mask) != count:
            raise ValueError(f"{count} pictures but {len(text.mask)} captions: give one caption for each picture")
        if text is not None:
            blank = text.blank.to(self.to_emb.weight.device)
            drop = blank if drop is None else drop | blank
        if self.config.kind == "tokens":
            return self._tokens(text, count, drop)
        return (self._clip_states if self.config.null == "learned" else self._clip_states_or_empty)(text, count, drop)

    @torch.no_grad()
    def set_null(self, text: Text) -> None:
        """Store CLIP's empty caption, one row, as what no caption is (config.null "empty")."""
        if self.config.null != "empty" or len(text.mask) != 1:
            raise ValueError(f"set_null takes one empty caption, for null 'empty'; got {len(text.mask)} and {self.config.null!r}")
        states, embed, mask = self._given(text)
        self.empty_text.copy_(states[0])
        self.empty_embed.copy_(embed[0])
        self.empty_mask.copy_(mask[0])

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
            self._check(text)
            length = min(context, text.token_states.shape[1])
            given = self.to_states(text.token_states[:, :length].to(self.null_state))
            keep = torch.ones(count, 1, dtype=torch.bool, device=device) if drop is None else ~drop[:, None]
            real[:, :length] = text.mask[:, :length].to(device) & keep
            states = torch.cat([given, states[:, length:].to(given.dtype)], dim=1)
            pooled = torch.where(keep, self.to_emb(text.z_t.to(self.null_state)), pooled)
        # One learned token stands in front: alone when there is no caption, hidden when there is one.
        null = self.null_state.expand(count, 1, -1).to(states.dtype)
        absent = ~real.any(dim=1, keepdim=True)
        return pooled, torch.cat([null, states], dim=1), torch.cat([absent, real], dim=1)

    def _clip_states_or_empty(self, text: Text | None, count: int, drop: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Nothing learned stands for no caption: the empty one is projected like any other."""
        if not self.empty_mask.any():
            told = "this decoder's null is CLIP's empty caption, which it was not given"
            raise ValueError(f"{told}: set_null(clip.encode_text(['']))")
        weight = self.to_emb.weight
        states, embed, mask = self.empty_text[None], self.empty_embed[None], self.empty_mask[None].expand(count, -1)
        if text is not None:
            assert drop is not None
            given = self._given(text)
            states, embed = (torch.where(drop.view(-1, *[1] * (x.ndim - 1)), e, x) for x, e in zip(given, (states, embed)))
            mask = torch.where(drop[:, None], mask, given[2])
        projected = self.to_emb(embed.to(weight.dtype)), self.to_states(states.to(weight.dtype))
        return projected[0].expand(count, -1), projected[1].expand(count, -1, -1), mask

    def _given(self, text: Text) -> tuple[Tensor, Tensor, Tensor]:
        """States, embedding and mask in float32, cut or padded to the context."""
        self._check(text)
        device, missing = self.empty_mask.device, self.config.context - text.token_states.shape[1]
        states = nn.functional.pad(text.token_states.to(device, torch.float32), (0, 0, 0, missing))
        return states, text.z_t.to(device, torch.float32), nn.functional.pad(text.mask.to(device), (0, missing))

    def _check(self, text: Text) -> None:
        widths = (text.token_states.shape[-1], text.z_t.shape[-1])
        if widths != (self.config.states_width, self.config.embed_dim):
            raise ValueError(
                f"captions come with states and embeddings of widths {widths}, the decoder reads "
                f"{(self.config.states_width, self.config.embed_dim)}: were they made by another CLIP?"
            )

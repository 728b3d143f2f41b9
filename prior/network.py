"""The prior's network: a causal transformer over  text | z_t | timestep | noised z_i | query  (unCLIP 2.2).

Nothing before the timestep depends on the timestep or the noised embedding.  So sampling runs text and z_t once per
caption (`encode`) and keeps their keys and values for every step and candidate; a step runs the last three tokens.
That is exact.  The timestep could be run ahead for all steps as well, but beside the other two it is free: a step of
few rows costs what reading the weights costs.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unclip.config import Config
from unclip.nn.cpu.linear import Linear
from unclip.nn.embeddings import TimestepEmbedding
from unclip.nn.transformer import Cache, Transformer, TransformerConfig
from unclip.types import Text


class PriorNetworkConfig(Config, frozen=True, kw_only=True):
    transformer: TransformerConfig
    embed_dim: int  # of CLIP's image and text embeddings
    text: Literal["tokens", "clip_states"] = "clip_states"  # own token embedding (Table 3), or CLIP's states (Karlo)
    context: int = 77  # text positions; captions may be shorter
    vocab: int = 49408  # "tokens"
    states_width: int | None = None  # "clip_states": width of CLIP's token states
    null: Literal["learned", "empty"] = "learned"  # a dropped caption: learned vectors, or CLIP's empty caption
    first_timestep: Literal[0, 1] = 1  # what the network sees for t = 1; public weights count from 0

    def __post_init__(self) -> None:
        if self.text == "clip_states" and self.states_width is None:
            raise ValueError("a prior over CLIP states needs states_width, the width of CLIP's text transformer")
        if min(self.embed_dim, self.context, self.vocab) < 1:
            raise ValueError(f"embed_dim, context and vocab are at least 1, not {self.embed_dim}, {self.context}, {self.vocab}")
        if self.transformer.width % 2:
            raise ValueError(f"the timestep's sinusoid needs an even width, not {self.transformer.width}")


class Prompt(NamedTuple):
    """Captions as the transformer's first tokens, positions included; cut after the longest caption."""

    text: Float[Tensor, "b l w"]
    embed: Float[Tensor, "b 1 w"]  # z_t
    mask: Bool[Tensor, "b l"]


class PriorNetwork(nn.Module):
    """(x_t, t, prompt or its cache) -> the clean embedding (b, embed_dim), in the units of x_t."""

    empty_text: Tensor  # CLIP's empty caption, when config.null is "empty"
    empty_embed: Tensor
    empty_mask: Tensor

    def __init__(self, config: PriorNetworkConfig):
        super().__init__()
        self.config = config
        width, dim = config.transformer.width, config.embed_dim
        if config.text == "tokens":
            self.text: nn.Embedding | Linear = nn.Embedding(config.vocab, width)
            nn.init.normal_(self.text.weight, std=0.02)
        else:
            assert config.states_width is not None
            self.text = Linear(config.states_width, width)
        self.text_embed = Linear(dim, width)
        self.time = TimestepEmbedding(width, width, first=config.first_timestep)
        self.image_embed = Linear(dim, width)
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.positions = nn.Parameter(0.01 * torch.randn(config.context + 4, width))
        self.transformer = Transformer(config.transformer)
        self.out = Linear(width, dim)
        if config.null == "learned":
            self.null_text = nn.Parameter(0.02 * torch.randn(width))  # stands alone in place of the caption
            self.null_embed = nn.Parameter(0.02 * torch.randn(width))
        else:
            shape = (config.context,) if config.text == "tokens" else (config.context, config.states_width or 0)
            self.register_buffer("empty_text", torch.zeros(shape, dtype=torch.int64 if config.text == "tokens" else None))
            self.register_buffer("empty_embed", torch.zeros(dim))
            self.register_buffer("empty_mask", torch.zeros(config.context, dtype=torch.bool))

    def prompt(self, text: Text, drop: Bool[Tensor, " b"] | None = None) -> Prompt:
        """Embed captions; blank ones, and those where `drop` is True, become the null."""
        raw, mask, embed = self._inputs(text)
        null = text.blank.to(mask.device) if drop is None else text.blank.to(mask.device) | drop.to(mask.device)
        length = max(self._null_length(), _used(mask.any(0)))
        absent = self.null(length)
        pad = max(0, length - mask.shape[1])
        given = self.text(raw[:, :length])
        given = nn.functional.pad(given, (0, 0, 0, pad)) + self.positions[:length]
        mask = nn.functional.pad(mask[:, :length], (0, pad))
        pooled = self.text_embed(embed)[:, None] + self.positions[self.config.context]
        return Prompt(
            torch.where(null[:, None, None], absent.text.to(given.dtype), given),
            torch.where(null[:, None, None], absent.embed.to(pooled.dtype), pooled),
            torch.where(null[:, None], absent.mask, mask),
        )

    def null(self, length: int) -> Prompt:
        """The prompt (one row) of no caption, with `length` text positions."""
        where, rest = self.positions[:length], self.positions[self.config.context]
        if self.config.null == "learned":
            mask = torch.arange(length, device=where.device) == 0
            return Prompt((self.null_text + where)[None], (self.null_embed + rest)[None, None], mask[None])
        if not self.empty_mask.any():
            raise ValueError(
                "this prior's null is CLIP's empty caption, which it was not given: set_null(clip.encode_text(['']))"
            )
        weight, empty = self.positions, self.empty_text[:length]
        given = self.text(empty if self.config.text == "tokens" else empty.to(weight.dtype))
        pooled = self.text_embed(self.empty_embed.to(weight.dtype))
        return Prompt((given + where)[None], (pooled + rest)[None, None], self.empty_mask[None, :length])

    @torch.no_grad()
    def set_null(self, text: Text) -> None:
        """Store CLIP's empty caption, one row, as the null (config.null "empty")."""
        if self.config.null != "empty" or len(text.mask) != 1:
            raise ValueError(f"set_null takes one empty caption, for null 'empty'; got {len(text.mask)} and {self.config.null!r}")
        raw, mask, embed = self._inputs(text)
        length = raw.shape[1]
        self.empty_text.zero_()[:length], self.empty_mask.zero_()[:length] = raw[0], mask[0]
        self.empty_embed.copy_(embed[0])

    def _null_length(self) -> int:
        return 1 if self.config.null == "learned" else _used(self.empty_mask)

    def _inputs(self, text: Text) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens or states, their mask and z_t, checked and moved here."""
        config, weight = self.config, self.positions
        raw = text.tokens if config.text == "tokens" else text.token_states
        if raw.shape[1] > config.context:
            raise ValueError(
                f"captions come with {raw.shape[1]} positions, this prior has {config.context}; is it another CLIP's?"
            )
        if config.text == "clip_states" and raw.shape[2] != config.states_width:
            raise ValueError(
                f"text states are {raw.shape[2]} wide, this prior reads {config.states_width}; is it another CLIP's?"
            )
        if config.text == "tokens" and int(raw.max()) >= config.vocab:
            raise ValueError(f"a caption has token {int(raw.max())}, this prior's vocabulary ends at {config.vocab - 1}")
        if text.z_t.shape[1] != config.embed_dim:
            raise ValueError(f"text embeddings have {text.z_t.shape[1]} dimensions, this prior reads {config.embed_dim}")
        raw = raw.to(weight.device) if config.text == "tokens" else raw.to(weight.device, weight.dtype)
        return raw, text.mask.to(weight.device), text.z_t.to(weight.device, weight.dtype)

    def encode(self, prompt: Prompt) -> Cache:
        """Keys and values of text and z_t: what every step and every candidate of a caption share."""
        return self.transformer(*self._prefix(prompt), causal=True)[1]

    def forward(self, x_t: Float[Tensor, "b d"], t: Int[Tensor, " b"], cond: Prompt | Cache) -> Float[Tensor, "b d"]:
        """The whole sequence for a prompt (training), only what is new for a cache (sampling).

        With a cache, b may be a multiple of its rows: consecutive rows of x_t are candidates for one caption.
        """
        tail = self._tail(x_t, t)
        if isinstance(cond, Cache):
            y, _ = self.transformer(tail, causal=True, past=[cond])
        else:
            x, mask = self._prefix(cond)
            seen = torch.ones(len(mask), 3, dtype=torch.bool, device=mask.device)
            y, _ = self.transformer(torch.cat([x, tail.to(x.dtype)], 1), torch.cat([mask, seen], 1), causal=True)
        return self.out(y[:, -1])

    def _prefix(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        mask = torch.cat([prompt.mask, torch.ones_like(prompt.mask[:, :1])], dim=1)
        return torch.cat([prompt.text, prompt.embed.to(prompt.text.dtype)], dim=1), mask

    def _tail(self, x_t: Tensor, t: Tensor) -> Tensor:
        noised = self.image_embed(x_t.to(self.image_embed.weight.dtype))
        tokens = [self.time(t).to(noised.dtype), noised, self.query.to(noised.dtype).expand_as(noised)]
        return torch.stack(tokens, dim=1) + self.positions[self.config.context + 1 :]


def _used(mask: Bool[Tensor, " l"]) -> int:
    """Positions up to the last real one, at least 1."""
    return int(mask.nonzero().max()) + 1 if mask.any() else 1

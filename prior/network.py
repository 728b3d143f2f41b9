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

from unclip.config import Config, Positions
from unclip.nn.cpu.linear import Linear
from unclip.nn.embeddings import TimestepEmbedding
from unclip.nn.text import TextConfig, TextInput, TextReader
from unclip.nn.transformer import Cache, Transformer, TransformerConfig
from unclip.types import Text


class PriorNetworkConfig(Config, frozen=True, kw_only=True):
    transformer: TransformerConfig
    embed_dim: int  # of CLIP's image and text embeddings
    text: Literal["tokens", "clip_states"] = "clip_states"  # own token embedding (Table 3), or CLIP's states (Karlo)
    context: Positions = 77  # text positions; captions may be shorter
    vocab: int = 49408  # "tokens"
    states_width: int | None = None  # "clip_states": width of CLIP's token states
    null: Literal["learned", "empty"] = "learned"  # a dropped caption: learned vectors, or CLIP's empty caption
    first_timestep: Literal[0, 1] = 1  # what the network sees for t = 1; public weights count from 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.reading  # refuses what cannot be read
        if self.transformer.width % 2:
            raise ValueError(f"the timestep's sinusoid needs an even width, not {self.transformer.width}")

    @property
    def reading(self) -> TextConfig:
        """What is read of a caption."""
        return TextConfig(
            kind=self.text,
            context=self.context,
            vocab=self.vocab,
            states_width=self.states_width,
            embed_dim=self.embed_dim,
            null=self.null,
        )


class Prompt(NamedTuple):
    """Captions as the transformer's first tokens, positions included; cut after the longest caption."""

    text: Float[Tensor, "b l w"]
    embed: Float[Tensor, "b 1 w"]  # z_t
    mask: Bool[Tensor, "b l"]


class PriorNetwork(nn.Module):
    """(x_t, t, prompt or its cache) -> the clean embedding (b, embed_dim), in the units of x_t."""

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
        self.reader = TextReader(config.reading)
        if config.null == "learned":
            self.null_text = nn.Parameter(0.02 * torch.randn(width))  # stands alone in place of the caption
            self.null_embed = nn.Parameter(0.02 * torch.randn(width))

    def prompt(self, text: Text, drop: Bool[Tensor, " b"] | None = None) -> Prompt:
        """Embed captions; blank ones, and those where `drop` is True, become the null."""
        inputs = self.reader(text, len(text.strings), self.positions, drop)
        null_length = 1 if self.config.null == "learned" else used(self.reader.empty_mask)
        length = max(null_length, used(inputs.mask.any(0)))
        embedded, absent, null = self._embed(inputs, length), self.null(length), inputs.null[:, None]  # (b, 1)
        return Prompt(
            torch.where(null[..., None], absent.text.to(embedded.text.dtype), embedded.text),
            torch.where(null[..., None], absent.embed.to(embedded.embed.dtype), embedded.embed),
            torch.where(null, absent.mask, embedded.mask),
        )

    def null(self, length: int) -> Prompt:
        """The prompt (one row) of no caption, with `length` text positions."""
        if self.config.null == "empty":
            return self._embed(self.reader(None, 1, self.positions), length)
        where, last = self.positions[:length], self.positions[self.config.context]
        mask = torch.arange(length, device=where.device) == 0
        return Prompt((self.null_text + where)[None], (self.null_embed + last)[None, None], mask[None])

    def set_null(self, text: Text) -> None:
        """Store CLIP's empty caption, one row, as the null (config.null "empty")."""
        self.reader.set_null(text)

    def _embed(self, inputs: TextInput, length: int) -> Prompt:
        """Captions cut or padded to `length` positions."""
        assert inputs.embed is not None
        missing = max(0, length - inputs.mask.shape[1])
        text = nn.functional.pad(self.text(inputs.raw[:, :length]), (0, 0, 0, missing)) + self.positions[:length]  # (b, l, w)
        embed = self.text_embed(inputs.embed)[:, None] + self.positions[self.config.context]  # (b, 1, w)
        return Prompt(text, embed, nn.functional.pad(inputs.mask[:, :length], (0, missing)))

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


def used(mask: Bool[Tensor, " l"]) -> int:
    """Positions up to the last real one, at least 1."""
    return int(mask.nonzero().max()) + 1 if mask.any() else 1

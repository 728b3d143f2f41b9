"""The AR prior's network: a causal transformer over  text | z_t | z_i . z_t | components of z_i  (unCLIP 2.2).

The caption enters as CLIP's token states or through a text transformer of the network's own, as in the paper (App. C).
Either way its tokens bring their positions along, and the latent decoder's own positions are those of z_t and of the
symbols: 1 + 320 of the 384 in Table 3, which does not tell how 256 text positions would fit in.

All components share one table of embeddings and one output matrix; a learned vector per position tells which component
is meant.  A symbol is a place in its component's range, so it means much the same in all of them; and tables of their own
would be 0.5B weights at the input and as many at the output at the paper's size, and twice the whole transformer at the
size of the emoji recipe.  What is a component's own, how often each symbol is met, is measured and added to the logits.

Where learning starts from matters more here than in a language model, since symbols have an order.  Both tables start as
sinusoids, so that neighbours are alike, and positions as large as symbols, because without knowing which component is
meant the tables are of no use.  (150 steps of 64 emoji, a smaller network, one seed: cosine of the most probable draw to
the true embedding 0.83; with tables and positions of the usual small random size below 0.1.)
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unclip.config import Config, Positions
from unclip.nn.cpu.linear import Linear
from unclip.nn.embeddings import sinusoid
from unclip.nn.text import TextConfig, TextReader
from unclip.nn.transformer import Cache, Transformer, TransformerConfig
from unclip.types import Text

from .network import Prompt, used


class ARNetworkConfig(Config, frozen=True, kw_only=True):
    transformer: TransformerConfig  # the latent decoder
    embed_dim: int  # of CLIP's image and text embeddings
    text: Literal["tokens", "clip_states"] = "clip_states"  # a text transformer of its own (Table 3), or CLIP's states
    context: Positions = 77  # text positions; captions may be shorter
    vocab: int = 49408  # "tokens"
    text_transformer: TransformerConfig | None = None  # "tokens"
    states_width: int | None = None  # "clip_states": width of CLIP's token states

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text == "tokens" and self.text_transformer is None:
            raise ValueError("an AR prior over tokens needs a text_transformer")
        if self.transformer.width % 2:
            raise ValueError(f"the symbols' sinusoids need an even width, not {self.transformer.width}")
        _ = self.reading  # refuses what cannot be read

    @property
    def reading(self) -> TextConfig:
        """What is read of a caption."""
        return TextConfig(
            kind=self.text, context=self.context, vocab=self.vocab, states_width=self.states_width, embed_dim=self.embed_dim
        )


class ARNetwork(nn.Module):
    """Symbols so far -> logits of the next, `length` symbols in all."""

    frequencies: Tensor

    def __init__(self, config: ARNetworkConfig, length: int, buckets: int):
        super().__init__()
        self.config, self.length, self.buckets = config, length, buckets
        width = config.transformer.width
        if config.text == "tokens":
            assert config.text_transformer is not None
            inner = config.text_transformer.width
            self.text_tokens = nn.Embedding(config.vocab, inner)
            nn.init.normal_(self.text_tokens.weight, std=0.02)
            self.text_positions = nn.Parameter(0.01 * torch.randn(config.context, inner))
            self.text_transformer = Transformer(config.text_transformer)
        else:
            assert config.states_width is not None
            inner = config.states_width
        self.reader = TextReader(config.reading)
        self.text = Linear(inner, width)
        self.text_embed = Linear(config.embed_dim, width)
        self.null_text = nn.Parameter(0.02 * torch.randn(width))  # stands alone in place of the caption
        self.null_embed = nn.Parameter(0.02 * torch.randn(width))
        self.symbols = nn.Embedding(buckets, width)
        self.positions = nn.Parameter(0.5 * torch.randn(length, width))  # of z_t and of all symbols but the last
        self.transformer = Transformer(config.transformer)
        self.out = Linear(width, buckets, bias=False)
        waves = 2**0.5 * sinusoid(torch.arange(buckets), width, max_period=max(buckets / 3, 2.0))  # the longest: twice the range
        with torch.no_grad():
            self.symbols.weight.copy_(0.5 * waves)
            self.out.weight.copy_(0.02 * waves)
        self.register_buffer("frequencies", torch.zeros(length, buckets))  # logarithms; zero = not measured

    @torch.no_grad()
    def set_frequencies(self, symbols: Int[Tensor, "n length"]) -> None:
        """Measure how often each symbol is met at each position; every meeting is shared with some neighbours."""
        counts = torch.zeros(self.length, self.buckets, device=symbols.device)
        counts.scatter_add_(1, symbols.T, torch.ones_like(symbols.T, dtype=counts.dtype))
        places = torch.arange(self.buckets, device=symbols.device)
        distance = (places[:, None] - places) / (self.buckets / 64)  # a 64th of the range, about a tenth of its data's std
        smooth = counts @ (-(distance**2) / 2).softmax(-1) + 0.1  # none is impossible
        self.frequencies.copy_((smooth / smooth.sum(1, keepdim=True)).log())

    def prompt(self, text: Text, drop: Bool[Tensor, " b"] | None = None) -> Prompt:
        """Embed captions; blank ones, and those where `drop` is True, become the null."""
        inputs = self.reader(text, len(text.strings), self.null_text, drop)
        assert inputs.embed is not None
        length = used(inputs.mask.any(0))
        raw, mask = inputs.raw[:, :length], inputs.mask[:, :length]
        if self.config.text == "tokens":
            # Bidirectional: a caption is given as a whole.  (The paper does not say.)
            raw, _ = self.text_transformer(self.text_tokens(raw) + self.text_positions[:length], mask)  # (b, length, inner)
        states, pooled, absent = self.text(raw), self.text_embed(inputs.embed)[:, None], self.null(length)  # (b, l, w), (b, 1, w)
        null = inputs.null[:, None]  # (b, 1)
        return Prompt(
            torch.where(null[..., None], absent.text.to(states.dtype), states),
            torch.where(null[..., None], absent.embed.to(pooled.dtype), pooled),
            torch.where(null, absent.mask, mask),
        )

    def null(self, length: int) -> Prompt:
        """The prompt (one row) of no caption, with `length` text positions."""
        mask = torch.arange(length, device=self.null_text.device) == 0
        return Prompt(self.null_text.expand(1, length, -1), self.null_embed[None, None], mask[None])

    def forward(
        self, symbols: Int[Tensor, "b m"], cond: Prompt | Cache, drawn: Cache | None = None
    ) -> tuple[Float[Tensor, "b n v"], Cache]:
        """Logits of what follows, and all that was run, as a cache.

        A prompt is run before the symbols, which are the first m: m + 1 logits, those of the first symbol among them.
        After a cache of the prompt, of whose rows b may be a multiple, and of the symbols `drawn` already: m logits.
        """
        if isinstance(cond, Prompt):
            first = 0
            prefix = torch.cat([cond.text, (cond.embed + self.positions[0]).to(cond.text.dtype)], dim=1)
            x = torch.cat([prefix, self._embed(symbols, 1).to(prefix.dtype)], dim=1)
            mask = nn.functional.pad(cond.mask, (0, 1 + symbols.shape[1]), value=True)
            y, cache = self.transformer(x, mask, causal=True)
            y = y[:, cond.text.shape[1] :]
        else:
            first = 1 + (drawn.layers[0].k.shape[2] if drawn else 0)
            past = [cond, drawn] if drawn else [cond]
            y, cache = self.transformer(self._embed(symbols, first), causal=True, past=past)
            cache = drawn.extend(cache) if drawn else cache
        return self.out(y) + self.frequencies[first : first + y.shape[1]], cache

    def _embed(self, symbols: Tensor, first: int) -> Tensor:
        return self.symbols(symbols.to(self.positions.device)) + self.positions[first : first + symbols.shape[1]]

"""Text conditioning: captions as tokens or CLIP states, z_t, and the null of no caption.

Priors, decoders and upsamplers all read through `TextReader`; decoders and upsamplers that bring a text transformer of their
own (GLIDE) have a `TextTransformer` behind it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unclip.config import Config, Positions
from unclip.types import Text

from .byte_pairs import BytePairs, vocab_of
from .transformer import Transformer, TransformerConfig


class TextConfig(Config, frozen=True, kw_only=True):
    """What of a caption is read."""

    kind: Literal["tokens", "clip_states"] = "tokens"
    context: Positions = 77  # positions
    vocab: int = 49408  # "tokens"
    states_width: int | None = None  # "clip_states": width of CLIP's token states
    embed_dim: int | None = None  # of CLIP's text embedding; None = it is not read
    null: Literal["learned", "empty"] = "learned"  # no caption is what the network has learned, or CLIP's empty caption

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "clip_states" and self.states_width is None:
            raise ValueError("captions as CLIP states need states_width, the width of CLIP's text transformer")
        sizes = {"context": self.context, "vocab": self.vocab, "states_width": self.states_width, "embed_dim": self.embed_dim}
        wrong = {name: size for name, size in sizes.items() if size is not None and size < 1}
        if wrong:
            raise ValueError(f"{', '.join(f'{name} is {size}' for name, size in wrong.items())}; it must be at least 1")


class Caption(TextConfig, frozen=True, kw_only=True):
    """A caption: tokens through a transformer of one's own (GLIDE 2.1), or CLIP's token states and text embedding (Karlo)."""

    context: Positions = 256  # positions; longer captions are cut, their end token with the rest: give it what CLIP has
    transformer: TransformerConfig | None = None  # "tokens"
    states: Literal["projected", "direct"] = "projected"  # the UNet's attention reads a projection of the states, or themselves
    # "tokens": as they come, or read from the captions with CLIP's vocabulary, or with GPT-2's, stored here (GLIDE).
    tokenizer: Literal["given", "clip", "gpt2"] = "given"
    drop: float = 0.5  # probability in training

    def __post_init__(self) -> None:
        if self.kind == "tokens" and self.transformer is None:
            raise ValueError("a text condition over tokens needs a transformer")
        if self.kind == "clip_states" and (self.states_width is None or self.embed_dim is None):
            raise ValueError("a text condition over CLIP states needs states_width and embed_dim, CLIP's text widths")
        if self.kind == "tokens" and self.null == "empty":
            raise ValueError("null 'empty' is CLIP's empty caption; a text condition over tokens has learned padding instead")
        if self.kind == "clip_states" and self.tokenizer != "given":
            raise ValueError(f"tokenizer is {self.tokenizer!r}, but CLIP's states come with the captions; leave it out")
        super().__post_init__()
        if self.tokenizer == "gpt2" and self.vocab < vocab_of(1):
            raise ValueError(f"vocab is {self.vocab}; byte pairs are 256 bytes, at least one merge, and one for padding")
        if not 0 <= self.drop <= 1:
            raise ValueError(f"text.drop is a probability, not {self.drop}")

    @property
    def width(self) -> int:
        """Of the states, before any projection."""
        width = self.transformer.width if self.transformer is not None else self.states_width
        assert width is not None
        return width


class TextInput(NamedTuple):
    """Captions on the network's device."""

    raw: Tensor  # tokens (b, l), or states (b, l, w) in the weights' type
    embed: Float[Tensor, "b d"] | None  # in the weights' type
    mask: Bool[Tensor, "b l"]  # True = real token
    null: Bool[Tensor, " b"]  # True where there is no caption: what the network has learned belongs there ("learned")


class TextReader(nn.Module):
    """`Text` -> `TextInput`: checked, moved, brought to a length.

    fixed: every caption takes `context` positions, longer ones are cut, their end token with the rest; else captions keep
    the length they come in, and longer ones are refused.  null "empty": rows without a caption hold CLIP's empty one, which
    `set_null` has stored.
    """

    empty_raw: Tensor
    empty_embed: Tensor
    empty_mask: Tensor

    def __init__(self, config: TextConfig, fixed: bool = False):
        super().__init__()
        self.config, self.fixed = config, fixed
        if config.null == "empty":
            tokens = config.kind == "tokens"
            shape = (config.context,) if tokens else (config.context, config.states_width or 1)
            self.register_buffer("empty_raw", torch.zeros(shape, dtype=torch.int64 if tokens else torch.float32))
            self.register_buffer("empty_embed", torch.zeros(config.embed_dim or 0))
            self.register_buffer("empty_mask", torch.zeros(config.context, dtype=torch.bool))

    def forward(self, text: Text | None, count: int, like: Tensor, drop: Bool[Tensor, " b"] | None = None) -> TextInput:
        """`count` captions; None, blank ones and those where `drop` is True are null.  like: gives device and type."""
        if text is None:
            raw, embed, mask = self._nothing(count)
            null = torch.ones(count, dtype=torch.bool)
        else:
            if len(text.strings) != count:
                raise ValueError(f"{count} pictures but {len(text.strings)} captions: give one caption for each picture")
            raw, embed, mask = self._checked(text)
            null = text.blank if drop is None else text.blank | drop.to(text.mask.device)
        raw, mask, null = raw.to(like.device), mask.to(like.device), null.to(like.device)
        embed = None if embed is None else embed.to(like.device)
        if self.config.null == "empty":
            self._check_null()
            raw, mask = self._padded(raw, mask)  # the empty caption has all `context` positions
            rows = null.view(-1, *[1] * (raw.ndim - 1))  # (b, 1) for tokens, (b, 1, 1) for states
            raw = torch.where(rows, self.empty_raw.to(raw.dtype), raw)
            mask = torch.where(null[:, None], self.empty_mask, mask)
            embed = None if embed is None else torch.where(null[:, None], self.empty_embed.to(embed.dtype), embed)
        raw = raw if self.config.kind == "tokens" else raw.to(like.dtype)
        return TextInput(raw, None if embed is None else embed.to(like.dtype), mask, null)

    @torch.no_grad()
    def set_null(self, text: Text) -> None:
        """Store CLIP's empty caption, one row, as the null (config.null "empty")."""
        if self.config.null != "empty" or len(text.strings) != 1:
            actual = f"got {len(text.strings)} and {self.config.null!r}"
            raise ValueError(f"set_null takes one empty caption, for null 'empty'; {actual}")
        raw, embed, mask = self._checked(text)
        raw, mask = self._padded(raw, mask)
        self.empty_raw.copy_(raw[0])
        self.empty_mask.copy_(mask[0])
        if embed is not None:
            self.empty_embed.copy_(embed[0])

    def _nothing(self, count: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """Rows without a token."""
        config, length = self.config, self.config.context if self.fixed else 1
        tokens = config.kind == "tokens"
        raw = torch.zeros((count, length) if tokens else (count, length, config.states_width or 1))
        embed = None if config.embed_dim is None else torch.zeros(count, config.embed_dim)
        return raw.long() if tokens else raw, embed, torch.zeros(count, length, dtype=torch.bool)

    def _checked(self, text: Text) -> tuple[Tensor, Tensor | None, Tensor]:
        """Tokens or states, z_t and mask, checked, at the length that is read."""
        config = self.config
        raw = text.tokens if config.kind == "tokens" else text.token_states
        embed = None if config.embed_dim is None else text.z_t
        wrong = []
        if config.kind == "clip_states" and raw.shape[2] != config.states_width:
            wrong.append(f"text states are {raw.shape[2]} wide, {config.states_width} is what is read here")
        if embed is not None and embed.shape[1] != config.embed_dim:
            wrong.append(f"text embeddings have {embed.shape[1]} dimensions, {config.embed_dim} is what is read here")
        if not self.fixed and raw.shape[1] > config.context:
            wrong.append(f"captions come with {raw.shape[1]} positions, {config.context} are read here")
        if wrong:
            raise ValueError(f"{'; '.join(wrong)}: were they made by another CLIP?")
        if config.kind == "tokens":
            if (last := int(raw.max())) >= config.vocab:
                raise ValueError(f"a caption has token {last}, the vocabulary ends at {config.vocab - 1}")
            if not text.mask.any() and not text.blank.all():
                raise ValueError("these captions have no tokens: encode them with the CLIP whose tokens are read here")
        raw, mask = raw[:, : config.context], text.mask[:, : config.context]
        if self.fixed:
            raw, mask = self._padded(raw, mask)
        return raw, embed, mask

    def _padded(self, raw: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """With `context` positions: (b, l[, w]) and (b, l)."""
        missing = self.config.context - raw.shape[1]
        if not missing:
            return raw, mask
        return nn.functional.pad(raw, (0, 0) * (raw.ndim - 2) + (0, missing)), nn.functional.pad(mask, (0, missing))

    def _check_null(self) -> None:
        if not self.empty_mask.any():
            problem = "this network's null is CLIP's empty caption, which it was not given"
            raise ValueError(f"{problem}: set_null(clip.encode_text(['']))")


class TextTransformer(nn.Module):
    """GLIDE's text encoder (2.1): a transformer over tokens, not causal, in which padding positions hold learned vectors.

    Padding is attended to like tokens are, so a caption that is dropped is all padding, and needs no other null.
    """

    def __init__(self, config: TransformerConfig, vocab: int, context: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab, config.width)
        self.positions = nn.Parameter(0.01 * torch.randn(context, config.width))
        self.padding = nn.Parameter(0.01 * torch.randn(context, config.width))
        self.transformer = Transformer(config)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l w"]:
        """States after the final norm, l = context; the last one stands for the whole caption."""
        x = torch.where(mask[..., None], self.embedding(tokens) + self.positions, self.padding)  # (b, l, w)
        return self.transformer(x)[0]


class TextEncoder(nn.Module):
    """A caption -> a vector (b, emb) for the timestep embedding, context tokens (b, l, width) and their mask (b, l).

    "tokens": padding is attended to and the state at the last position is the pooled one (GLIDE 2.1).  "clip_states": states
    after CLIP's final norm, projected and normed; padding is masked (Karlo).  No caption: all positions padding, respectively
    one learned token or CLIP's empty caption.
    """

    def __init__(self, config: Caption, width: int, emb: int):
        super().__init__()
        self.config = config
        self.reader = TextReader(config, fixed=True)
        self.byte_pairs = BytePairs(config.vocab, config.context) if config.tokenizer == "gpt2" else None
        projected = config.states == "projected"
        if config.kind == "tokens":
            assert config.transformer is not None
            self.encoder = TextTransformer(config.transformer, config.vocab, config.context)
            self.to_states: nn.Module = nn.Linear(config.width, width) if projected else nn.Identity()
            self.to_emb = nn.Linear(config.width, emb)
        else:
            assert config.embed_dim is not None
            norm = nn.Sequential(nn.Linear(config.width, width), nn.LayerNorm(width))
            self.to_states = norm if projected else nn.Identity()
            self.to_emb = nn.Linear(config.embed_dim, emb)
            if config.null == "learned":
                self.null_state = nn.Parameter(torch.zeros(width))
                self.null_pooled = nn.Parameter(torch.zeros(emb))

    def forward(
        self, text: Text | None, count: int, drop: Bool[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b l w"], Bool[Tensor, "b l"]]:
        if self.byte_pairs is not None and text is not None:
            tokens, mask = self.byte_pairs(text.strings)
            text = text._replace(tokens=tokens, mask=mask)
        inputs = self.reader(text, count, self.to_emb.weight, drop)
        if self.config.kind == "tokens":
            states = self.encoder(inputs.raw, inputs.mask & ~inputs.null[:, None])  # (b, context, inner)
            return self.to_emb(states[:, -1]), self.to_states(states), torch.ones_like(inputs.mask)
        assert inputs.embed is not None
        pooled, states = self.to_emb(inputs.embed), self.to_states(inputs.raw)  # (b, emb), (b, context, width)
        if self.config.null == "empty":
            return pooled, states, inputs.mask
        # One learned token stands in front: alone when there is no caption, hidden when there is one.
        mask = inputs.mask & ~inputs.null[:, None]  # (b, context)
        pooled = torch.where(inputs.null[:, None], self.null_pooled.to(pooled.dtype), pooled)
        null = self.null_state.to(states.dtype).expand(count, 1, -1)  # (b, 1, width)
        absent = ~mask.any(dim=1, keepdim=True)  # (b, 1)
        return pooled, torch.cat([null, states], dim=1), torch.cat([absent, mask], dim=1)  # l = 1 + context

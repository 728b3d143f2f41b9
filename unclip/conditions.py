"""What decoders and upsamplers can be conditioned on: a config and a module for each field of `Cond`.

A decoder conditioned on a label is ADM, on a caption GLIDE, on an embedding of CLIP unCLIP.  Each condition adds something to
the timestep embedding, or tokens that the UNet's attention sees beside its pixels, or channels beside the noisy picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from unclip.nn.text import Caption, TextEncoder

from .config import Config
from .randomness import Noise
from .types import Cond, rows_of

Drops = Mapping[str, Bool[Tensor, " b"]]  # field of Cond -> True where the condition becomes its null


class ImageEmbedding(Config, frozen=True, kw_only=True):
    """A CLIP image embedding: extra tokens, and an addition to the timestep embedding (unCLIP 2.1)."""

    embed_dim: int
    tokens: int = 4
    drop: float = 0.1  # probability in training
    scale: Literal["unit", "raw"] = "unit"  # what is read: the direction at unit variance per dimension, or CLIP's own numbers
    norm: bool = False  # LayerNorm behind both projections (Kandinsky 2.2)
    null: Literal["learned", "given"] = "learned"  # "given": an embedding to be set, as that of an empty picture (Kandinsky 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_size("image_embed", embed_dim=self.embed_dim, tokens=self.tokens)
        _check_drop("image_embed", self.drop)


class Label(Config, frozen=True, kw_only=True):
    """One of a number of classes: an addition to the timestep embedding (ADM 4)."""

    classes: int
    names: tuple[str, ...] = ()  # of the classes, where they have some
    drop: float = 0.1  # probability in training

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_size("label", classes=self.classes)
        _check_drop("label", self.drop)
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"label has {self.classes} classes but {len(self.names)} names; give one each, or none")
        if len(set(self.names)) < len(self.names):
            raise ValueError("label: two classes have the same name")


class Known(Config, frozen=True, kw_only=True):
    """The picture outside a hole, and where it is known: channels beside the noisy picture (GLIDE 2.2)."""

    drop: float = 0.0  # probability in training that nothing is known

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_drop("known", self.drop)


class Conditions(Config, frozen=True, kw_only=True):
    """What a network is conditioned on; None = not on that."""

    image_embed: ImageEmbedding | None = None
    text: Caption | None = None
    label: Label | None = None
    known: Known | None = None
    width: int | None = None  # of the tokens that attention sees; None = of the text's states, which it reads directly

    def __post_init__(self) -> None:
        super().__post_init__()
        direct = self.text is not None and self.text.states == "direct"
        if self.width is not None and self.width < 1:
            raise ValueError(f"width is {self.width}; the tokens that attention sees are at least 1 wide")
        if self.width is not None and not (self.image_embed or self.text):
            raise ValueError(f"width is {self.width}, but neither an embedding nor a text gives tokens; leave it out")
        if direct and self.text is not None and self.width not in (None, self.text.width):
            raise ValueError(
                f"width is {self.width}, but text states are read directly and are {self.text.width} wide: leave width out, "
                "or let states be 'projected'"
            )
        if self.width is None and not direct and (self.image_embed or self.text):
            raise ValueError("width is missing: how wide the tokens are to which embeddings and captions are projected")

    @property
    def takes(self) -> tuple[str, ...]:
        """The fields of `Cond` that the network is built for."""
        return tuple(name for name in Cond._fields if getattr(self, name) is not None)

    def drops(self, noise: Noise, device: torch.device) -> Drops:
        """Which conditions a training step drops, each independently of the others; one noise stream per picture."""
        if not self.takes:
            return {}
        draws = noise.uniform((len(Cond._fields),)).to(device)  # (b, 4): a field's draw does not depend on the others built for
        return {name: draws[:, Cond._fields.index(name)] < getattr(self, name).drop for name in self.takes}

    @property
    def context_width(self) -> int | None:
        """Width of the tokens; None = there are none."""
        if self.text is not None and self.text.states == "direct":
            return self.text.width
        return self.width

    @property
    def channels(self) -> int:
        """Channels beside the noisy picture's: the known picture and where it is known."""
        return 0 if self.known is None else 4


class Share(NamedTuple):
    """What one condition adds to the network; each field may be None."""

    emb: Float[Tensor, "b e"] | None = None  # to the timestep embedding
    tokens: Float[Tensor, "b l w"] | None = None
    mask: Bool[Tensor, "b l"] | None = None  # of the tokens, True = real
    channels: Float[Tensor, "b c h w"] | None = None

    def join(self, other: Share) -> Share:
        """Both: additions are summed, tokens and channels follow each other."""

        def joined(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            if a is None or b is None:
                return b if a is None else a
            return torch.cat([a, b.to(a.dtype)], dim=1)

        emb = self.emb if other.emb is None else other.emb if self.emb is None else self.emb + other.emb
        return Share(emb, *(joined(a, b) for a, b in zip(self[1:], other[1:])))


class ConditionEncoder(nn.Module):
    """`Cond` -> `Share`: what is absent or dropped becomes its null.

    emb: width of the timestep embedding.  `what` the network is, "decoder" or "upsampler", for messages.
    """

    def __init__(self, config: Conditions, emb: int, what: str):
        super().__init__()
        self.config, self.what = config, what
        width = config.context_width or 0
        self.image_embed = None if config.image_embed is None else ImageEmbeddingCondition(config.image_embed, width, emb)
        self.text = None if config.text is None else TextEncoder(config.text, width, emb)
        self.label = None if config.label is None else LabelCondition(config.label, emb)
        self.known = None if config.known is None else KnownCondition()

    def forward(self, cond: Cond, count: int, size: tuple[int, int], drops: Drops | None = None) -> Share:
        """Conditions of `count` pictures of `size` (h, w)."""
        self.check(cond, count)
        drops = drops or {}
        share = Share()
        if self.image_embed is not None:
            share = share.join(self.image_embed(cond.image_embed, count, drops.get("image_embed")))
        if self.text is not None:
            share = share.join(Share(*self.text(cond.text, count, drops.get("text"))))
        if self.label is not None:
            share = share.join(self.label(cond.label, count, drops.get("label")))
        if self.known is not None:
            share = share.join(self.known(cond.known, count, size, drops.get("known")))
        return share

    def check(self, cond: Cond, count: int) -> None:
        """ValueError for a condition that the network was not built for, or of another shape."""
        takes = self.config.takes
        rows_of(cond)
        for name in cond._fields:
            if getattr(cond, name) is not None and name not in takes:
                known = f"it takes {', '.join(takes)}" if takes else "it takes none"
                raise ValueError(f"this {self.what} was not built for the condition {name!r}; {known}")
        wanted, embed = self.config.image_embed, cond.image_embed
        if embed is not None and wanted is not None:
            if embed.ndim != 2 or embed.shape[1] != wanted.embed_dim:
                raise ValueError(
                    f"the {self.what} expects image embeddings of shape ({count}, {wanted.embed_dim}), got {tuple(embed.shape)}: "
                    "were they made by another CLIP?"
                )
            if len(embed) != count:
                raise ValueError(f"{count} pictures but {len(embed)} image embeddings: give one embedding for each picture")


class ImageEmbeddingCondition(nn.Module):
    """unCLIP 2.1: the embedding as extra context tokens and as an addition to the timestep embedding."""

    null: Tensor

    def __init__(self, config: ImageEmbedding, width: int, emb: int):
        super().__init__()
        self.config = config
        self.to_emb = nn.Linear(config.embed_dim, emb)
        self.to_tokens = nn.Linear(config.embed_dim, config.tokens * width)
        self.norm_emb = nn.LayerNorm(emb) if config.norm else nn.Identity()
        self.norm_tokens = nn.LayerNorm(width) if config.norm else nn.Identity()
        if config.null == "learned":
            self.null = nn.Parameter(torch.zeros(config.embed_dim))
        else:
            self.register_buffer("null", torch.full((config.embed_dim,), float("nan")))

    @torch.no_grad()
    def set_null(self, embed: Float[Tensor, "1 d"]) -> None:
        """Store the raw embedding that stands for none (null "given")."""
        if self.config.null != "given" or embed.shape != (1, self.config.embed_dim):
            problem = f"null is {self.config.null!r}, the embedding's shape {tuple(embed.shape)}"
            raise ValueError(f"set_null takes one embedding (1, {self.config.embed_dim}), for null 'given'; {problem}")
        self.null.copy_(embed[0])

    def forward(self, embed: Tensor | None, count: int, drop: Tensor | None = None) -> Share:
        null = self.null if self.config.null == "learned" else self._scaled(self.null)
        if self.config.null == "given" and not torch.isfinite(self.null).all():
            raise ValueError("this network's null is an embedding that it was not given: set_null_image(embedding)")
        image = null.to(self.to_emb.weight.dtype).expand(count, -1)  # (b, d)
        if embed is not None:
            scaled = self._scaled(embed.to(image.device)).to(image.dtype)
            image = scaled if drop is None else torch.where(drop[:, None], image, scaled)  # (b, d)
        tokens = self.to_tokens(image).unflatten(-1, (self.config.tokens, -1))  # (b, tokens, width)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Share(self.norm_emb(self.to_emb(image)), self.norm_tokens(tokens), mask)

    def _scaled(self, embed: Tensor) -> Tensor:
        embed = embed.float()
        return normalize(embed, dim=-1) * self.config.embed_dim**0.5 if self.config.scale == "unit" else embed


class LabelCondition(nn.Module):
    """A learned vector per class, and one for no class where labels are dropped in training."""

    def __init__(self, config: Label, emb: int):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.classes, emb)
        self.null = nn.Parameter(torch.zeros(emb)) if config.drop else None
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, label: Tensor | None, count: int, drop: Tensor | None = None) -> Share:
        null = None if self.null is None else self.null.expand(count, -1)  # (b, emb)
        if label is None:
            if null is None:
                raise ValueError("labels that were never dropped (drop 0) have no null: give labels, and guidance 1")
            return Share(null)
        if label.shape != (count,) or label.is_floating_point():
            raise ValueError(f"{count} pictures need as many whole numbers as labels; got {label.dtype} {tuple(label.shape)}")
        if int(label.min()) < 0 or int(label.max()) >= self.config.classes:
            wrong = sorted({int(i) for i in label if not 0 <= int(i) < self.config.classes})
            raise ValueError(f"labels {wrong} were given; the classes are 0 to {self.config.classes - 1}")
        emb = self.embedding(label.to(self.embedding.weight.device))  # (b, emb)
        return Share(emb if drop is None or null is None else torch.where(drop[:, None], null, emb))


class KnownCondition(nn.Module):
    """GLIDE 2.2: the picture where it is known, zero elsewhere, and the mask, as four channels."""

    def forward(
        self,
        known: tuple[Float[Tensor, "b 3 h w"], Bool[Tensor, "b 1 h w"]] | None,
        count: int,
        size: tuple[int, int],
        drop: Tensor | None = None,
    ) -> Share:
        if known is None:
            return Share(channels=torch.zeros(count, 4, *size))
        images, keep = known
        if images.shape != (count, 3, *size) or keep.shape != (count, 1, *size):
            raise ValueError(
                f"known pictures and where they are kept must have shapes ({count}, 3, {size[0]}, {size[1]}) and ({count}, 1, "
                f"{size[0]}, {size[1]}); got {tuple(images.shape)} and {tuple(keep.shape)}"
            )
        seen = keep.to(images.dtype)
        if drop is not None:
            seen = seen * ~drop.view(-1, 1, 1, 1).to(seen.device)  # (b, 1, h, w)
        return Share(channels=torch.cat([images * seen, seen], dim=1))  # (b, 4, h, w)


def _check_size(name: str, **sizes: int) -> None:
    wrong = [f"{key} is {size}" for key, size in sizes.items() if size < 1]
    if wrong:
        raise ValueError(f"{name}: {', '.join(wrong)}; it must be at least 1")


def _check_drop(name: str, drop: float) -> None:
    if not 0 <= drop <= 1:
        raise ValueError(f"{name}.drop is a probability, not {drop}")

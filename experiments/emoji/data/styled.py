"""Emoji in four styles as training data: pictures, tiers, captions as people say them.

python -m experiments.emoji.data styles [--sizes 64 256]        # fetch, check and render, one minute
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from experiments.emoji.data import drawings, motifs, packages, source, words
from experiments.emoji.data.colours import colours
from experiments.emoji.data.emoji_data import shares, to_images
from experiments.emoji.data.pictures import Pictures
from experiments.emoji.data.sayings import Said, odds, sayings, tone_of
from experiments.emoji.data.spoken import plain, untrained
from unclip.data.embeddings import Embeddings
from unclip.data.spec import DataSpec
from unclip.randomness import Noise
from unclip.types import Batch

Split = Literal["train", "tone", "style", "motif", "held_out", "all"]
COLOUR_SIZE = 64  # of the pictures whose colours captions tell


class StyledEmoji:
    """Captioned drawings of emoji in four styles on white, (3, size, size) in [-1, 1].  Keys are "noto-1f600".

    split: "train", one of the three tiers that are held out ("tone", "style", "motif"), all three of them, or everything.
    Without noise a caption is the name and the style ("grinning face, noto style"), with noise it is one of `sayings`.  The other
    settings are those of `EmojiData`; `embeddings` are joined to the pictures alone, the captions being others each time.
    """

    def __init__(
        self,
        split: Split = "train",
        size: int | None = 64,
        *,
        embeddings: Embeddings | str | Path | None = None,
        shift: int = 0,
        zoom: float = 0.0,
        balance: float = 0.0,
        folder: str | Path | None = None,
    ):
        if split not in get_args(Split):
            raise ValueError(f"the split is {split!r}; it must be one of {', '.join(get_args(Split))}")
        if not 0 <= shift < (size or 1) or not 0 <= zoom < 1:
            raise ValueError(f"shift={shift}, zoom={zoom}; shift lies in 0..{(size or 1) - 1} pixels and zoom in [0, 1)")
        if not 0 <= balance <= 1:
            raise ValueError(f"balance={balance}; it lies in 0 (every drawing alike) .. 1 (every motif alike)")
        every = motifs.pictures()
        wanted = {"all": motifs.TIERS, "held_out": motifs.HELD_OUT}.get(split, (split,))
        self._rows = [i for i, one in enumerate(every) if one.tier in wanted]
        self.pictures = [every[i] for i in self._rows]
        self.split, self.size, self.shift, self.zoom = split, size, shift, zoom
        self.keys = [one.key for one in self.pictures]
        self.captions = [f"{one.row.name}, {one.style} style" for one in self.pictures]
        self.weights = shares([one.motif for one in self.pictures], balance) if balance else None
        self._folder = Path(folder) if folder else cache_folder()
        self._pixels = rendered(self._folder, size) if size is not None else None
        self._said: list[Said] | None = None
        if isinstance(embeddings, (str, Path)):
            embeddings = Embeddings.load(embeddings)
        self.embeddings = embeddings.select(self.keys) if embeddings is not None else None

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        """The samples `indices`; noise None = unmoved pictures under their plain names."""
        images = None
        if self._pixels is not None:
            images = to_images(self._pixels[[self._rows[i] for i in indices]], noise, self.shift, self.zoom)
        batch = Batch(keys=[self.keys[i] for i in indices], images=images, captions=[self.captions[i] for i in indices])
        if self.embeddings is not None:
            batch = self.embeddings.join(batch)
        if noise is None:
            return batch
        said = sayings([self.said[i] for i in indices], noise.at("caption"))
        captions = [self.captions[i] if plain(text) in untrained() else text for i, text in zip(indices, said)]
        return batch._replace(captions=captions, text=None)

    @property
    def said(self) -> list[Said]:
        """What captions may say of each sample."""
        if self._said is None:
            every = _said(self._folder)
            self._said = [every[i] for i in self._rows]
        return self._said


class StyledEmojiConfig(DataSpec, frozen=True, kw_only=True):
    """`StyledEmoji` as a value, for recipes.  Pictures are those of the cache."""

    split: Split = "train"
    embeddings: bool = False  # with a CLIP's answers to the pictures, which `python -m experiments.emoji.data embed` has stored
    shift: int = 0
    zoom: float = 0.0
    balance: float = 0.0

    @property
    def embedded(self) -> bool:
        return self.embeddings

    def open(self, classes: Sequence[str] | None = None) -> StyledEmoji:
        path = embeddings_path() if self.embeddings else None
        return StyledEmoji(self.split, self.size, embeddings=path, shift=self.shift, zoom=self.zoom, balance=self.balance)


def cache_folder() -> Path:
    return source.cache_folder() / "styles"


def embeddings_path() -> Path:
    """Where a trained CLIP's answers for all drawings are kept."""
    return cache_folder() / "embeddings.safetensors"


def npm_folder() -> Path:
    return source.cache_folder() / "npm"


def rendered(folder: Path, size: int) -> Pictures:
    """All drawings in the order of `motifs.pictures()`, rendered into `folder` where they are not yet."""
    return Pictures(folder, [one.key for one in motifs.pictures()], size, svgs, _digest())


def rendered_path(size: int) -> Path:
    """Where `rendered` has them, or would put them."""
    return Pictures.place(cache_folder(), [one.key for one in motifs.pictures()], size, _digest())


def _digest() -> str:
    return hashlib.sha256("".join(package.sha512 for package in drawings.PACKAGES.values()).encode()).hexdigest()


def svgs() -> Mapping[str, str]:
    """Every drawing by its key ("noto-1f600"), from the tarballs, which npm brings where they are missing."""
    icons = {row.icon: row.key for row in motifs.read_table() if row.icon}
    found = {}
    for style, package in drawings.PACKAGES.items():
        drawn = drawings.read(style, packages.fetch(package, npm_folder()), icons)
        found |= {f"{style}-{key}": svg for key, svg in drawn.items()}
    return found


@functools.lru_cache(maxsize=2)
def _said(folder: Path) -> tuple[Said, ...]:
    """In the order of `motifs.pictures()`."""
    every = motifs.pictures()
    known = words.cached(folder, npm_folder())
    rarity = {language: words.rarity(of) for language, of in known.items()}
    shades = colours(rendered(folder, COLOUR_SIZE)[range(len(every))])
    made: dict[str, tuple] = {}
    for row in {one.row.key: one.row for one in every}.values():
        own = {language: of[row.key] for language, of in known.items()}
        plain = {language: of[words.untoned(row.key, of)] for language, of in known.items()}
        made[row.key] = (
            own,
            {language: odds(word.keywords, rarity[language]) for language, word in own.items()},
            tone_of(row.key, own, plain),
        )
    return tuple(
        Said(made[one.row.key][0], made[one.row.key][1], shade, one.style, made[one.row.key][2])
        for one, shade in zip(every, shades)
    )

"""The emoji of the first generation as training data: Twemoji under their CLDR names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, pad

from experiments.emoji.data import source
from experiments.emoji.data.paraphrase import paraphrases
from experiments.emoji.data.pictures import Pictures
from experiments.emoji.evaluation.siblings import motif
from unclip.data.embeddings import Embeddings
from unclip.data.spec import DataSpec
from unclip.randomness import Noise
from unclip.types import Batch


class EmojiData:
    """Captioned emoji pictures on white, (3, size, size) in [-1, 1].

    `shift` (pixels) and `zoom` (largest change of scale, 0.1 = 0.9 to 1.1) move each picture by its own noise stream;
    `embeddings`, written by `unclip.data.embeddings.precompute`, stay those of the unmoved picture.  `balance` evens out motifs,
    of which some are there in ninety people and most but once: an emoji is drawn in proportion to (emoji of its motif) **
    -balance, so 0 draws every emoji alike and 1 every motif.  `paraphrase`: this fraction of the captions is said in other words
    (`experiments.emoji.data.paraphrase`), which a CLIP has to read: batches then come without a text.  size None: no pictures.
    """

    def __init__(
        self,
        split: Literal["train", "heldout", "all"] = "train",
        size: int | None = 64,
        *,
        embeddings: Embeddings | str | Path | None = None,
        shift: int = 0,
        zoom: float = 0.0,
        balance: float = 0.0,
        paraphrase: float = 0.0,
        folder: str | Path | None = None,
    ):
        if split not in ("train", "heldout", "all"):
            raise ValueError(f"the split is {split!r}; it must be 'train', 'heldout' or 'all'")
        if not 0 <= shift < (size or 1) or not 0 <= zoom < 1:
            raise ValueError(f"shift={shift}, zoom={zoom}; shift lies in 0..{(size or 1) - 1} pixels and zoom in [0, 1)")
        if not 0 <= balance <= 1 or not 0 <= paraphrase <= 1:
            known = "balance lies in 0 (every emoji alike) .. 1 (every motif alike), paraphrase is a fraction of the captions"
            raise ValueError(f"balance={balance}, paraphrase={paraphrase}; {known}")
        rows = source.read_captions()
        chosen = [i for i, row in enumerate(rows) if split in ("all", row.split)]
        self.split, self.size, self.shift, self.zoom, self.paraphrase = split, size, shift, zoom, paraphrase
        self.keys = [rows[i].key for i in chosen]
        self.captions = [rows[i].caption for i in chosen]
        self.weights = shares([motif(caption) for caption in self.captions], balance) if balance else None
        self._rows = chosen  # of the cache, which holds every split
        self._pictures = None
        if size is not None:
            self._pictures = Pictures(Path(folder) if folder else source.cache_folder(), [row.key for row in rows], size)
        if isinstance(embeddings, (str, Path)):
            embeddings = Embeddings.load(embeddings)
        self.embeddings = embeddings.select(self.keys) if embeddings is not None else None

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        """The samples `indices`; noise None = unmoved pictures."""
        images = None
        if self._pictures is not None:
            images = to_images(self._pictures[[self._rows[i] for i in indices]], noise, self.shift, self.zoom)
        captions = [self.captions[i] for i in indices]
        batch = Batch(keys=[self.keys[i] for i in indices], images=images, captions=captions)
        if self.embeddings is not None:
            batch = self.embeddings.join(batch)
        if noise is None or not self.paraphrase:
            return batch
        # Streams keep the names under which the shipped weights were trained.
        others, chosen = paraphrases(captions, noise.at("wording")), noise.at("reword").uniform() < self.paraphrase
        captions = [other if other_one else own for own, other, other_one in zip(captions, others, chosen.tolist())]
        return batch._replace(captions=captions, text=None)


class EmojiDataConfig(DataSpec, frozen=True, kw_only=True):
    """`EmojiData` as a value: what the recipes' trainings read.  Pictures are those of the cache."""

    split: Literal["train", "heldout", "all"] = "train"
    embeddings: bool = False  # with the answers of the emoji CLIP, which `experiments.emoji.ship embed` has put into the cache
    shift: int = 0  # augmentation, in pixels
    zoom: float = 0.0
    balance: float = 0.0  # how much rare motifs are drawn above their number
    paraphrase: float = 0.0  # fraction of the captions that is said in other words, which the training's CLIP reads

    @property
    def embedded(self) -> bool:
        return self.embeddings

    def open(self, classes: Sequence[str] | None = None) -> EmojiData:
        settings = {name: getattr(self, name) for name in ("shift", "zoom", "balance", "paraphrase")}
        return EmojiData(self.split, self.size, embeddings=embeddings_path() if self.embeddings else None, **settings)


def embeddings_path() -> Path:
    """Where the trained CLIP's answers for all emoji are kept (made by `python -m experiments.emoji.ship embed`)."""
    return source.cache_folder() / "embeddings.safetensors"


def shares(motifs: Sequence[str], balance: float) -> Float[np.ndarray, " n"]:
    """How often each sample is drawn: in proportion to (samples of its motif) ** -balance."""
    counts = Counter(motifs)
    drawn = np.array([counts[name] ** -balance for name in motifs])
    drawn.setflags(write=False)  # which `unclip.data.order.indices` takes as leave to look at them once
    return drawn


def to_images(pixels: np.ndarray, noise: Noise | None, shift: int, zoom: float) -> Float[Tensor, "b 3 s s"]:
    """Pixels of 8 bits (b, 3, s, s) in [-1, 1], moved where there is noise; in numpy, which uses one thread: reading ahead
    must not wait for the cores that train."""
    values = pixels.astype(np.float32)
    values /= 127.5
    values -= 1
    images = torch.from_numpy(values)
    return images if noise is None or not (shift or zoom) else move(images, noise, shift, zoom)


def move(images: Float[Tensor, "b 3 s s"], noise: Noise, shift: int, zoom: float) -> Float[Tensor, "b 3 s s"]:
    """Scale and shift each picture on its white ground; what leaves the frame is cut."""
    size = images.shape[-1]
    scales = 1 + zoom * (2 * noise.at("zoom").uniform() - 1)
    offsets = noise.at("shift").integers(-shift, shift + 1, (2,))
    moved = []
    for image, scale, (dy, dx) in zip(images, scales.tolist(), offsets.tolist()):
        side = round(size * scale)
        if side != size:
            image = interpolate(image[None], (side, side), mode="bicubic", antialias=True)[0].clamp(-1, 1)
        top, left = (size - side) // 2 + dy, (size - side) // 2 + dx
        # A negative width of F.pad crops.
        moved.append(pad(image, (left, size - side - left, top, size - side - top), value=1.0))
    return torch.stack(moved)

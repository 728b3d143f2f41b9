"""From a source to training batches: pictures cut square, a caption chosen, embeddings joined, broken files replaced."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from unclip.clip.preprocess import fit_square
from unclip.randomness import Noise, check_noise
from unclip.types import Batch

from .images import decode_image
from .sample import class_names, class_numbers
from .source import Source

Broken = Literal["skip", "raise"]


@runtime_checkable
class Store(Protocol):
    """Embeddings that can be found by key: `Embeddings` or `EmbeddingShards`."""

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def has_text(self) -> bool: ...

    def join(self, batch: Batch, noise: Noise | None = None) -> Batch:
        """The batch with the embeddings of its keys, and of one caption each, chosen as `chosen` does."""
        ...


class Sample(NamedTuple):
    """One captioned picture, whole (very large ones smaller, see `load_image`)."""

    key: str
    image: Float[Tensor, "3 h w"]
    captions: list[str]


class Reader:
    """The captioned pictures of `source`: short side resized to `size` with anti-aliasing, centre crop.

    size None = pictures are not read, and batches have none.  With `embeddings` only samples that have one are kept, the
    others told in a warning, and captions are the embedded ones.  broken="skip": what cannot be read is named once (in
    each process) in a warning, and the next readable sample takes its place, the same one in every run; "raise": a
    ValueError names it.  May be called from several threads.

    A source with labels has `classes`, its sorted names, whose places are the numbers in a batch.  `classes` given = those of
    other data, of the training for what is held out; a ValueError names a class that is not among them.
    """

    def __init__(
        self,
        source: Source,
        size: int | None,
        *,
        broken: Broken = "skip",
        embeddings: Store | None = None,
        classes: Sequence[str] | None = None,
    ):
        if (size is not None and size < 1) or broken not in ("skip", "raise"):
            raise ValueError(f"size={size}, broken={broken!r}; size is at least 1 and broken 'skip' or 'raise'")
        self.source, self.size, self.broken, self.embeddings = source, size, broken, embeddings
        self.keys: Sequence[str] = source.keys
        self.rows: Sequence[int] = range(len(source.keys))  # of the source
        self.classes: tuple[str, ...] = ()
        self._numbers: Tensor | None = None  # of the class of each row
        if source.labels is not None:
            self.classes = class_names(source.labels) if classes is None else tuple(classes)
            self._numbers = torch.from_numpy(class_numbers(source.labels, self.classes, source.keys, source.name))
        elif classes is not None:
            raise ValueError(f"{source.name} has no labels to be of {len(classes)} classes: say where they stand")
        if embeddings is not None:
            self._keep(embeddings)
        self._bad: set[int] = set()  # only saves reading and naming them again
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def fields(self) -> frozenset[str]:
        """What its batches have."""
        has = {"captions"} if self.source.captioned else set()
        has |= ({"images"} if self.size is not None else set()) | ({"labels"} if self._numbers is not None else set())
        if self.embeddings is not None:
            has |= {"image_embed"} | ({"captions", "text"} if self.embeddings.has_text else set())
        return frozenset(has)

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        """The samples `indices`; a broken one is replaced, key and caption too.  noise None = the first caption."""
        if noise is not None:
            check_noise(noise, len(indices), "samples")
        samples = [self._read(i) for i in indices]
        images = None
        if self.size is not None:
            decoded = [image for _, image, _ in samples if image is not None]
            images = torch.stack(decoded) if decoded else torch.empty(0, 3, self.size, self.size)
        batch = Batch(
            keys=[self.keys[i] for i, _, _ in samples],
            images=images,
            captions=chosen([captions for _, _, captions in samples], noise) if self.source.captioned else None,
            labels=None if self._numbers is None else self._numbers[[self.rows[i] for i, _, _ in samples]],
        )
        return batch if self.embeddings is None else self.embeddings.join(batch, noise)

    def sample(self, index: int) -> Sample:
        """One picture as it is, and all its captions.  ValueError when it is broken."""
        row = self.rows[index]
        image = decode_image(self.source.image_bytes(row), self.source.where(row))
        return Sample(self.keys[index], image, self.source.captions(row))

    def _keep(self, embeddings: Store) -> None:
        have = set(embeddings.keys)
        kept = [row for row, key in enumerate(self.source.keys) if key in have]
        missing = len(self.source.keys) - len(kept)
        if not kept:
            raise ValueError(
                f"none of the {missing} keys of {self.name} is among the {len(have)} with embeddings: {self.source.keys[0]!r}"
                f" and {next(iter(have), None)!r} are the first of each; compute the embeddings of this very data"
            )
        if missing:
            first = next(key for key in self.source.keys if key not in have)
            warnings.warn(f"{missing} pictures have no embedding and are left out, the first is {first}", stacklevel=1)
            self.keys, self.rows = [self.source.keys[row] for row in kept], kept

    def _read(self, index: int) -> tuple[int, Tensor | None, list[str]]:
        """The first readable sample from `index` on: its index, picture and captions."""
        n = len(self)
        if not -n <= index < n:
            raise ValueError(f"there is no sample {index} among {n}")
        for i in (j % n for j in range(index, index + n)):
            if i in self._bad:
                continue
            try:
                return i, *self._fitted(self.rows[i])
            except ValueError as error:
                if self.broken == "raise":
                    raise
                with self._lock:
                    known = i in self._bad
                    self._bad.add(i)
                if not known:
                    warnings.warn(f"{error}; the next picture takes its place", stacklevel=1)
        raise ValueError(f"none of the {n} pictures in {self.name} can be read")

    def _fitted(self, row: int) -> tuple[Tensor | None, list[str]]:
        # With embedded captions the source's are not even looked at: in a shard that is a read of its own.
        captions = [""] if self.embeddings is not None and self.embeddings.has_text else self.source.captions(row)
        if self.size is None:
            return None, captions
        image = decode_image(self.source.image_bytes(row), self.source.where(row))
        return fit_square(image[None], self.size)[0], captions


class Embedded:
    """Embeddings alone, for what trains on nothing else: batches without pictures, captions where there are some."""

    classes: tuple[str, ...] = ()

    def __init__(self, embeddings: Store, name: str):
        if not len(embeddings.keys):
            raise ValueError(f"there is not one embedding in {name}")
        self.embeddings, self.name, self.keys = embeddings, name, embeddings.keys
        self.fields = frozenset({"image_embed"} | ({"text", "captions"} if embeddings.has_text else set()))

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        """The embeddings `indices`; of several captions the noise chooses one."""
        if noise is not None:
            check_noise(noise, len(indices), "samples")
        return self.embeddings.join(Batch(keys=[self.keys[i] for i in indices]), noise)


def chosen(captions: Sequence[list[str]], noise: Noise | None) -> list[str]:
    """One of each sample's captions, by its own stream; noise None = the first."""
    return [mine[i] for mine, i in zip(captions, choices([len(mine) for mine in captions], noise))]


def choices(counts: Sequence[int], noise: Noise | None) -> list[int]:
    """Which caption of so many each sample takes: the same one for texts and for their embeddings."""
    if noise is None or all(count == 1 for count in counts):
        return [0] * len(counts)
    return [int(u * count) for u, count in zip(noise.at("caption").uniform().tolist(), counts)]

"""What an edit returns: pictures in rows, with labels, saved as a sheet, an animation or single files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex

from jaxtyping import Float
from torch import Tensor

from unclip.checks import rows_of_index
from unclip.files import check_output, write_files
from unclip.images import ANIMATIONS, animation, png, png_bytes, sheet, to_pil

from .latent import Latent

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", *ANIMATIONS)


@dataclass(frozen=True, repr=False)
class Edit:
    """Pictures (b, 3, h, w) in [-1, 1], row by row, `columns` in a row; `latent`: the pair each was drawn from, where it was.

    `stages` has them at every resolution made, smallest first; `sources` (rows, 3, s, s) are the pictures that were given.
    `first` is the first picture's number among its seed's.
    """

    verb: str
    images: Float[Tensor, "b 3 h w"]
    latent: Latent | None
    stages: Mapping[int, Tensor]
    labels: tuple[str, ...]
    columns: int
    sources: Float[Tensor, "r 3 s s"] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    first: int = 0
    numbers: tuple[int, ...] | None = None  # of the pictures, where they do not follow each other

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which: SupportsIndex | slice) -> Edit:
        rows = rows_of_index(which, len(self))
        return replace(
            self,
            images=self.images[rows],
            latent=None if self.latent is None else self.latent.rows(rows),
            stages={size: images[rows] for size, images in self.stages.items()},
            labels=self.labels[rows],
            columns=len(range(len(self))[rows]),
            sources=None,
            numbers=tuple(self.numbers or range(self.first, self.first + len(self)))[rows],
        )

    def __iter__(self) -> Iterator[Edit]:
        return (self[k] for k in range(len(self)))

    def __repr__(self) -> str:
        pictures = "1 picture" if len(self) == 1 else f"{len(self)} pictures"
        return f"Edit ({self.verb}) of {pictures}, {self.images.shape[-1]} pixels: {', '.join(self.labels)}"

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return png_bytes(to_pil(self.images[0]) if len(self) == 1 else self.sheet(), {})

    def pil(self) -> list[Image]:
        """8-bit RGB pictures."""
        return [to_pil(image) for image in self.images]

    def sheet(self) -> Image:
        """All pictures with their labels, those that were given at the left."""
        rows = [self.pil()[i : i + self.columns] for i in range(0, len(self), self.columns)]
        labels = [list(self.labels[i : i + self.columns]) for i in range(0, len(self), self.columns)]
        if self.sources is not None and len(self.sources) == len(rows):
            for row, names, source in zip(rows, labels, self.sources):
                row.insert(0, to_pil(source))
                names.insert(0, "given")
        return sheet(rows, labels)

    def save(self, path: str | Path, overwrite: bool = True) -> list[Path]:
        """A .png: the picture, or a labelled sheet of several; .gif or .webp: an animation; else a folder of PNGs by number.

        Returns the files, all written or none.  overwrite: those that are there already are replaced; ValueError where not.
        """
        numbers = self.numbers or range(self.first, self.first + len(self))
        names, suffix = edit_paths(path, numbers), Path(path).suffix.lower()
        data: Iterable[bytes]
        if suffix in ANIMATIONS:
            data = [animation(self.pil(), suffix)]
        elif suffix == ".png":
            alone = {**self.metadata, "index": str(numbers[0])}
            data = [png(self.images[0], alone) if len(self) == 1 else png_bytes(self.sheet(), self.metadata)]
        else:
            texts = [{**self.metadata, "label": label, "index": str(i)} for label, i in zip(self.labels, numbers)]
            data = (png(image, text) for image, text in zip(self.images, texts))
        write_files(zip(names, data), overwrite)
        return names


def edit_paths(path: str | Path, numbers: Sequence[int]) -> list[Path]:
    """The files that an edit's pictures are saved to; ValueError for a path that is of no kind that they are saved as."""
    path = check_output(path, SUFFIXES)
    return [path] if path.suffix.lower() in SUFFIXES else [path / f"{number:05d}.png" for number in numbers]

"""What an edit returns: pictures in rows, with labels, saved as a sheet, an animation or single files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from unclip.files import check_output, write_files
from unclip.images import ANIMATIONS, animation, png, png_bytes, sheet, to_pil

from .latent import Latent

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Edit:
    """Pictures (b, 3, h, w) in [-1, 1], row by row, `columns` in a row; `latent` holds the pair each was drawn from.

    `stages` has them at every resolution made, smallest first; `sources` (rows, 3, s, s) are the pictures that were given.
    `first` is the first picture's number among its seed's.
    """

    verb: str
    images: Float[Tensor, "b 3 h w"]
    latent: Latent
    stages: Mapping[int, Tensor]
    labels: tuple[str, ...]
    columns: int
    sources: Float[Tensor, "r 3 s s"] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    first: int = 0

    def __len__(self) -> int:
        return len(self.images)

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

    def save(self, path: str | Path) -> list[Path]:
        """A .png: the picture, or a labelled sheet of several; .gif or .webp: an animation; else a folder of PNGs by number.

        Returns the files, all written or none.
        """
        path = check_output(path, (".png", *ANIMATIONS))
        if path.suffix.lower() in ANIMATIONS:
            write_files([(path, animation(self.pil(), path.suffix.lower()))])
            return [path]
        if path.suffix.lower() == ".png":
            alone = {**self.metadata, "index": str(self.first)}
            data = png(self.images[0], alone) if len(self) == 1 else png_bytes(self.sheet(), self.metadata)
            write_files([(path, data)])
            return [path]
        numbers = range(self.first, self.first + len(self))
        names = [path / f"{i:05d}.png" for i in numbers]
        texts = [{**self.metadata, "label": label, "index": str(i)} for label, i in zip(self.labels, numbers)]
        write_files((name, png(image, text)) for name, image, text in zip(names, self.images, texts))
        return names

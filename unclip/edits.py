"""What an edit returns: pictures in rows, with labels, saved as a sheet, an animation or single files."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from .results import Latent, check_output, png, png_bytes, to_pil, write_files

if TYPE_CHECKING:
    from PIL.Image import Image

ANIMATIONS = (".gif", ".webp")
FRAME_MS, HOLD_MS = 120, 800  # of an animation: each picture, and the last before it starts again


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
    story: Mapping[str, str] = field(default_factory=dict)
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
            alone = {**self.story, "index": str(self.first)}
            data = png(self.images[0], alone) if len(self) == 1 else png_bytes(self.sheet(), self.story)
            write_files([(path, data)])
            return [path]
        numbers = range(self.first, self.first + len(self))
        names = [path / f"{i:05d}.png" for i in numbers]
        stories = [{**self.story, "label": label, "index": str(i)} for label, i in zip(self.labels, numbers)]
        write_files((name, png(image, story)) for name, image, story in zip(names, self.images, stories))
        return names


def sheet(rows: Sequence[Sequence[Image]], labels: Sequence[Sequence[str]], title: str = "") -> Image:
    """Pictures in rows, each above its label; smaller ones are brought to the largest's width, by whole pixels where small."""
    from PIL import Image, ImageDraw, ImageFont

    cell = max(max(picture.width for row in rows for picture in row), 96)
    columns = max(len(row) for row in rows)
    points = max(11, cell // 14)
    font = ImageFont.load_default(size=points)
    wrapped = [[textwrap.wrap(label, max(4, int(cell / (0.55 * points)))) or [""] for label in row] for row in labels]
    line, gap = round(1.3 * points), max(4, cell // 32)
    heights = [cell + line * max((len(label) for label in row), default=0) + gap for row in wrapped]
    top = 2 * line if title else gap
    page = Image.new("RGB", (columns * (cell + gap) + gap, top + sum(heights) + gap), "white")
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((gap, line // 3), title, fill="black", font=ImageFont.load_default(size=round(1.2 * points)))
    for row, names, height in zip(rows, wrapped, heights):
        for column, (picture, name) in enumerate(zip(row, names)):
            left = gap + column * (cell + gap)
            page.paste(_scaled(picture, cell), (left, top))
            draw.multiline_text((left, top + cell + line // 6), "\n".join(name), fill="black", font=font, spacing=line - points)
        top += height
    return page


def animation(pictures: Sequence[Image], suffix: str) -> bytes:
    """A looping .gif or .webp, the last picture held."""
    buffer = BytesIO()
    durations = [FRAME_MS] * (len(pictures) - 1) + [HOLD_MS]
    options = {"lossless": True} if suffix == ".webp" else {}
    pictures[0].save(
        buffer, format=suffix[1:].upper(), save_all=True, append_images=pictures[1:], duration=durations, loop=0, **options
    )
    return buffer.getvalue()


def _scaled(picture: Image, cell: int) -> Image:
    from PIL.Image import Resampling

    if picture.width == cell:
        return picture
    whole = cell % picture.width == 0
    return picture.resize((cell, cell), Resampling.NEAREST if whole else Resampling.BICUBIC)

"""What a pipeline returns: pictures, the latent pair (z_i, x_T) they came from, and how to make each again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex

from jaxtyping import Float
from torch import Tensor

from unclip.checks import rows_of_index
from unclip.editing.latent import Latent
from unclip.files import check_output, write_files
from unclip.images import SUFFIXES, check_quality, encoded, png_bytes, sheet, to_pil

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = 4  # of the pictures in a notebook


@dataclass(frozen=True, repr=False)
class Generation:
    """Pictures (b, 3, h, w) in [-1, 1], caption-major; `stages` holds them at every resolution made, smallest first.

    generation[k] is picture k alone, with its latent and its seed, also by slices; a notebook shows the pictures.
    """

    images: Float[Tensor, "b 3 h w"]
    latent: Latent | None  # None where no embedding was drawn, as by a cascade
    stages: Mapping[int, Tensor]
    captions: tuple[str, ...]
    seeds: tuple[tuple[int, int], ...]  # (seed, index): `generate(caption, seed=seed, first=index)` makes the picture alone
    model: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which: SupportsIndex | slice) -> Generation:
        rows = rows_of_index(which, len(self))
        return Generation(
            images=self.images[rows],
            latent=None if self.latent is None else self.latent.rows(rows),
            stages={size: images[rows] for size, images in self.stages.items()},
            captions=self.captions[rows],
            seeds=self.seeds[rows],
            model=self.model,
        )

    def __iter__(self) -> Iterator[Generation]:
        return (self[k] for k in range(len(self)))

    def __repr__(self) -> str:
        told = [f"{caption!r} (seed {seed}, number {index})" for caption, (seed, index) in zip(self.captions, self.seeds)]
        more = f", and {len(told) - 4} more" if len(told) > 4 else ""
        pictures = "1 picture" if len(self) == 1 else f"{len(self)} pictures"
        return f"Generation of {pictures}, {self.images.shape[-1]} pixels: {', '.join(told[:4])}{more}"

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        pictures = self.pil()
        if len(pictures) == 1:
            return png_bytes(pictures[0], {})
        starts = range(0, len(pictures), COLUMNS)
        rows = [pictures[i : i + COLUMNS] for i in starts]
        return png_bytes(sheet(rows, [self.captions[i : i + COLUMNS] for i in starts]), {})

    def pil(self) -> list[Image]:
        """8-bit RGB pictures."""
        return [to_pil(image) for image in self.images]

    def save(self, path: str | Path, overwrite: bool = True, quality: int | None = None) -> list[Path]:
        """Pictures with caption, seed, index, model and version (`unclip.images.metadata`); returns the files, all or none.

        One picture goes to `path`, a .png, .jpg or .webp, several to path-0.png, path-1.png, ...; a path without suffix, or of
        a folder, is the folder for 00000.png, ... by index.  overwrite: files that are there already are replaced; ValueError
        where not.  quality: of JPEG and WebP, 1 to 100, else 95.
        """
        names = picture_paths(path, [index for _, index in self.seeds])
        check_quality(quality, names[0].suffix.lower())
        texts = [
            {"caption": caption, "seed": str(seed), "index": str(index), "model": self.model}
            for caption, (seed, index) in zip(self.captions, self.seeds)
        ]
        write_files(
            ((name, encoded(to_pil(x), name.suffix.lower(), text, quality)) for name, x, text in zip(names, self.images, texts)),
            overwrite,
        )
        return names


def picture_paths(path: str | Path, numbers: Sequence[int]) -> list[Path]:
    """The files that pictures of these numbers are saved to; ValueError for a path that is none of a picture or a folder."""
    path = check_output(path, SUFFIXES)
    if path.suffix.lower() not in SUFFIXES:
        return [path / f"{number:05d}.png" for number in numbers]
    return [path] if len(numbers) == 1 else [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(len(numbers))]

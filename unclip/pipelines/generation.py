"""What a pipeline returns: pictures, the latent pair (z_i, x_T) they came from, and how to make each again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from unclip.editing.latent import Latent
from unclip.files import check_output, write_files
from unclip.images import png, to_pil

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Generation:
    """Pictures (b, 3, h, w) in [-1, 1], caption-major; `stages` holds them at every resolution made, smallest first."""

    images: Float[Tensor, "b 3 h w"]
    latent: Latent | None  # None where no embedding was drawn, as by a cascade
    stages: Mapping[int, Tensor]
    captions: tuple[str, ...]
    seeds: tuple[tuple[int, int], ...]  # (seed, index): `generate(caption, seed=seed, first=index)` makes the picture alone
    model: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def pil(self) -> list[Image]:
        """8-bit RGB pictures."""
        return [to_pil(image) for image in self.images]

    def save(self, path: str | Path, overwrite: bool = True) -> list[Path]:
        """PNGs with caption, seed, index, model and version in their text fields; returns the files, all written or none.

        One picture goes to `path`, several to path-0.png, path-1.png, ...; a path without suffix, or of a folder, is the
        folder for 00000.png, ... by index.  overwrite: files that are there already are replaced; ValueError where not.
        """
        names = picture_paths(path, [index for _, index in self.seeds])
        texts = [
            {"caption": caption, "seed": str(seed), "index": str(index), "model": self.model}
            for caption, (seed, index) in zip(self.captions, self.seeds)
        ]
        write_files(((name, png(image, text)) for name, image, text in zip(names, self.images, texts)), overwrite)
        return names


def picture_paths(path: str | Path, numbers: Sequence[int]) -> list[Path]:
    """The files that pictures of these numbers are saved to; ValueError for a path that is none of a picture or a folder."""
    path = check_output(path)
    if path.suffix.lower() != ".png":
        return [path / f"{number:05d}.png" for number in numbers]
    return [path] if len(numbers) == 1 else [path.with_name(f"{path.stem}-{i}.png") for i in range(len(numbers))]

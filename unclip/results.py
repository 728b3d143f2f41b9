"""What a pipeline returns: pictures with their story, and the latent pair (z_i, x_T) they came from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = "unclip-latent-1"


@dataclass(frozen=True)
class Latent:
    """unCLIP's bipartite latent (section 3): what the picture shows, z_i, and how it shows it, x_T.

    `x_t` lives at timestep `t`; `timesteps` lead from there back to the picture.  `models` tells which decoder and CLIP it
    belongs to.
    """

    image_embed: Float[Tensor, "b d"]
    x_t: Float[Tensor, "b 3 h w"]
    t: int
    timesteps: tuple[int, ...]
    captions: tuple[str, ...]
    models: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x_t)

    def save(self, path: str | Path) -> None:
        """One safetensors file, written aside and renamed."""
        from safetensors.torch import save

        about = {"t": self.t, "timesteps": self.timesteps, "captions": self.captions, "models": dict(self.models)}
        tensors = {"image_embed": self.image_embed.cpu().contiguous(), "x_t": self.x_t.cpu().contiguous()}
        write_bytes(path, save(tensors, metadata={"format": FORMAT, "about": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path) -> Latent:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"{path} is a safetensors file but no latent (format {metadata.get('format')!r})")
                about = json.loads(metadata["about"])
                return cls(
                    file.get_tensor("image_embed"),
                    file.get_tensor("x_t"),
                    about["t"],
                    tuple(about["timesteps"]),
                    tuple(about["captions"]),
                    about["models"],
                )
        except (SafetensorError, OSError, KeyError) as error:
            raise ValueError(f"{path} cannot be read as a latent: {error}") from None


@dataclass(frozen=True)
class Generation:
    """Pictures (b, 3, h, w) in [-1, 1], caption-major; `stages` holds them at every resolution made, smallest first."""

    images: Float[Tensor, "b 3 h w"]
    latent: Latent
    stages: Mapping[int, Tensor]
    captions: tuple[str, ...]
    seeds: tuple[tuple[int, int], ...]  # (seed, index): `generate(caption, seed=seed, first=index)` makes the picture alone
    model: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def pil(self) -> list[Image]:
        return [to_pil(image) for image in self.images]

    def save(self, path: str | Path) -> list[Path]:
        """PNGs with their story in the text fields.  One picture goes to `path`; several to path-0.png, path-1.png, ...;

        into a folder when `path` has no suffix.  Returns the files written.
        """
        path = Path(path)
        if path.suffix and path.suffix.lower() != ".png":
            raise ValueError(f"pictures are written as .png, not {path.suffix!r}: {path}")
        if path.suffix:
            names = [path] if len(self) == 1 else [path.with_name(f"{path.stem}-{i}.png") for i in range(len(self))]
        else:
            names = [path / f"{index:05d}.png" for _, index in self.seeds]
        for name, image, caption, (seed, index) in zip(names, self.images, self.captions, self.seeds):
            save_png(image, name, {"caption": caption, "seed": str(seed), "index": str(index), "model": self.model})
        return names


def to_pil(image: Float[Tensor, "3 h w"]) -> Image:
    """[-1, 1] to an 8-bit RGB picture."""
    from PIL import Image

    pixels = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def save_png(image: Float[Tensor, "3 h w"], path: str | Path, text: Mapping[str, str]) -> None:
    """Write a PNG with text fields, aside and renamed."""
    from io import BytesIO

    from PIL.PngImagePlugin import PngInfo

    from unclip import __version__

    info = PngInfo()
    for key, value in {**text, "software": f"unclip {__version__}"}.items():
        info.add_itxt(key, value)
    buffer = BytesIO()
    to_pil(image).save(buffer, format="PNG", pnginfo=info)
    write_bytes(path, buffer.getvalue())


def grid(images: Sequence[Tensor] | Tensor, columns: int, gap: int = 4) -> Float[Tensor, "3 h w"]:
    """Equally large pictures on one white sheet, row by row."""
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    _, h, w = images[0].shape
    sheet = torch.ones(3, len(rows) * (h + gap) + gap, columns * (w + gap) + gap)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = gap + r * (h + gap), gap + c * (w + gap)
            sheet[:, top : top + h, left : left + w] = image
    return sheet


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file aside, sync and rename it; a full disk or an unwritable folder is a ValueError and leaves nothing."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None


def story(path: str | Path) -> dict[str, Any]:
    """The text fields of a PNG that this package wrote."""
    from PIL import Image

    with Image.open(path) as picture:
        return dict(getattr(picture, "text", {}))

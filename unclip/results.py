"""What a pipeline returns: pictures with their story, and the latent pair (z_i, x_T) they came from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from . import __version__
from .config import Config
from .types import Sampling

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = "unclip-latent-3"


class About(Config, frozen=True, kw_only=True):
    """What stands in a latent's file beside its tensors."""

    sampling: Sampling
    captions: tuple[str, ...]
    models: dict[str, str]


@dataclass(frozen=True)
class Latent:
    """unCLIP's bipartite latent (section 3): what the picture shows, z_i, and how it shows it, x_T.

    `sampling` draws the picture from here; its steps are a list of timesteps, and `x_t` lives at the first, `t`.
    `models` tells which pipeline, CLIP and decoder the latent belongs to.
    """

    image_embed: Float[Tensor, "b d"]
    x_t: Float[Tensor, "b 3 h w"]
    sampling: Sampling
    captions: tuple[str, ...]  # "" where the picture was not drawn for a caption
    models: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = (len(self.image_embed), len(self.x_t), len(self.captions))
        if len(set(rows)) > 1 or self.image_embed.ndim != 2 or self.x_t.ndim != 4:
            shapes = f"{tuple(self.image_embed.shape)}, {tuple(self.x_t.shape)} and {rows[2]} captions"
            raise ValueError(f"a latent is image_embed (b, d), x_t (b, 3, h, w) and b captions; got {shapes}")
        if not isinstance(self.sampling.steps, tuple) or len(self.sampling.steps) < 2:
            raise ValueError(f"a latent's sampling lists its timesteps, descending from x_t's; got steps {self.sampling.steps!r}")

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The timesteps that lead from x_t to the picture, descending."""
        assert isinstance(self.sampling.steps, tuple)
        return self.sampling.steps

    @property
    def t(self) -> int:
        """Where x_t lives."""
        return self.timesteps[0]

    def rows(self, rows: slice) -> Latent:
        """Some of the pictures."""
        return replace(self, image_embed=self.image_embed[rows], x_t=self.x_t[rows], captions=self.captions[rows])

    def repeat(self, n: int) -> Latent:
        """Each picture n times, picture-major."""
        embed, x_t = (x.repeat_interleave(n, dim=0) for x in (self.image_embed, self.x_t))
        return replace(self, image_embed=embed, x_t=x_t, captions=tuple(c for c in self.captions for _ in range(n)))

    def __len__(self) -> int:
        return len(self.x_t)

    def save(self, path: str | Path) -> None:
        """One safetensors file, written aside and renamed."""
        from safetensors.torch import save

        about = About(sampling=self.sampling, captions=self.captions, models=dict(self.models))
        tensors = {"image_embed": self.image_embed.cpu().contiguous(), "x_t": self.x_t.cpu().contiguous()}
        write_files([(Path(path), save(tensors, metadata={"format": FORMAT, "about": about.to_json()}))])

    @classmethod
    def load(cls, path: str | Path) -> Latent:
        """Read a latent; ValueError when the file is none, or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if (written := metadata.get("format")) != FORMAT:
                    if str(written).startswith(FORMAT[:-1]):
                        raise ValueError(f"{path} was written by an earlier version ({written}): invert the picture again")
                    raise ValueError(f"{path} is a safetensors file but no latent (format {written!r})")
                about = About.from_json(metadata.get("about", ""), source=str(path))
                # Cloned, so that the file may be replaced or removed while the latent lives.
                image_embed, x_t = file.get_tensor("image_embed").clone(), file.get_tensor("x_t").clone()
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read as a latent: {error}") from None
        return cls(image_embed, x_t, about.sampling, about.captions, about.models)


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
        """8-bit RGB pictures."""
        return [to_pil(image) for image in self.images]

    def save(self, path: str | Path) -> list[Path]:
        """PNGs with caption, seed, index, model and version in their text fields; returns the files, all written or none.

        One picture goes to `path`, several to path-0.png, path-1.png, ...; a path without suffix, or of a folder, is the
        folder for 00000.png, ... by index.
        """
        path = check_output(path)
        if path.suffix.lower() == ".png":
            names = [path] if len(self) == 1 else [path.with_name(f"{path.stem}-{i}.png") for i in range(len(self))]
        else:
            names = [path / f"{index:05d}.png" for _, index in self.seeds]
        stories = [
            {"caption": caption, "seed": str(seed), "index": str(index), "model": self.model}
            for caption, (seed, index) in zip(self.captions, self.seeds)
        ]
        write_files((name, png(image, story)) for name, image, story in zip(names, self.images, stories))
        return names


def check_output(path: str | Path, files: Sequence[str] = (".png",), folder: bool = True) -> Path:
    """The path, when it can be written: a file with one of the suffixes `files`, or a folder, there or not; else ValueError."""
    path = Path(path)
    suffixes = " or ".join(files)
    try:
        is_file, is_folder = path.suffix.lower() in files, path.is_dir()
        if not is_file and not (folder and (is_folder or not path.suffix)):
            raise ValueError(f"this is written as {suffixes}{' or into a folder' * folder}, not as {path.suffix!r}: {path}")
        if is_file and is_folder:
            raise ValueError(f"{path} is a folder: name a file in it, or a folder that does not end in {path.suffix}")
        parent = path.parent if is_file else path
        while not parent.exists():
            parent = parent.parent
        with TemporaryFile(dir=parent):  # permissions alone do not tell: the disk may be mounted read-only
            pass
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def to_pil(image: Float[Tensor, "3 h w"]) -> Image:
    """[-1, 1] to an 8-bit RGB picture."""
    from PIL import Image

    pixels = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def png(image: Float[Tensor, "3 h w"], text: Mapping[str, str]) -> bytes:
    """A PNG with text fields, to which the package's version is added."""
    return png_bytes(to_pil(image), text)


def png_bytes(picture: Image, text: Mapping[str, str]) -> bytes:
    """The same of a PIL picture."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in {**text, "version": __version__, "Software": f"unclip {__version__}"}.items():
        info.add_itxt(key, value)
    buffer = BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def story(path: str | Path) -> dict[str, str]:
    """The text fields of a PNG that this package wrote."""
    from PIL import Image

    with Image.open(path) as picture:
        return dict(getattr(picture, "text", {}))


def write_files(files: Iterable[tuple[Path, bytes]]) -> None:
    """Write files aside, sync, then rename them all; a full disk or an unwritable folder is a ValueError and leaves nothing."""
    asides: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, data in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            asides.append((path.with_name(f".{path.name}.{os.getpid()}"), path))
            with open(asides[-1][0], "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for aside, path in asides:
            os.replace(aside, path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        for aside, _ in asides:
            with suppress(OSError):
                aside.unlink(missing_ok=True)

"""Picture files and PIL pictures of every mode to a float tensor, or one clear ValueError."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unclip.files import POINTER, refuse_pointer, regular_file

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 2 GiB / 4 / 3
MAX_DATA_PIXELS = MAX_PIXELS // 2  # of one among many, of which several are decoded at once: 1.6 GiB at most
MAX_BYTES = 2**30  # of a file: no picture of so few pixels needs more
SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
SLACK = 0.25  # of the range of pixels: a little overshoot is what resizing leaves
# What these suffixes stand for.  Others stay closed to files of unknown origin: Pillow hands PostScript to Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "PPM")


def load_picture(source: str | Path | Image.Image | Tensor) -> Float[Tensor, "3 h w"]:
    """A picture as float32 (3, h, w) in [-1, 1]: upright (EXIF), first frame, transparency on white, any mode.

    Tensors are checked and returned, uint8 is scaled.  ValueError: absent, empty, too large, cannot be decoded.
    """
    from PIL import Image

    if isinstance(source, Tensor):
        return _checked(source)
    if isinstance(source, Image.Image):
        return _decode(source, "the picture")
    if not isinstance(source, (str, Path)):
        raise ValueError(f"expected a file, a PIL picture or a tensor (3, h, w), given {type(source).__name__}")
    path = Path(source).expanduser()
    if not path.exists():
        raise ValueError(f"there is no picture file {str(path)!r}")
    with open(regular_file(path), "rb") as file:
        refuse_pointer(path, file.read(200))
    return _open(path, str(path), None, MAX_PIXELS)


def decode_picture(data: bytes, name: str) -> Float[Tensor, "3 h w"]:
    """The same of a file in a data set, by its bytes: in the formats of `SUFFIXES`, whatever the file is called.

    `name` is for messages.  Half as many pixels are too many already.
    """
    if not data:
        raise ValueError(f"{name} cannot be decoded as a picture: it is empty")
    if data.startswith(POINTER):
        raise ValueError(f"{name} is a git-lfs pointer, not the picture itself: fetch that with `git lfs pull`")
    return _open(BytesIO(data), name, _formats(), MAX_DATA_PIXELS)


@cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF since Pillow 11.3


def _open(file: Path | BytesIO, name: str, formats: tuple[str, ...] | None, most: int) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(file, formats=formats)
    except Image.DecompressionBombError:
        raise ValueError(f"{name} is too large: more than {most // 10**6} megapixels") from None
    except UnidentifiedImageError:  # its message names the object in memory
        raise ValueError(f"{name} cannot be decoded as a picture: it is none, or of another format") from None
    except Exception as error:  # decoders raise whatever they like: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{name} cannot be decoded as a picture: {error}") from error
    with picture:
        return _decode(picture, name, most)


def _decode(picture: Image.Image, name: str, most: int = MAX_PIXELS) -> Tensor:
    from PIL import Image, ImageOps

    width, height = picture.size
    if width * height > most:
        raise ValueError(f"{name} is too large: {width} x {height} is more than {most // 10**6} megapixels")
    if width * height == 0:
        raise ValueError(f"{name} has no pixels: its size is {width} x {height}")
    try:
        picture.load()
        # Some versions of Pillow open 16-bit grey files in the mode of 32 bits, which alone tells nothing of the range.
        deep = picture.mode.startswith("I;") or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
        picture = ImageOps.exif_transpose(picture)
        if picture.mode[0] in "IF":
            return _grey(picture, (65535,) if deep else {"I": (255, 65535), "F": (1, 255)}[picture.mode])
        if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
            # Premultiplied modes first go back to the plain ones, which is all that Pillow converts them to.
            plain = {"La": "LA"}.get(picture.mode)
            picture = (picture.convert(plain) if plain else picture).convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        pixels = np.asarray(picture.convert("RGB"))
    except Exception as error:
        raise ValueError(f"{name} cannot be decoded as a picture: {error}") from error
    # Turned round while it is small, and in numpy, which keeps to one thread: pictures are read while others train.
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    planes /= 127.5
    planes -= 1
    return torch.from_numpy(planes)


def _grey(picture: Image.Image, whites: tuple[int, ...]) -> Tensor:
    """Grey numbers, which Pillow's own conversion would clip, as (3, h, w); white is the first of `whites` that they fit."""
    grey = np.asarray(picture, dtype=np.float32)
    low, high = float(grey.min()), float(grey.max())
    white = next((w for w in whites if high <= (1 + SLACK) * w), 0)
    if not (white and low >= -SLACK * white):
        ranges = " or ".join(f"0 to {w}" for w in whites)
        raise ValueError(f"its mode is {picture.mode} and its numbers go from {low:g} to {high:g}, not from {ranges}")
    return torch.from_numpy(grey / (white / 2) - 1).clamp(-1, 1).expand(3, -1, -1).contiguous()


def check_range(images: Tensor) -> None:
    """ValueError for pictures that are not in [-1, 1].  NaN passes: the training loop tells what it comes from.

    Where gradients are wanted no accelerator is waited for.  Tensors that stand for numbers only (a plan's) have none.
    """
    waits = images.device.type != "cpu" and torch.is_grad_enabled()
    if type(images) is Tensor and not images.is_meta and not waits and images.numel():
        _refuse_range(*images.detach().aminmax())


def _refuse_range(low: Tensor, high: Tensor) -> None:
    if low < -1 - 2 * SLACK or high > 1 + 2 * SLACK:
        raise ValueError(
            f"expected a picture in [-1, 1], given values from {low.item():g} to {high.item():g}; use x / 127.5 - 1"
        )


def _checked(image: Tensor) -> Tensor:
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"expected a picture tensor (3, h, w), given {tuple(image.shape)}")
    if image.dtype == torch.uint8:
        return image.float() / 127.5 - 1
    if not image.is_floating_point():
        raise ValueError(f"expected a float picture in [-1, 1] or uint8, given {image.dtype}")
    low, high = image.detach().aminmax()
    if low.isnan():
        raise ValueError("expected a picture in [-1, 1], given one with values that are NaN")
    _refuse_range(low, high)
    return image

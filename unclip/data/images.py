"""Picture files and PIL pictures of every mode to a float tensor, or one clear ValueError."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unclip.files import POINTER, refuse_pointer, regular_file

from .colour import grey_curve, scale_transparency, to_rgb

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 2 GiB / 4 / 3
MAX_DATA_PIXELS = MAX_PIXELS // 2  # of one among many, of which several are decoded at once: 1.6 GiB at most
LARGE = 2**25  # pixels: of a larger picture averages of 2 x 2, 3 x 3, ... are read, in bounded memory
BAND = 2**22  # pixels of it at once
MAX_BYTES = 2**30  # of a file: no picture of so few pixels needs more
SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
SLACK = 0.25  # of the range of pixels: a little overshoot is what resizing leaves
# What these suffixes stand for.  Others stay closed to files of unknown origin: Pillow hands PostScript to Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "PPM")
DRAFTED = ("JPEG", "MPO")  # whose decoder gives smaller pictures at once; MPO: JPEG with others behind it


def load_image(source: str | Path | Image.Image | Tensor | np.ndarray) -> Float[Tensor, "3 h w"]:
    """A picture as float32 (3, h, w) in [-1, 1]: sRGB, upright (EXIF), first frame, transparency on white, any mode.

    Of more than LARGE pixels it is read smaller, by a whole factor.  Tensors (3, h, w) are checked and returned, uint8 is scaled;
    arrays are (h, w, 3), (h, w, 4) or (h, w), uint8 or float in [0, 1].  ValueError: absent, empty, too large, cannot be decoded.
    """
    from PIL import Image

    if isinstance(source, Tensor):
        return _checked(source)
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        return _decode(source, "the picture")
    if not isinstance(source, (str, Path)):
        given = type(source).__name__
        raise ValueError(f"expected a file, a PIL picture, an array (h, w, 3) or a tensor (3, h, w), given {given}")
    path = Path(source).expanduser()
    if path.is_dir() or not path.exists():
        raise ValueError(f"there is no picture file {str(path)!r}" + (": it is a folder" if path.is_dir() else ""))
    with open(regular_file(path), "rb") as file:  # by its name Pillow would map it, and mistake the lines of a turned TIFF
        refuse_pointer(path, file.read(200))
        file.seek(0)
        return _open(file, str(path), None, MAX_PIXELS)


def decode_image(data: bytes, name: str) -> Float[Tensor, "3 h w"]:
    """The same of a file in a data set, by its bytes: in the formats of `SUFFIXES`, whatever the file is called.

    `name` is for messages.  Half as many pixels are too many already, but of JPEG.
    """
    if not data:
        raise ValueError(f"{name} cannot be decoded as a picture: it is empty")
    if data.startswith(POINTER):
        raise ValueError(f"{name} is a git-lfs pointer, not the picture itself: fetch that with `git lfs pull`")
    return _open(BytesIO(data), name, _formats(), MAX_DATA_PIXELS)


def read_size(data: bytes) -> tuple[int, int]:
    """Width and height as its header has them.  ValueError: it is no picture."""
    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=_formats()) as image:
            return image.size
    except Exception as error:
        raise ValueError(f"it cannot be decoded as a picture: {error}") from None


@cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF since Pillow 11.3


def _open(file: Any, name: str, formats: tuple[str, ...] | None, most: int) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError:
        raise ValueError(f"{name} is too large: more than {most // 10**6} megapixels") from None
    except UnidentifiedImageError:  # its message names the object in memory
        raise ValueError(f"{name} cannot be decoded as a picture: it is none, or of another format") from None
    except Exception as error:  # decoders raise whatever they like: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{name} cannot be decoded as a picture: {error}") from error
    with image:
        return _decode(image, name, most)


def _decode(image: Image.Image, name: str, most: int = MAX_PIXELS) -> Tensor:
    width, height = image.size
    if width * height > (MAX_PIXELS if image.format in DRAFTED else most):  # whose decoder makes it smaller at once
        raise ValueError(f"{name} is too large: {width} x {height} is more than {most // 10**6} megapixels")
    if width * height == 0:
        raise ValueError(f"{name} has no pixels: its size is {width} x {height}")
    try:
        scale_transparency(image)
        if (factor := _factor(image)) > 1 and image.format in DRAFTED:
            image.draft(None, (width // factor, height // factor))
        image.load()
        planes = _grey(image, name) if image.mode[0] in "IF" else _colours(image, name)
        return torch.from_numpy(np.ascontiguousarray(upright(planes, _orientation(image))))
    except Exception as error:
        raise ValueError(f"{name} cannot be decoded as a picture: {error}") from error


def _factor(image: Image.Image) -> int:
    """How many times smaller a picture is read, so that it is not larger than LARGE."""
    return math.ceil(math.sqrt(image.width * image.height / LARGE))


def _bands(image: Image.Image, factor: int) -> Iterator[Image.Image]:
    """A large picture in pieces, so that no more than one is held in other numbers than its own; else the picture."""
    rows = image.height if factor == 1 else max(1, BAND // image.width // factor) * factor
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield image if rows == image.height else image.crop(box)


def _colours(image: Image.Image, name: str) -> np.ndarray:
    """8 bits of any mode as (3, h, w) in [-1, 1]."""
    factor = _factor(image)
    bands = [np.asarray(_reduced(to_rgb(band, name), factor)) for band in _bands(image, factor)]
    pixels = bands[0] if len(bands) == 1 else np.concatenate(bands)
    # Turned round while it is small, and in numpy, which keeps to one thread: pictures are read while others train.
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    planes /= 127.5
    planes -= 1
    return planes


def _grey(image: Image.Image, name: str) -> np.ndarray:
    """Grey numbers, which Pillow's own conversion would clip, as (3, h, w); white is the first number that they fit."""
    from PIL import Image

    # Some versions of Pillow open 16-bit grey files in the mode of 32 bits, which alone tells nothing of the range.
    deep = image.mode.startswith("I;") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    whites = (65535,) if deep else {"I": (255, 65535), "F": (1, 255)}[image.mode]
    factor, curve = _factor(image), grey_curve(image, name)
    ends = np.array([(band.min(), band.max()) for band in map(np.asarray, _bands(image, factor))], np.float64)
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    white = next((w for w in whites if high <= (1 + SLACK) * w), 0)
    if not (white and low >= -SLACK * white):
        ranges = " or ".join(f"0 to {w}" for w in whites)
        raise ValueError(f"its mode is {image.mode} and its numbers go from {low:g} to {high:g}, not from {ranges}")
    pieces = []
    for band in _bands(image, factor):
        numbers = np.asarray(band, np.float32)
        levels = (numbers / white).clip(0, 1)
        shown = [levels * 2 - 1] if curve is None else [np.interp(levels, *one) * 2 - 1 for one in curve]
        if isinstance(transparent := image.info.get("transparency"), int):
            shown = [np.where(numbers == transparent, 1, one) for one in shown]  # white, on which it lies
        pieces.append([np.asarray(_reduced(Image.fromarray(one.astype(np.float32)), factor)) for one in shown])
    planes = np.concatenate(pieces, axis=1)
    return np.broadcast_to(planes, (3, *planes.shape[1:]))


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    return image if factor == 1 else image.reduce(factor)


def _orientation(image: Image.Image) -> int:
    """How a camera was held (EXIF 0x0112); 1, upright, where that cannot be read."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # of as many kinds as there are damages
        return 1


def upright(planes: np.ndarray, orientation: int) -> np.ndarray:
    """(3, h, w) turned and mirrored as EXIF says, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        planes = planes.transpose(0, 2, 1)
    down, right = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(orientation, (1, 1))
    return planes[:, ::down, ::right]


def check_range(images: Tensor) -> None:
    """ValueError for pictures that are not in [-1, 1].  NaN passes: the training loop tells what it comes from.

    Where gradients are wanted no accelerator is waited for.  Tensors that stand for numbers only (a plan's) have none.
    """
    waits = images.device.type != "cpu" and torch.is_grad_enabled()
    if type(images) is Tensor and not images.is_meta and not waits and images.numel():
        _refuse_range(*images.detach().aminmax())


def check_images(images: Tensor, name: str = "images") -> None:
    """ValueError for what are no pictures (b, 3, h, w) in [-1, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or 0 in images.shape:
        raise ValueError(f"{name} must be float (b, 3, h, w) in [-1, 1]; got {images.dtype} {tuple(images.shape)}")
    check_range(images)


def _refuse_range(low: Tensor, high: Tensor) -> None:
    if low < -1 - 2 * SLACK or high > 1 + 2 * SLACK:
        raise ValueError(f"expected a picture in [-1, 1], given values from {low.item():g} to {high.item():g}; use x / 127.5 - 1")


def _from_array(array: np.ndarray) -> Image.Image:
    """Pixels as other libraries hold them; ValueError for what is no picture."""
    from PIL import Image

    pixels = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        hint = ": a batch is given as a list of its pictures" if pixels.ndim == 4 else ""
        raise ValueError(f"expected a picture array (h, w, 3), (h, w, 4) or (h, w), given {array.shape}{hint}")
    if pixels.dtype != np.uint8:
        if not np.issubdtype(pixels.dtype, np.floating):
            raise ValueError(f"expected a picture array of uint8, or float in [0, 1], given {pixels.dtype}")
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also refuses NaN
            wrong = f"given values from {low:g} to {high:g}"
            raise ValueError(f"expected a float picture array in [0, 1], {wrong}; pictures in [-1, 1] are tensors (3, h, w)")
        pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


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

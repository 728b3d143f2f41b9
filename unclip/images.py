"""Tensors in [-1, 1] as 8-bit pictures: PIL, PNG with text fields, grids, labelled sheets, animations."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from . import __version__
from .checks import check_int

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of single pictures
DESCRIPTION, SOFTWARE = 0x010E, 0x0131  # EXIF
ANIMATIONS = (".gif", ".webp")
FRAME_MS, HOLD_MS = 120, 800  # of an animation: each picture, and the last before it starts again


def eight_bit(images: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Pictures in [-1, 1] as a file of 8 bits holds them (`unclip.editing.latent.to_pil`)."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def to_pil(image: Float[Tensor, "3 h w"]) -> Image:
    """[-1, 1] to an 8-bit RGB picture."""
    from PIL import Image

    pixels = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def png(image: Float[Tensor, "3 h w"], text: Mapping[str, str]) -> bytes:
    """A PNG with text fields, to which the package's version is added."""
    return png_bytes(to_pil(image), text)


def png_bytes(image: Image, text: Mapping[str, str]) -> bytes:
    """The same of a PIL picture."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in {**text, "version": __version__, "Software": f"unclip {__version__}"}.items():
        info.add_itxt(key, value)
    buffer = BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def encoded(image: Image, suffix: str, text: Mapping[str, str], quality: int | None = None) -> bytes:
    """A file of one of the `SUFFIXES` with its metadata: in text fields of a PNG, else as JSON in EXIF's image description.

    quality: of JPEG and WebP, 1 to 100; None = 95.
    """
    from PIL.Image import Exif

    if suffix == ".png":
        return png_bytes(image, text)
    exif, buffer = Exif(), BytesIO()
    exif[DESCRIPTION] = json.dumps({**text, "version": __version__})  # ASCII, as EXIF's texts are
    exif[SOFTWARE] = f"unclip {__version__}"
    how: dict[str, Any] = {"format": "WEBP", "method": 4} if suffix == ".webp" else {"format": "JPEG", "subsampling": 0}
    image.save(buffer, exif=exif, quality=95 if quality is None else quality, **how)
    return buffer.getvalue()


def check_quality(quality: Any, suffix: str) -> None:
    """ValueError for no quality, and where a file has none."""
    if quality is None:
        return
    if suffix not in SUFFIXES[1:]:
        raise ValueError(f"quality is {quality}, but {suffix[1:].upper() or 'PNG'} loses nothing: it is for JPEG and WebP")
    if check_int("quality", quality, 1, "of 1 to 100") > 100:
        raise ValueError(f"quality is {quality}; it must be at most 100")


def metadata(path: str | Path) -> dict[str, str]:
    """What `encoded` wrote with a picture."""
    from PIL import Image

    with Image.open(path) as image:
        if image.format == "PNG":
            return dict(getattr(image, "text", {}))
        try:
            return dict(json.loads(image.getexif().get(DESCRIPTION, "")))
        except (ValueError, TypeError):  # somebody else's
            return {}


def grid(images: Float[Tensor, "n 3 h w"]) -> bytes:
    """Pictures in [-1, 1] side by side on a nearly square PNG."""
    from PIL import Image

    n, _, height, width = images.shape
    columns = math.ceil(math.sqrt(n))
    canvas = torch.ones(3, math.ceil(n / columns) * height, columns * width)
    for i, image in enumerate(images.detach().float().cpu()):
        top, left = i // columns * height, i % columns * width
        canvas[:, top : top + height, left : left + width] = image
    pixels = ((canvas.nan_to_num().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def sheet(rows: Sequence[Sequence[Image]], labels: Sequence[Sequence[str]], title: str = "") -> Image:
    """Pictures in rows, each above its label; smaller ones are brought to the largest's width, by whole pixels where small."""
    from PIL import Image, ImageDraw, ImageFont

    cell = max(max(image.width for row in rows for image in row), 96)
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
        for column, (image, name) in enumerate(zip(row, names)):
            left = gap + column * (cell + gap)
            page.paste(_scaled(image, cell), (left, top))
            draw.multiline_text((left, top + cell + line // 6), "\n".join(name), fill="black", font=font, spacing=line - points)
        top += height
    return page


def animation(images: Sequence[Image], suffix: str) -> bytes:
    """A looping .gif or .webp, the last picture held."""
    buffer = BytesIO()
    durations = [FRAME_MS] * (len(images) - 1) + [HOLD_MS]
    options = {"lossless": True} if suffix == ".webp" else {}
    images[0].save(
        buffer, format=suffix[1:].upper(), save_all=True, append_images=images[1:], duration=durations, loop=0, **options
    )
    return buffer.getvalue()


def _scaled(image: Image, cell: int) -> Image:
    from PIL.Image import Resampling

    if image.width == cell:
        return image
    whole = cell % image.width == 0
    return image.resize((cell, cell), Resampling.NEAREST if whole else Resampling.BICUBIC)

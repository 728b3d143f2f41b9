"""Colours as a screen shows them: sRGB whatever profile a picture brings, transparency on white, in any mode."""

from __future__ import annotations

import warnings
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
SPACES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}  # ICC's names of colour spaces, and the modes that are in them
SCALES = {"L;2": 85, "L;4": 17}  # of grey numbers of few bits
_warned: set[bytes] = set()  # profiles that cannot be used


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A picture of 8 bits as RGB: in sRGB, on white."""
    from PIL import Image

    alpha = None
    if image.mode in TRANSPARENT or "transparency" in image.info:
        # Premultiplied modes first go back to the plain ones, which is all that Pillow converts them to.
        plain = {"La": "LA"}.get(image.mode)
        rgba = (image.convert(plain) if plain else image).convert("RGBA")
        alpha = rgba.getchannel("A")
        image = _keep_profile(rgba.convert("RGB"), image)
    rgb = _to_srgb(image, name)
    if alpha is None:
        return rgb
    rgb.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")


def grey_curve(image: Image.Image, name: str) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """What levels of grey are in red, green and blue of sRGB, all in [0, 1], by a picture's profile; None = it has none."""
    from PIL import Image

    if not image.info.get("icc_profile"):
        return None
    ramp = _keep_profile(Image.fromarray(np.arange(256, dtype=np.uint8)[None]), image)
    levels = np.arange(256) / 255
    return [(levels, band / 255) for band in np.asarray(_to_srgb(ramp, name))[0].T]


def scale_transparency(image: Image.Image) -> None:
    """Bring the transparent colour of a PNG, noted in the file's own depth, to the numbers that Pillow decodes it to.

    Must come before the picture is loaded.
    """
    colour, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    raw = tiles[0][3] if tiles else None
    if isinstance(colour, int) and raw in SCALES:
        image.info["transparency"] = colour * SCALES[raw]
    elif isinstance(colour, tuple) and raw == "RGB;16B":
        image.info["transparency"] = tuple(number >> 8 for number in colour)


def _keep_profile(image: Image.Image, source: Image.Image) -> Image.Image:
    image.info["icc_profile"] = source.info.get("icc_profile")
    return image


def _to_srgb(image: Image.Image, name: str) -> Image.Image:
    """An opaque picture as RGB, its numbers those that littleCMS gives for its profile."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image.convert("RGB")
    if image.mode not in SPACES.values():
        image = image.convert("L" if image.mode == "1" else "RGB")
    space, problem = _space(profile)
    if space == "RGB" and image.mode == "L":
        image = image.convert("RGB")  # grey as a scanner's or camera's software leaves it
    if space == "L" and image.mode == "RGB" and _is_grey(image):
        image = image.getchannel("R")  # which Pillow has no mode for: of 16 bits with transparency, for instance
    if problem is None and space != image.mode:
        problem = f"it is one for {space} and the picture is {image.mode}"
    if problem is None:
        transform, problem = _transform(profile, image.mode)
    if problem is None:
        converted: Image.Image = transform.apply(image)
        return converted
    if profile not in _warned:
        _warned.add(profile)
        warnings.warn(f"the colour profile of {name} is ignored: {problem}", stacklevel=1)
    return image.convert("RGB")


def _is_grey(image: Image.Image) -> bool:
    from PIL import ImageChops

    red, green, blue = image.split()
    return not (ImageChops.difference(red, green).getbbox() or ImageChops.difference(red, blue).getbbox())


@lru_cache(maxsize=32)
def _space(profile: bytes) -> tuple[str | None, str | None]:
    """The mode of pictures that a profile is for, or what is wrong with it."""
    from PIL import ImageCms

    try:
        space = ImageCms.ImageCmsProfile(BytesIO(profile)).profile.xcolor_space.strip()
    except Exception as error:  # littleCMS has its own
        return None, str(error)
    return SPACES.get(space, space), None


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> tuple[Any, str | None]:
    """From a profile to sRGB as `ImageCms.profileToProfile` goes, or what is wrong.  May be used by several threads."""
    from PIL import ImageCms

    try:
        embedded, srgb = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(embedded, srgb, mode, "RGB"), None
    except Exception as error:
        return None, str(error)

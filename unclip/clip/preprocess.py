"""Pictures of any size and mode to the square that a CLIP was trained on.

Short side to the model's size, bicubic and anti-aliased, then a centre crop: squashing or a plain resize gives other
embeddings than the ones the prior and the decoder were trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unclip.data.images import check_range, load_image

if TYPE_CHECKING:
    from PIL import Image

Resize = Literal["crop", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
# Beyond this ratio the ends of the long side, which the crop throws away, are cut first: a 1 x 5000 strip whose
# short side becomes 224 would be a million pixels wide.
_LONGEST = 8


def fit_square(
    images: Float[Tensor, "b 3 h w"], size: int, resize: Resize = "crop", interpolation: Interpolation = "bicubic"
) -> Float[Tensor, "b 3 s s"]:
    """Images in [-1, 1] to (b, 3, size, size) in [-1, 1]; a picture that has the size already is returned untouched."""
    _check_shape(images)

    def resized(images: Tensor, target: tuple[int, int]) -> Tensor:
        # float32: half precision has no anti-aliased resize on the CPU.
        wide = F.interpolate(images.float(), target, mode=interpolation, antialias=True, align_corners=False)
        return wide.clamp(-1, 1).to(images.dtype)  # bicubic overshoots at edges; 8-bit pictures would be clipped too

    if resize == "squash":
        return images if images.shape[-2:] == (size, size) else resized(images, (size, size))
    return crop_square(images, size, resized)


def crop_square(
    images: Float[Tensor, "b c h w"], size: int, resized: Callable[[Tensor, tuple[int, int]], Tensor]
) -> Float[Tensor, "b c s s"]:
    """The short side to `size` by `resized(images, (h, w))`, then a centre crop; what has the size already stays untouched."""
    h, w = images.shape[-2:]
    if (h, w) == (size, size):
        return images
    if max(h, w) > _LONGEST * min(h, w):
        images = _centre(images, min(h, _LONGEST * w), min(w, _LONGEST * h))
        h, w = images.shape[-2:]
    target = (size, int(size * w / h)) if h <= w else (int(size * h / w), size)
    return _centre(images if target == (h, w) else resized(images, target), size, size)


def stack_images(
    images: Tensor | Image.Image | str | Path | Sequence[Tensor | Image.Image | str | Path],
    size: int,
    resize: Resize = "crop",
    interpolation: Interpolation = "bicubic",
) -> Float[Tensor, "b 3 s s"]:
    """A batch of images, one picture, or a list of pictures of different sizes, as one batch of squares in [-1, 1]."""
    if isinstance(images, Tensor) and images.ndim == 4:
        check_images(images)
        return fit_square(images, size, resize, interpolation)
    many = list(images) if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    if not many:
        raise ValueError("no pictures were given; give at least one")
    return torch.cat([fit_square(load_image(cast(Any, p))[None], size, resize, interpolation) for p in many])


def check_images(images: Tensor) -> None:
    """ValueError unless images are float (b, 3, h, w) with at least one pixel, and in [-1, 1]."""
    _check_shape(images)
    check_range(images)


def _check_shape(images: Any) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        actual = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"expected images (b, 3, h, w) in [-1, 1], given {actual}; see CLIP.preprocess")
    if not images.is_floating_point():
        raise ValueError(f"expected float images in [-1, 1], given {images.dtype}; for bytes use images / 127.5 - 1")


def _centre(images: Tensor, height: int, width: int) -> Tensor:
    top, left = (round((side - crop) / 2) for side, crop in zip(images.shape[-2:], (height, width)))
    return images[..., top : top + height, left : left + width]

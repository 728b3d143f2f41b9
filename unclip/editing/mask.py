"""Masks: which pixels of a picture are kept, at its own size, at the sizes of the stages, with a soft border."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, avg_pool2d, interpolate, max_pool2d

from unclip.clip.preprocess import crop_square
from unclip.data.images import load_image

if TYPE_CHECKING:
    from PIL import Image

Mask: TypeAlias = "str | Path | Image.Image | Tensor | np.ndarray"


def keep_masks(
    keep: Mask | Sequence[Mask] | None, mask: Mask | Sequence[Mask] | None, sizes: Sequence[tuple[int, int]]
) -> list[Bool[Tensor, "1 1 h w"]]:
    """True where a pixel is kept, for pictures of `sizes` (h, w), from what exactly one of the two arguments says.

    keep: True (or white) = the pixel is kept.  mask: True (or white) = it is drawn anew.  One for all pictures, or one each.
    """
    if (keep is None) == (mask is None):
        both = "both keep and mask were given" if mask is not None else "neither keep nor mask was given"
        raise ValueError(f"{both}; give one: keep, True or white where pixels stay, or mask, where they are drawn anew")
    name, source = ("keep", keep) if mask is None else ("mask", mask)
    read = [one if name == "keep" else ~one for one in _masks(source, name)]
    if len(read) not in (1, len(sizes)):
        raise ValueError(f"{len(read)} masks came with {len(sizes)} pictures: give one for all, or one each")
    read *= len(sizes) if len(read) == 1 else 1
    for one, (height, width) in zip(read, sizes):
        if one.shape[-2:] != (height, width):
            problem = f"{name} has {one.shape[-1]} x {one.shape[-2]} pixels, its picture {width} x {height}"
            raise ValueError(f"{problem}: a mask is as large as its picture (width x height)")
    return read


def weights(keep: Bool[Tensor, "b 1 h w"], feather: int = 0) -> Float[Tensor, "b 1 h w"]:
    """1 where a pixel is kept, 0 where it is drawn, rising from the border over `feather` kept pixels in between."""
    hole, total = (~keep).float(), keep.float()
    for _ in range(feather):  # a pixel at distance d from the hole is outside of it while it has grown by less than d
        hole = max_pool2d(hole, 3, stride=1, padding=1)
        total = total + (1 - hole)
    return total / (feather + 1)


def at_size(weight: Float[Tensor, "b 1 h w"], size: int) -> Float[Tensor, "b 1 s s"]:
    """The weights of pictures that are brought to `size`, as `fit_square` does: a pixel is kept as far as all that it covers."""
    return crop_square(weight, size, lambda weight, target: 1 - adaptive_max_pool2d(1 - weight, target))


def filled(images: Float[Tensor, "b 3 h w"], keep: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures whose other pixels continue the kept ones smoothly, so that nothing of them reaches these in a resize.

    From coarse to fine, each level takes what it lacks from the one above (pull-push, Gortler et al. 1996).
    """
    height, width = images.shape[-2:]
    if keep.all() or (height, width) == (1, 1):
        return images
    share = avg_pool2d(keep.to(images.dtype), 2, ceil_mode=True)  # (b, 1, h/2, w/2)
    mean = avg_pool2d(torch.where(keep, images, 0.0), 2, ceil_mode=True) / share.clamp(min=1e-6)
    coarse = filled(mean, share > 0)
    return torch.where(keep, images, interpolate(coarse, (height, width), mode="bilinear", align_corners=False))


def _masks(source: Any, name: str) -> list[Bool[Tensor, "1 1 h w"]]:
    if isinstance(source, (Tensor, np.ndarray)):
        values = torch.as_tensor(source)
        if not 2 <= values.ndim <= 4 or 0 in values.shape or (values.ndim > 2 and values.shape[-3] != 1):
            raise ValueError(f"{name} has shape {tuple(values.shape)}; a mask is (h, w), or (b, 1, h, w) for b pictures")
        return list(_decided(values.detach().cpu(), name).reshape(-1, 1, 1, *values.shape[-2:]))
    if isinstance(source, Sequence) and not isinstance(source, str):
        return [mask for one in source for mask in _masks(one, name)]
    return [_picture(source, name)[None, None]]


def _decided(values: Tensor, name: str) -> Tensor:
    """Numbers as True and False: bool, 0 and 1 of any type, 0 to 1 and 0 to 255 cut in the middle."""
    if values.dtype == torch.bool:
        return values
    low, high = (float(x) for x in values.aminmax())
    if values.is_floating_point() and low >= 0 and high <= 1:
        return values >= 0.5
    if not values.is_floating_point() and low >= 0 and high <= (255 if values.dtype == torch.uint8 else 1):
        return values >= (1 if high <= 1 else 128)
    problem = f"{name} holds {values.dtype} from {low:g} to {high:g}"
    raise ValueError(f"{problem}; a mask holds True and False, or numbers from 0 to 1, or bytes (uint8) from 0 to 255")


def _picture(source: Any, name: str) -> Bool[Tensor, "h w"]:
    """A mask in a file or a PIL picture, which is white or black."""
    from PIL import Image

    if not isinstance(source, (str, Path, Image.Image)):
        raise ValueError(f"{name} is a {type(source).__name__}; give a file, a PIL picture or a tensor (h, w) of True and False")
    levels = load_image(source).mean(0)
    if _transparent(source):
        raise ValueError(f"{name} {_called(source)} has transparent parts, which say nothing: give black and white")
    return levels >= 0


def _transparent(source: Any) -> bool:
    from PIL import Image

    if not isinstance(source, Image.Image):
        with Image.open(Path(source).expanduser()) as picture:
            return _transparent(picture)
    return "A" in source.getbands() and source.getchannel("A").getextrema()[0] != 255


def _called(source: Any) -> str:
    return str(source) if isinstance(source, (str, Path)) else "picture"

"""Degraded low-resolution pictures to train an upsampler on: the whole picture is degraded first, crops come after."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unclip.config import AtMost100, Config
from unclip.randomness import Noise

from .bsr import FULL, LIGHT, bsr
from .filters import blur, gaussian_kernel, resize


class CorruptionConfig(Config, frozen=True, kw_only=True):
    """How low-resolution pictures are spoilt in training, so that the imperfect ones of a decoder are no surprise."""

    kind: Literal["none", "blur", "bsr", "bsr_light"] = "none"
    # Chance that a picture is corrupted; the others are plainly resized.  unCLIP does not state it; cascaded diffusion
    # (CDM) blurs half of them, latent diffusion applies BSR to all.
    probability: float = 1.0
    kernel: AtMost100 = 3  # blur: size, and the range of sigma, in low-resolution pixels (unCLIP 2.2: 3 and 0.6)
    sigma: tuple[float, float] = (0.6, 0.6)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability of corruption is {self.probability}; it must lie in 0 to 1")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"blur kernel is {self.kernel}; it must be odd, for instance 3")
        if not 0 <= self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"blur sigma is {self.sigma}; it must be a range (low, high) with 0 <= low <= high")


def degrade(image: Float[Tensor, "3 H W"], scale: int, config: CorruptionConfig, noise: Noise) -> Float[Tensor, "3 h w"]:
    """The low-resolution picture of `image` ([-1, 1], H and W multiples of scale); noise has one row, on the CPU."""
    height, width = image.shape[-2:]
    if height % scale or width % scale or not height or not width:
        raise ValueError(f"cannot take {height}x{width} down by {scale}: cut both sides to multiples of {scale} first")
    if len(noise) != 1:
        raise ValueError(f"one picture is degraded with one row of noise, not {len(noise)}: pass noise[i : i + 1]")
    image = image.float().cpu()
    spoilt = config.kind != "none" and float(noise.at("corrupt").uniform()) < config.probability
    if spoilt and config.kind != "blur":
        strength = FULL if config.kind == "bsr" else LIGHT
        return bsr((image + 1) / 2, scale, strength, noise.at("bsr")) * 2 - 1
    low = resize(image[None], (height // scale, width // scale))[0]
    if spoilt:
        sigma = config.sigma[0] + (config.sigma[1] - config.sigma[0]) * float(noise.at("sigma").uniform())
        low = blur(low, gaussian_kernel(config.kernel, (sigma**2, sigma**2)))
    return low.clamp(-1, 1)  # bicubic overshoots at edges


def mod_crop(image: Float[Tensor, "3 H W"], multiple: int) -> Float[Tensor, "3 h w"]:
    """Cut the height and the width, each by itself, to a multiple."""
    height, width = image.shape[-2] // multiple * multiple, image.shape[-1] // multiple * multiple
    if not height or not width:
        raise ValueError(f"a picture of {image.shape[-2]}x{image.shape[-1]} is too small: its sides must reach {multiple}")
    return image[..., :height, :width]


def crop_pairs(
    low: Float[Tensor, "3 h w"],
    high: Float[Tensor, "3 H W"],
    scale: int,
    size: int,
    step: int,
    count: int,
    noise: Noise,
) -> tuple[Float[Tensor, "n 3 s s"], Float[Tensor, "n 3 S S"]]:
    """`count` random square crops, the same places in both pictures.

    size, step: side and grid of the offsets in high-resolution pixels, multiples of scale.  noise has one row.
    """
    if size % scale or step % scale:
        raise ValueError(f"crops of {size} on a grid of {step} do not fall on whole low-resolution pixels of {scale}")
    height, width = high.shape[-2:]
    places = noise.uniform((count, 2))[0]
    lows, highs = [], []
    for down, right in places.tolist():
        y = int(down * ((height - size) // step + 1)) * step
        x = int(right * ((width - size) // step + 1)) * step
        highs.append(high[..., y : y + size, x : x + size])
        lows.append(low[..., y // scale : (y + size) // scale, x // scale : (x + size) // scale])
    return torch.stack(lows), torch.stack(highs)

"""The noise of a camera: a picture is taken back to sensor values, exposed again with noise, and developed anew.

The way back follows Brooks et al. 2019, "Unprocessing Images for Learned Raw Denoising"; BSRGAN has a network for it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import conv2d

from unclip.randomness import Noise

from .filters import reflect_pad

# Malvar, He, Cutler 2004: bilinear interpolation of the mosaic plus the local curvature of the channel that is known.
_GREEN = [[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]
_ALONG_ROW = [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]
_DIAGONAL = [[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]]


def camera_noise(image: Float[Tensor, "3 h w"], noise: Noise, shot: tuple[float, float]) -> Float[Tensor, "3 h w"]:
    """Simulated camera noise on a picture in [0, 1]; noise has one row.

    shot: range, on a logarithmic scale, of the variance that a fully lit sensor pixel gets; read noise comes with it.
    """
    red, blue, level, read_level = noise.at("exposure").uniform((4,))[0].tolist()
    row, column = noise.at("mosaic").integers(0, 2, (2,))[0].tolist()
    gains = torch.tensor([1.9 + 0.5 * red, 1.0, 1.5 + 0.4 * blue])  # white balance of daylight cameras
    shot_var = shot[0] * (shot[1] / shot[0]) ** level
    # A fit to real cameras (Brooks et al.).
    read_var = math.exp(2.18 * math.log(shot_var) + 1.2 + 0.26 * (2 * read_level - 1))

    sites = bayer(image.shape[-2], image.shape[-1], row, column)
    gain = gains[sites]
    # Sensor values of the sites only: tone curve and gamma cost a third of what they would on all three channels.
    raw = linear(image.gather(0, sites[None])[0]) / gain
    raw = raw + (shot_var * raw + read_var).sqrt() * noise.at("sensor").normal(raw.shape)[0]
    return display(demosaic(raw.clamp(0, 1) * gain, sites))


def linear(y: Tensor) -> Tensor:
    """Display values to light: undo the tone curve 3x^2 - 2x^3, then gamma 2.2."""
    x = 0.5 - torch.sin(torch.asin(1 - 2 * y.clamp(0, 1)) / 3)
    return x.clamp(min=0) ** 2.2


def display(light: Tensor) -> Tensor:
    """Light to display values: gamma 1 / 2.2, then the tone curve 3x^2 - 2x^3.  `display(linear(y)) = y`."""
    x = light.clamp(0, 1) ** (1 / 2.2)
    return x * x * (3 - 2 * x)


def bayer(height: int, width: int, row: int, column: int) -> Int[Tensor, "h w"]:
    """Which channel each sensor site sees: 0 red, 1 green, 2 blue.  row, column: 0 or 1, where the first red one is."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None, :]
    return (y + row) % 2 + (x + column) % 2


def demosaic(raw: Float[Tensor, "h w"], sites: Int[Tensor, "h w"]) -> Float[Tensor, "3 h w"]:
    """All three channels at every site (Malvar, He, Cutler 2004); exact for a flat colour.  At least 2x2."""
    kernels = torch.tensor([_GREEN, _ALONG_ROW, _DIAGONAL], dtype=raw.dtype)
    kernels = torch.stack([kernels[0], kernels[1], kernels[1].T, kernels[2]])[:, None] / 8
    # Mirroring without repeating the border keeps the pattern of the mosaic going.
    green, along_row, along_column, diagonal = conv2d(reflect_pad(raw, 2, 2, 2, 2)[None, None], kernels)[0]
    # A green site has red neighbours along its row when the row has red sites.
    red_row = (sites == 0).any(1, keepdim=True)
    red = torch.where(sites == 2, diagonal, torch.where(red_row, along_row, along_column))
    blue = torch.where(sites == 0, diagonal, torch.where(red_row, along_column, along_row))
    return torch.stack([torch.where(sites == i, raw, guess) for i, guess in enumerate((red, green, blue))])

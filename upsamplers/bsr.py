"""The BSR degradation: blur, shrink, noise, JPEG and camera in random order (BSRGAN, Zhang et al. 2021; unCLIP 2.2).

unCLIP cites the one of latent diffusion and does not say which of its two strengths; both are here.  Every number comes
from the picture's own stream, by the name of what it is for.
"""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unclip.randomness import Noise

from .camera import camera_noise
from .filters import Resize, blur, gaussian_kernel, resize

MODES: tuple[Resize, ...] = ("bilinear", "bicubic", "area")


class Strength(NamedTuple):
    """What differs between the strengths.  Ranges of integers include both ends; noise levels are in 1/255."""

    blurs: int
    blur_scale: float  # on the kernels' variances and sigmas
    wide_sizes: tuple[int, ...]  # kernel sizes of turned ellipses
    round_sizes: tuple[int, ...]  # and of circles
    resize_chance: float  # of a resize to a random size, rather than blur and stride
    noise: tuple[int, int]
    jpeg: tuple[int, int]
    shot: tuple[float, float]  # camera noise; both ranges give about the same noise in the picture as `noise`


FULL = Strength(2, 1.0, tuple(range(7, 26, 2)), tuple(range(7, 26, 2)), 0.75, (2, 25), (30, 95), (1e-4, 1e-2))
# The published light sizes 5..14 include even ones, which move the picture by half a pixel; those count as one larger.
LIGHT = Strength(1, 0.25, (5, 7, 7, 9, 9, 11, 11, 13, 13, 15), (5, 7, 7), 0.8, (1, 2), (80, 95), (1e-5, 1e-4))


def bsr(image: Float[Tensor, "3 H W"], scale: int, strength: Strength, noise: Noise) -> Float[Tensor, "3 h w"]:
    """Degrade a picture in [0, 1] to exactly 1/scale of its size; H and W are multiples of scale, noise has one row."""
    height, width = image.shape[-2:]
    x, factor = image, scale
    if scale == 4 and _chance(noise.at("halve"), 0.25):
        mode = "bicubic" if _chance(noise.at("halve_how"), 0.5) else _mode(noise.at("halve_mode"))
        x, factor = _resize(x, (max(1, height // 2), max(1, width // 2)), mode), 2
    steps = ["blur0", "blur1"][: strength.blurs] + ["shrink", "fit", "noise", "jpeg", "camera"]
    for name in _order(steps, noise.at("order")):
        stream = noise.at(name)
        if name.startswith("blur"):
            x = blur(x, draw_kernel(factor, strength, stream))
        elif name == "shrink":
            x = _shrink(x, factor, strength, stream)
        elif name == "fit":
            x = _resize(x, (height // scale, width // scale), _mode(stream))
        elif name == "noise":
            x = gaussian_noise(x, *strength.noise, stream)
        elif name == "jpeg" and _chance(stream.at("chance"), 0.9):
            x = jpeg(x, _between(*strength.jpeg, stream.at("quality")))
        elif name == "camera" and _chance(stream.at("chance"), 0.25):
            x = camera_noise(x, stream, strength.shot)
    return jpeg(x, _between(*strength.jpeg, noise.at("last_jpeg")))


def draw_kernel(factor: int, strength: Strength, noise: Noise) -> Float[Tensor, "s s"]:
    """Half the time a turned ellipse with variances up to 4 + factor, else a circle with sigma up to 2 + factor / 5."""
    kind, first, second, turn = noise.at("shape").uniform((4,))[0].tolist()
    if kind < 0.5:
        size = _pick(strength.wide_sizes, noise.at("size"))
        limit = strength.blur_scale * (4 + factor)
        return gaussian_kernel(size, (limit * first, limit * second), math.pi * turn)
    size = _pick(strength.round_sizes, noise.at("size"))
    sigma = strength.blur_scale * (2 + 0.2 * factor) * first
    return gaussian_kernel(size, (sigma**2, sigma**2))


def gaussian_noise(x: Float[Tensor, "3 h w"], low: int, high: int, noise: Noise) -> Float[Tensor, "3 h w"]:
    """Of level low..high (in 1/255): 40 % of colour, 40 % grey, 20 % with a random covariance of the channels."""
    kind = float(noise.at("kind").uniform())
    level = _between(low, high, noise.at("level")) / 255
    draws = noise.at("draws")
    if kind < 0.4:
        extra = level * draws.normal((1, *x.shape[1:]))[0]
    elif kind < 0.8:
        extra = level * draws.normal(x.shape)[0]
    else:  # covariance (high / 255)^2 Q^T diag(d) Q with Q orthogonal and d uniform
        d = noise.at("spectrum").uniform((3,))[0]
        q = torch.linalg.qr(noise.at("basis").normal((3, 3))[0].double())[0].float()
        mix = q.T @ (high / 255 * d.sqrt())[:, None].mul(q)  # the symmetric root
        extra = torch.einsum("ij,jhw->ihw", mix, draws.normal(x.shape)[0])
    return (x + extra).clamp(0, 1)


def jpeg(x: Float[Tensor, "3 h w"], quality: int) -> Float[Tensor, "3 h w"]:
    """Through a JPEG file of the given quality, in [0, 1]."""
    pixels = (x.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        decoded = np.array(Image.open(file))
    return torch.from_numpy(decoded).permute(2, 0, 1).float() / 255


def _shrink(x: Tensor, factor: int, strength: Strength, noise: Noise) -> Tensor:
    if _chance(noise.at("how"), strength.resize_chance):
        by = 1 + (2 * factor - 1) * float(noise.at("by").uniform())
        size = (max(1, int(x.shape[-2] / by)), max(1, int(x.shape[-1] / by)))
        return _resize(x, size, _mode(noise.at("mode")))
    sigma = 0.1 + (0.6 * factor - 0.1) * float(noise.at("sigma").uniform())
    return strided(x, factor, sigma)


def strided(x: Float[Tensor, "3 h w"], factor: int, sigma: float) -> Tensor:
    """Gaussian blur around the middle of every block of factor x factor pixels: the picture stays where it is."""
    middle = (factor - 1) / 2
    kernel = gaussian_kernel(25, (sigma**2, sigma**2), centre=(middle, middle))
    return blur(x, kernel)[..., ::factor, ::factor].clamp(0, 1)


def _order(steps: list[str], noise: Noise) -> list[str]:
    """A random order in which the fit to the final size comes after the shrinking."""
    order = [steps[i] for i in noise.uniform((len(steps),))[0].argsort().tolist()]
    shrink, fit = order.index("shrink"), order.index("fit")
    if fit < shrink:
        order[shrink], order[fit] = "fit", "shrink"
    return order


def _resize(x: Tensor, size: tuple[int, int], mode: Resize) -> Tensor:
    return resize(x[None], size, mode)[0].clamp(0, 1)  # bicubic overshoots


def _mode(noise: Noise) -> Resize:
    return MODES[_between(0, len(MODES) - 1, noise)]


def _pick(values: tuple[int, ...], noise: Noise) -> int:
    return values[_between(0, len(values) - 1, noise)]


def _between(low: int, high: int, noise: Noise) -> int:
    return int(noise.integers(low, high + 1))


def _chance(noise: Noise, probability: float) -> bool:
    return float(noise.uniform()) < probability

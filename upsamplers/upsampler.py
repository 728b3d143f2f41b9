"""The upsampler: a diffusion model from a low-resolution picture to one `scale` times larger (unCLIP 2.2)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unclip.checkpoint import Part
from unclip.config import Config
from unclip.data.pictures import check_range
from unclip.diffusion.denoiser import Denoiser, Norm, Predicts, Weighting
from unclip.diffusion.guidance import classifier_free, threshold
from unclip.diffusion.samplers import run
from unclip.diffusion.schedule import ScheduleConfig
from unclip.nn.unet import UNetConfig
from unclip.randomness import Noise
from unclip.types import Cond, Losses, Sampling

from .corruption import CorruptionConfig, crop_pairs, degrade, mod_crop
from .network import UNET_OUTPUT, LastStep, Output, UpsamplerNetwork


class UpsamplerConfig(Config, frozen=True, kw_only=True):
    """The defaults are the paper's 64 -> 256 (Table 3)."""

    scale: int = 4
    unet: UNetConfig = UNetConfig(in_channels=6, channels=320, depth=3, multiple=(1, 2, 3, 4), dropout=0.1)
    schedule: ScheduleConfig = ScheduleConfig(name="cosine")
    predicts: Predicts = "eps"
    output: Output = "image"  # or what is added to the resized picture; or that, and parts of low-resolution pixels
    weighting: Weighting = "none"
    norm: Norm = "l2"  # of the training error; l1 and l1_gradient leave flat areas flat
    resize: Literal["bicubic", "bilinear"] = "bicubic"  # of the low-resolution input
    first_timestep: Literal[0, 1] = 1  # what the network sees for t = 1; public weights count from 0
    last_step: LastStep = "shared"  # what starts at t = 1: by the same network, or by one of its own (Karlo)
    corruption: CorruptionConfig = CorruptionConfig(kind="blur", probability=0.5)
    crop: float = 0.25  # training crops' part of the target's shorter side
    crops_per_image: int = 1  # more crops share the cost of degrading one picture
    sampling: Sampling = Sampling(sampler="ddim", steps=27, threshold="static")

    def __post_init__(self) -> None:
        if self.scale < 2:
            raise ValueError(f"scale is {self.scale}; an upsampler makes pictures at least 2 times larger")
        if (self.unet.in_channels, self.unet.out_channels) != (6, UNET_OUTPUT[self.output]):
            given, asked = f"{self.unet.in_channels} -> {self.unet.out_channels}", f"6 -> {UNET_OUTPUT[self.output]}"
            raise ValueError(
                f"unet has channels {given}; an upsampler sees noisy and low-resolution picture, and with output "
                f"{self.output!r} makes {UNET_OUTPUT[self.output]} channels: {asked}"
            )
        if self.unet.context_width is not None:
            raise ValueError("unet.context_width is given, but upsamplers take no context; leave it out")
        if self.output != "image" and self.predicts != "x0":
            raise ValueError(
                f"output {self.output!r} is made of pictures, so predicts must be 'x0', not {self.predicts!r}"
            )
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop is {self.crop}; it is a part of the picture's side, above 0 and at most 1")
        if self.crops_per_image < 1:
            raise ValueError(f"crops_per_image is {self.crops_per_image}; it must be at least 1")
        _check_sampling(self.sampling)

    def make_pairs(
        self, image: Float[Tensor, "3 H W"], noise: Noise
    ) -> tuple[Float[Tensor, "n 3 s s"], Float[Tensor, "n 3 S S"]]:
        """Training crops (low, high) of one whole picture, n = crops_per_image; for data workers.  noise: one row.

        Offsets are multiples of lcm(scale, patch), so that crops fall on whole low-resolution pixels and on the
        patches that the network sees in a whole picture.
        """
        grid = math.lcm(self.scale, self.unet.patch)
        high = mod_crop(image.cpu(), self.scale)
        low = degrade(high, self.scale, self.corruption, noise.at("degrade"))
        side = min(high.shape[-2:])
        whole = math.lcm(grid, self.unet.multiple_of)
        size = int(side * self.crop) // whole * whole or min(whole, side // grid * grid)
        if not size:
            raise ValueError(
                f"a picture of {image.shape[-2]}x{image.shape[-1]} has no room for a crop of {grid}x{grid}"
            )
        return crop_pairs(low, high, self.scale, size, grid, self.crops_per_image, noise.at("crop"))


class Upsampler(Part[UpsamplerConfig]):
    """P(x_high | x_low).  Unconditional otherwise: captions brought no benefit (unCLIP 2.2)."""

    config_class = UpsamplerConfig

    def __init__(self, config: UpsamplerConfig):
        super().__init__()
        self.config = config
        self.scale = config.scale
        self.schedule = config.schedule.build()
        self.network = UpsamplerNetwork(
            config.unet, config.scale, config.output, config.resize, config.first_timestep, config.last_step
        )
        self.denoiser = Denoiser(self.network, self.schedule, config.predicts)
        self.turns = ("network.unet", "network.last_unet") if config.last_step == "own" else ()

    def loss(self, images: Float[Tensor, "b 3 H W"], cond: Cond | None = None, *, noise: Noise) -> Losses:
        """Degrade whole pictures ([-1, 1]), crop, and denoise the crops; one loss per crop, picture by picture."""
        _refuse(cond)
        _check_images(images, noise, "images")
        rows = [self.config.make_pairs(image, noise[i : i + 1].at("pair")) for i, image in enumerate(images)]
        low, high = (torch.cat(crops) for crops in zip(*rows))
        return self.loss_pairs(low, high, noise=noise.repeat(self.config.crops_per_image))

    def loss_pairs(self, low: Float[Tensor, "b 3 h w"], high: Float[Tensor, "b 3 H W"], *, noise: Noise) -> Losses:
        """The loss of pairs prepared beforehand (`config.make_pairs`), one per row of noise."""
        _check_images(low, noise, "low")
        if high.shape[-2:] != (low.shape[-2] * self.scale, low.shape[-1] * self.scale) or len(high) != len(low):
            raise ValueError(f"low {tuple(low.shape)} times {self.scale} does not make high {tuple(high.shape)}")
        low, high = low.to(self.device), high.to(self.device)
        t = noise.at("t").integers(1, self.schedule.T + 1)
        eps = noise.at("eps").normal(high.shape[1:]).to(high)
        return self.denoiser.loss(high, t, eps, self.network.encode(low), self.config.weighting, norm=self.config.norm)

    @torch.no_grad()
    def sample(
        self,
        low_res: Float[Tensor, "b 3 h w"],
        cond: Cond | None = None,
        *,
        noise: Noise,
        sampling: Sampling | None = None,
        x_t: Float[Tensor, "b 3 H W"] | None = None,
    ) -> Float[Tensor, "b 3 H W"]:
        """Pictures `scale` times larger, for low-resolution ones of any size.  x_t: noise to start from, else drawn."""
        _refuse(cond)
        _check_images(low_res, noise, "low_res")
        sampling = sampling or self.config.sampling
        _check_sampling(sampling)
        encoded = self.network.encode(low_res.float().to(self.device))
        if x_t is None:
            x_t = noise.at("x_T").normal(encoded.resized.shape[1:])
        elif x_t.shape != encoded.resized.shape:
            raise ValueError(f"x_t has shape {tuple(x_t.shape)}; the target size needs {tuple(encoded.resized.shape)}")
        denoise = classifier_free(self.denoiser, encoded, None, scale=1.0)
        denoise = threshold(denoise, self.schedule, sampling.threshold)
        x = run(denoise, x_t.to(encoded.resized), self.schedule, sampling, noise=noise.at("steps"))
        return x.clamp(-1, 1)


def _refuse(cond: Cond | None) -> None:
    given = [name for name, value in zip(Cond._fields, cond or ()) if value is not None]
    if given:
        raise ValueError(f"this upsampler sees low-resolution pictures only; it was not built for {', '.join(given)}")


def _check_images(images: Tensor, noise: Noise, name: str) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or 0 in images.shape:
        raise ValueError(f"{name} must be float (b, 3, h, w) in [-1, 1]; got {images.dtype} {tuple(images.shape)}")
    check_range(images)
    noise.check(len(images), "pictures")


def _check_sampling(sampling: Sampling) -> None:
    if sampling.guidance != 1 or sampling.interval is not None:
        raise ValueError(f"guidance is {sampling.guidance}, but an upsampler has no condition to guide; leave it at 1")
    if sampling.sampler == "ddpm" and sampling.variance not in ("small", "large"):
        raise ValueError(f"variance is {sampling.variance!r}, which upsamplers do not have; use 'small' or 'large'")

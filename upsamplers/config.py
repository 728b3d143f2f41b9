"""Upsampler configuration."""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from unclip.conditions import Conditions
from unclip.config import AtMost100, Config
from unclip.diffusion.denoiser import Norm, Predicts, Weighting
from unclip.diffusion.schedule import ScheduleConfig
from unclip.nn.unet import UNetConfig
from unclip.randomness import Noise
from unclip.sampling import Sampling

from .corruption import CorruptionConfig, crop_pairs, degrade, mod_crop

LastStep = Literal["shared", "own"]
Output = Literal["image", "residual", "mixture"]
CANDIDATES = 10  # of a mixture: the corrected picture, then 3 x 3 low-resolution pixels


class UpsamplerConfig(Config, frozen=True, kw_only=True):
    """The defaults are the paper's 64 -> 256 (Table 3).  With `conditions.text` it is GLIDE's; unCLIP gained nothing by it."""

    scale: AtMost100 = 4
    unet: UNetConfig = UNetConfig(channels=320, depth=3, multiple=(1, 2, 3, 4), dropout=0.1)
    conditions: Conditions = Conditions()
    schedule: ScheduleConfig = ScheduleConfig(name="cosine")
    predicts: Predicts = "eps"
    variance: Literal["fixed", "learned"] = "fixed"
    output: Output = "image"  # or what is added to the resized picture; or that, and weights of low-resolution pixels
    weighting: Weighting = "none"
    norm: Norm = "l2"  # of the training error; l1 and l1_gradient leave flat areas flat
    resize: Literal["bicubic", "bilinear"] = "bicubic"  # of the low-resolution input
    low_res: Literal["float", "8bit"] = "float"  # what sampling reads: as it comes, or rounded as a file would be (GLIDE)
    noise_scale: float = 1.0  # of the noise that sampling starts from; GLIDE's 0.997 makes smoother pictures
    first_timestep: Literal[0, 1] = 1  # what the network sees for t = 1; public weights count from 0
    last_step: LastStep = "shared"  # what starts at t = 1: by the same network, or by one of its own (Karlo)
    corruption: CorruptionConfig = CorruptionConfig(kind="blur", probability=0.5)
    crop: float = 0.25  # training crops' part of the target's shorter side
    crops_per_image: AtMost100 = 1  # more crops share the cost of degrading one picture
    sampling: Sampling = Sampling(sampler="ddim", steps=27, threshold="static")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale < 2:
            raise ValueError(f"scale is {self.scale}; an upsampler makes pictures at least 2 times larger")
        self.unet.check_context(self.conditions.context_width)
        if self.conditions.image_embed is not None:
            raise ValueError("an upsampler takes no image_embed: what an embedding tells, the low-resolution picture shows")
        if self.output != "image" and self.predicts != "x0":
            raise ValueError(f"output {self.output!r} is made of pictures, so predicts must be 'x0', not {self.predicts!r}")
        if self.output != "image" and self.variance == "learned":
            raise ValueError(f"output {self.output!r} has no channels for a learned variance; let output be 'image'")
        if self.variance == "learned" and self.norm != "l2":
            raise ValueError(f"norm is {self.norm!r}, but a learned variance goes with squared errors: let norm be 'l2'")
        if self.last_step == "own" and self.conditions.takes:
            raise ValueError("last_step is 'own', whose network takes no conditions: leave conditions out, or let it be 'shared'")
        if not 0 < self.noise_scale <= 2:
            raise ValueError(f"noise_scale is {self.noise_scale}; it is above 0 and about 1, as GLIDE's 0.997")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop is {self.crop}; it is a part of the picture's side, above 0 and at most 1")
        if self.crops_per_image < 1:
            raise ValueError(f"crops_per_image is {self.crops_per_image}; it must be at least 1")
        self.allow(self.sampling)
        self.schedule.check_steps("sampling", self.sampling.steps)

    @property
    def in_channels(self) -> int:
        """Of the UNet: the noisy picture, what conditions put beside it, the resized low-resolution picture."""
        return 6 + self.conditions.channels

    @property
    def out_channels(self) -> int:
        """Of the UNet: the picture, and what makes a mixture or a learned variance."""
        return 6 if self.variance == "learned" else {"image": 3, "residual": 3, "mixture": 3 + CANDIDATES}[self.output]

    def allow(self, sampling: Sampling) -> None:
        """ValueError for guidance without a condition, or a variance that the upsampler does not have."""
        if (sampling.guidance != 1 or sampling.interval is not None) and not self.conditions.takes:
            raise ValueError(f"guidance is {sampling.guidance}, but an upsampler has no condition to guide; leave it at 1")
        known = ("small", "large", *(["learned"] if self.variance == "learned" else []))
        if sampling.sampler == "ddpm" and sampling.variance not in known:
            raise ValueError(f"variance is {sampling.variance!r}, which this upsampler does not have; use {' or '.join(known)}")

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
            raise ValueError(f"a picture of {image.shape[-2]}x{image.shape[-1]} has no room for a crop of {grid}x{grid}")
        return crop_pairs(low, high, self.scale, size, grid, self.crops_per_image, noise.at("crop"))

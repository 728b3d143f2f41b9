"""Decoder configuration."""

from __future__ import annotations

from typing import Literal

from unclip.conditions import Conditions
from unclip.config import Config, Pixels
from unclip.diffusion.denoiser import Predicts, Weighting
from unclip.diffusion.schedule import ScheduleConfig
from unclip.nn.unet import UNetConfig
from unclip.sampling import Inversion, Sampling


class DecoderConfig(Config, frozen=True, kw_only=True):
    """`conditions` make it unCLIP's decoder (image_embed, perhaps text), GLIDE's (text alone) or ADM's (label)."""

    image_size: Pixels = 64
    unet: UNetConfig
    conditions: Conditions = Conditions()
    schedule: ScheduleConfig = ScheduleConfig()
    predicts: Predicts = "eps"
    variance: Literal["fixed", "learned"] = "learned"
    weighting: Weighting = "none"
    first_timestep: Literal[0, 1] = 1  # what the network sees for t = 1; public weights count from 0
    sampling: Sampling = Sampling(sampler="ddpm", steps=250, variance="learned", threshold="static")
    inversion: Inversion = Inversion()

    def __post_init__(self) -> None:
        super().__post_init__()
        grid = self.unet.multiple_of
        if self.image_size < 1 or self.image_size % grid:
            raise ValueError(f"image_size is {self.image_size}; pictures of this UNet have a side that divides by {grid}")
        self.unet.check_context(self.conditions.context_width)
        self.allow(self.sampling)
        self.schedule.check_steps("sampling", self.sampling.steps)
        climbed = self.schedule.check_steps("inversion", self.inversion.steps)
        if self.inversion.lowest >= climbed[0]:
            raise ValueError(f"inversion: lowest is {self.inversion.lowest}, but its steps climb to {climbed[0]} only")

    @property
    def in_channels(self) -> int:
        """Of the UNet: the noisy picture, and what conditions put beside it."""
        return 3 + self.conditions.channels

    @property
    def out_channels(self) -> int:
        """Of the UNet: the picture, and the variance where it is learned."""
        return 6 if self.variance == "learned" else 3

    def allow(self, sampling: Sampling) -> None:
        """ValueError for a variance that the decoder does not have."""
        if sampling.sampler != "ddpm":
            return
        if sampling.variance == "learned" and self.variance == "fixed":
            raise ValueError("sampling asks for the learned variance, but the decoder's variance is 'fixed'")
        if sampling.variance == "analytic":
            raise ValueError("a decoder has no analytic variance; sample with variance 'small', 'large' or a learned one")

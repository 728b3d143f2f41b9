"""P(x | z_i, y): a diffusion model that draws a picture for a CLIP image embedding and, optionally, its caption."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unclip.checkpoint import Part
from unclip.config import Config
from unclip.diffusion.denoiser import Denoiser, Predicts, Weighting
from unclip.diffusion.guidance import classifier_free, threshold
from unclip.diffusion.samplers import ddim_invert, run
from unclip.diffusion.schedule import ScheduleConfig, spaced
from unclip.nn.unet import UNetConfig
from unclip.randomness import Noise
from unclip.types import Cond, Denoise, Inversion, Losses, Sampling, Text

from .network import DecoderNetwork
from .text_encoder import TextEncoderConfig


class DecoderConfig(Config, frozen=True, kw_only=True):
    image_size: int = 64
    unet: UNetConfig
    embed_dim: int  # of the CLIP image embedding
    embedding: Literal["unit", "raw"] = "unit"
    image_tokens: int = 4
    text: TextEncoderConfig | None = None  # None = conditioned on the embedding alone
    schedule: ScheduleConfig = ScheduleConfig()
    predicts: Predicts = "eps"
    variance: Literal["fixed", "learned"] = "learned"
    weighting: Weighting = "none"
    first_timestep: Literal[0, 1] = 1  # what the network sees for t = 1; public weights count from 0
    image_drop: float = 0.1
    text_drop: float = 0.5
    sampling: Sampling = Sampling(sampler="ddpm", steps=250, variance="learned", threshold="static")
    inversion: Inversion = Inversion()

    def __post_init__(self) -> None:
        expected = 6 if self.variance == "learned" else 3
        if (self.unet.in_channels, self.unet.out_channels) != (3, expected):
            raise ValueError(
                f"with variance {self.variance!r} the UNet has in_channels 3 and out_channels {expected}, "
                f"not {self.unet.in_channels} and {self.unet.out_channels}"
            )
        if self.unet.context_width is None:
            raise ValueError("a decoder's UNet needs context_width: the embedding enters as extra context tokens")
        self.allow(self.sampling)

    def allow(self, sampling: Sampling) -> None:
        """ValueError for a variance that the decoder does not have."""
        if sampling.sampler != "ddpm":
            return
        if sampling.variance == "learned" and self.variance == "fixed":
            raise ValueError("sampling asks for the learned variance, but the decoder's variance is 'fixed'")
        if sampling.variance == "analytic":
            raise ValueError("a decoder has no analytic variance; sample with variance 'small', 'large' or a learned one")


class Decoder(Part[DecoderConfig]):
    """unCLIP 2.1: GLIDE with the embedding as four extra context tokens and an addition to the timestep embedding."""

    config_class = DecoderConfig

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.schedule = config.schedule.build()
        self.network = DecoderNetwork(config)
        self.image_size = config.image_size
        self.takes = ("image_embed",) if config.text is None else ("image_embed", "text")
        self.denoiser = Denoiser(self.network, self.schedule, config.predicts, config.variance == "learned")

    def loss(self, images: Float[Tensor, "b 3 h w"], cond: Cond, *, noise: Noise) -> Losses:
        """Denoising loss per picture; the embedding is dropped in 10 % of them and, independently, the caption in 50 %."""
        self._check(cond, len(images))
        noise.check(len(images), "pictures")
        drops = noise.at("drop").uniform((2,)).to(images.device)
        encoded = self.network.encode(
            cond,
            len(images),
            drop_image=drops[:, 0] < self.config.image_drop,
            drop_text=drops[:, 1] < self.config.text_drop,
        )
        t = noise.at("t").integers(1, self.schedule.T + 1)
        eps = noise.at("eps").normal(images.shape[1:]).to(images.device)
        return self.denoiser.loss(images, t, eps, encoded, self.config.weighting)

    @torch.no_grad()
    def sample(
        self,
        cond: Cond,
        *,
        noise: Noise,
        x_t: Tensor | None = None,
        t: int | None = None,
        sampling: Sampling | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Draw one picture per noise stream.  `x_t` (b, 3, h, w) at timestep `t` starts there instead of at pure noise."""
        sampling = sampling or self.config.sampling
        if x_t is None:
            if t is not None:
                raise ValueError(f"t is {t}, but there is no x_t that lives there: give both, or neither for pure noise")
            x_t = noise.at("x_T").normal((3, self.config.image_size, self.config.image_size))
        noise.check(len(x_t), "pictures")
        denoise = self.denoise(cond, len(x_t), sampling)
        x = x_t.to(self.device, torch.float32)
        return run(denoise, x, self.schedule, sampling, noise=noise.at("steps"), t=t).clamp(-1, 1)

    @torch.no_grad()
    def invert(
        self, images: Float[Tensor, "b 3 h w"], cond: Cond, *, inversion: Inversion | None = None
    ) -> tuple[Float[Tensor, "b 3 h w"], tuple[int, ...]]:
        """DDIM inversion at guidance 1: x_t and the timesteps, descending from where x_t lives, that lead back (ADM App. F)."""
        inversion = inversion or self.config.inversion
        back = self.way_back(inversion)
        denoise = self.denoise(cond, len(images), Sampling())
        images = images.to(self.device, torch.float32)
        x_t, _ = ddim_invert(denoise, images, self.schedule, back, refine=inversion.refine)
        return x_t, back

    def way_back(self, inversion: Inversion) -> tuple[int, ...]:
        """The timesteps of an inversion, descending from where its x_t lives to where the picture is read.

        An eps-predicting decoder stops at the last listed timestep below T, where one step multiplies errors least.
        """
        listed = spaced(self.schedule.T, inversion.steps)
        if self.config.predicts == "eps" and listed[0] == self.schedule.T:
            listed = listed[1:]
        if inversion.lowest >= listed[0]:
            raise ValueError(f"lowest is {inversion.lowest}, where the picture is read; it must lie below {listed[0]}, the end")
        return inversion.timesteps(listed)

    def denoise(self, cond: Cond, count: int, sampling: Sampling) -> Denoise:
        """The conditions bound, guided and thresholded as `sampling` says: (x_t, t) -> Prediction."""
        self._check(cond, count)
        self.config.allow(sampling)
        encoded, null = self.network.encode(cond, count), None
        if sampling.guidance != 1:
            null = self.network.encode(Cond(), 1)
        guided = classifier_free(self.denoiser, encoded, null, sampling.guidance, sampling.interval)
        return threshold(guided, self.schedule, sampling.threshold)

    def set_null(self, text: Text) -> None:
        """Store `clip.encode_text([""])` as what no caption is (config.text.null "empty")."""
        if self.network.text is None:
            raise ValueError("this decoder reads no captions, so it has no empty one")
        self.network.text.set_null(text)

    def resolve(self, sampling: Sampling | None = None) -> Sampling:
        """`sampling`, or the decoder's own, its steps the timesteps that are visited; pure noise lives at the first."""
        sampling = sampling or self.config.sampling
        self.config.allow(sampling)
        return sampling.replace(steps=spaced(self.schedule.T, sampling.steps))

    def _check(self, cond: Cond, count: int) -> None:
        for name in cond._fields:
            if getattr(cond, name) is not None and name not in self.takes:
                raise ValueError(f"this decoder was not built for the condition {name!r}; it takes {', '.join(self.takes)}")
        embed = cond.image_embed
        if embed is not None and embed.shape != (count, self.config.embed_dim):
            raise ValueError(
                f"the decoder expects image embeddings of shape ({count}, {self.config.embed_dim}), got {tuple(embed.shape)}: "
                "were they made by another CLIP?"
            )

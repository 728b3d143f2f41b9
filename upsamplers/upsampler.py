"""The upsampler: a diffusion model from a low-resolution picture to one `scale` times larger (unCLIP 2.2)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unclip.checkpoint import Component
from unclip.clip.tokenizer import tokenized
from unclip.conditions import Drops
from unclip.data.images import check_images
from unclip.diffusion.denoiser import Denoiser
from unclip.diffusion.guidance import classifier_free, threshold
from unclip.diffusion.samplers import run
from unclip.diffusion.schedule import spaced
from unclip.images import eight_bit
from unclip.randomness import Noise, check_noise
from unclip.sampling import Sampling
from unclip.types import Cond, Losses, Text, Wrap

from .config import UpsamplerConfig
from .network import Encoded, UpsamplerNetwork


class Upsampler(Component[UpsamplerConfig]):
    """P(x_high | x_low), and perhaps a caption, a label, known pixels; unCLIP's sees the low resolution alone (2.2)."""

    config_class = UpsamplerConfig
    task_class = "UpsamplerTask"

    def __init__(self, config: UpsamplerConfig):
        super().__init__()
        self.config = config
        self.scale = config.scale
        self.takes = config.conditions.takes
        self.schedule = config.schedule.build()
        self.network = UpsamplerNetwork(config)
        self.denoiser = Denoiser(self.network, self.schedule, config.predicts, config.variance == "learned")
        self.offload_groups = ("network.unet", "network.last_unet") if config.last_step == "own" else ()

    def loss(self, images: Float[Tensor, "b 3 H W"], cond: Cond | None = None, *, noise: Noise) -> Losses:
        """Degrade whole pictures ([-1, 1]), crop, and denoise the crops; one loss per crop, picture by picture."""
        low, high, cond = self.pairs(images, cond or Cond(), noise)
        return self.loss_pairs(low, high, cond, noise=noise.repeat(self.config.crops_per_image))

    def pairs(self, images: Float[Tensor, "b 3 H W"], cond: Cond, noise: Noise) -> tuple[Tensor, Tensor, Cond]:
        """What `loss` gives to `loss_pairs`: crops (low, high), n of each picture, on the CPU, and their conditions."""
        self.network.conditions.check(cond, len(images))
        if cond.known is not None:
            raise ValueError("of known pixels the crops' own are needed: prepare pairs with config.make_pairs, then loss_pairs")
        _check_images(images, noise, "images")
        rows = [self.config.make_pairs(image, noise[i : i + 1].at("pair")) for i, image in enumerate(images)]
        low, high = (torch.cat(crops) for crops in zip(*rows))
        n = self.config.crops_per_image
        label = None if cond.label is None else cond.label.repeat_interleave(n)
        return low, high, cond._replace(text=cond.text and cond.text.repeat(n), label=label)

    def loss_pairs(
        self, low: Float[Tensor, "b 3 h w"], high: Float[Tensor, "b 3 H W"], cond: Cond | None = None, *, noise: Noise
    ) -> Losses:
        """The loss of pairs prepared beforehand (`config.make_pairs`), one per row of noise; conditions are dropped at random."""
        _check_images(low, noise, "low")
        if high.shape[-2:] != (low.shape[-2] * self.scale, low.shape[-1] * self.scale) or len(high) != len(low):
            raise ValueError(f"low {tuple(low.shape)} times {self.scale} does not make high {tuple(high.shape)}")
        low, high = low.to(self.device), high.to(self.device)
        drops = self.config.conditions.drops(noise.at("drop"), self.device)
        t = noise.at("t").integers(1, self.schedule.T + 1)
        eps = noise.at("eps").normal(high.shape[1:]).to(high)
        return self.denoiser.loss(high, t, eps, self._encode(low, cond, drops), self.config.weighting, norm=self.config.norm)

    @torch.no_grad()
    def sample(
        self,
        low_res: Float[Tensor, "b 3 h w"],
        cond: Cond | None = None,
        *,
        noise: Noise,
        sampling: Sampling | None = None,
        x_t: Float[Tensor, "b 3 H W"] | None = None,
        negative: Cond | None = None,
        wrap: Wrap | None = None,
    ) -> Float[Tensor, "b 3 H W"]:
        """Pictures `scale` times larger, for low-resolution ones of any size.  x_t: noise to start from, else drawn.

        negative: what guidance leads away from, in place of the null.  wrap: applied to the guided and thresholded denoiser.
        """
        cond = cond or Cond()
        self.network.conditions.check(cond, len(low_res))
        _check_images(low_res, noise, "low_res")
        sampling = sampling or self.config.sampling
        self.config.allow(sampling)
        low_res = low_res.float().to(self.device)
        low_res = eight_bit(low_res) if self.config.low_res == "8bit" else low_res
        encoded, null = self._encode(low_res, cond), None
        if x_t is None:
            x_t = self.config.noise_scale * noise.at("x_T").normal(encoded.resized.shape[1:])
        elif x_t.shape != encoded.resized.shape:
            raise ValueError(f"x_t has shape {tuple(x_t.shape)}; the target size needs {tuple(encoded.resized.shape)}")
        if sampling.guidance != 1:
            null = self._encode(low_res, (negative or Cond())._replace(known=cond.known))
        denoise = classifier_free(self.denoiser, encoded, null, sampling.guidance, sampling.interval)
        denoise = threshold(denoise, self.schedule, sampling.threshold)
        denoise = denoise if wrap is None else wrap(denoise)
        x = run(denoise, x_t.to(encoded.resized), self.schedule, sampling, noise=noise.at("steps"))
        return x.clamp(-1, 1)

    @property
    def sampling(self) -> Sampling:
        """How it samples by default."""
        return self.config.sampling

    def describe(self) -> str:
        """How it samples by default, in a few words."""
        return self.sampling.describe()

    def resolve(self, sampling: Sampling | None = None) -> Sampling:
        """`sampling`, or the upsampler's own, its steps the timesteps that are visited."""
        sampling = sampling or self.config.sampling
        self.config.allow(sampling)
        return sampling.replace(steps=spaced(self.schedule.T, sampling.steps))

    def set_null(self, text: Text) -> None:
        """Store `clip.encode_text([""])` as what no caption is (conditions.text.null "empty")."""
        if self.network.conditions.text is None:
            raise ValueError("this upsampler reads no captions, so it has no empty one")
        self.network.conditions.text.reader.set_null(text)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes; () without labels, or where they have no names."""
        return () if self.config.conditions.label is None else self.config.conditions.label.names

    def _encode(self, low: Tensor, cond: Cond | None, drops: Drops | None = None) -> Encoded:
        return self.network.encode(low, tokenized(cond or Cond(), self.config.conditions.text), drops)


def _check_images(images: Tensor, noise: Noise, name: str) -> None:
    check_images(images, name)
    check_noise(noise, len(images), "pictures")

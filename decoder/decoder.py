"""P(x | z_i, y): a diffusion model that draws a picture for a CLIP image embedding, its caption, a label, around known pixels."""

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
from unclip.diffusion.samplers import ddim_invert, run
from unclip.diffusion.schedule import spaced
from unclip.randomness import Noise, check_noise
from unclip.sampling import Inversion, Sampling
from unclip.types import Cond, Denoise, Losses, Text, Wrap, rows_of

from .config import DecoderConfig
from .network import DecoderNetwork, Encoded


class Decoder(Component[DecoderConfig]):
    """ADM with a label, GLIDE with a caption; unCLIP adds the embedding as four context tokens and to the timestep's (2.1)."""

    config_class = DecoderConfig
    task_class = "DecoderTask"

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.schedule = config.schedule.build()
        self.network = DecoderNetwork(config)
        self.image_size = config.image_size
        self.takes = config.conditions.takes
        self.denoiser = Denoiser(self.network, self.schedule, config.predicts, config.variance == "learned")

    def loss(self, images: Float[Tensor, "b 3 h w"], cond: Cond, *, noise: Noise) -> Losses:
        """Denoising loss per picture; each condition is dropped independently of the others (unCLIP 2.1: 10 % and 50 %)."""
        check_noise(noise, len(images), "pictures")
        check_images(images)
        encoded = self._encode(cond, len(images), self.config.conditions.drops(noise.at("drop"), images.device))
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
        negative: Cond | None = None,
        wrap: Wrap | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Draw one picture per noise stream.  `x_t` (b, 3, h, w) at timestep `t` starts there instead of at pure noise.

        negative: what guidance leads away from, in place of the null.  wrap: applied to the guided and thresholded denoiser.
        """
        sampling = sampling or self.config.sampling
        if (count := rows_of(cond)) is not None:
            check_noise(noise, count, "pictures")
        if x_t is None:
            if t is not None:
                raise ValueError(f"t is {t}, but there is no x_t that lives there: give both, or neither for pure noise")
            x_t = noise.at("x_T").normal((3, self.config.image_size, self.config.image_size))
        check_noise(noise, len(x_t), "pictures")
        denoise = self.denoise(cond, len(x_t), sampling, negative)
        denoise = denoise if wrap is None else wrap(denoise)
        x = x_t.to(self.device, torch.float32)
        return run(denoise, x, self.schedule, sampling, noise=noise.at("steps"), t=t).clamp(-1, 1)

    @torch.no_grad()
    def invert(
        self,
        images: Float[Tensor, "b 3 h w"],
        cond: Cond,
        *,
        inversion: Inversion | None = None,
        wrap: Wrap | None = None,
    ) -> tuple[Float[Tensor, "b 3 h w"], tuple[int, ...]]:
        """DDIM inversion at guidance 1: x_t and the timesteps, descending from where x_t lives, that lead back (ADM App. F)."""
        inversion = inversion or self.config.inversion
        back = self.inverse_timesteps(inversion)
        denoise = self.denoise(cond, len(images), Sampling())
        denoise = denoise if wrap is None else wrap(denoise)
        images = images.to(self.device, torch.float32)
        x_t, _ = ddim_invert(denoise, images, self.schedule, back, refine=inversion.refine)
        return x_t, back

    def inverse_timesteps(self, inversion: Inversion) -> tuple[int, ...]:
        """The timesteps of an inversion, descending from where its x_t lives to where the picture is read.

        An eps-predicting decoder stops at the last listed timestep below T, where one step multiplies errors least.
        """
        listed = spaced(self.schedule.T, inversion.steps)
        if self.config.predicts == "eps" and listed[0] == self.schedule.T:
            listed = listed[1:]
        if inversion.lowest >= listed[0]:
            raise ValueError(f"lowest is {inversion.lowest}, where the picture is read; it must lie below {listed[0]}, the end")
        return inversion.timesteps(listed)

    def denoise(self, cond: Cond, count: int, sampling: Sampling, negative: Cond | None = None) -> Denoise:
        """The conditions bound, guided and thresholded as `sampling` says: (x_t, t) -> Prediction."""
        self.config.allow(sampling)
        encoded, null = self._encode(cond, count), None
        if sampling.guidance != 1:
            # Guidance leads towards the conditions; what is known of the picture both sides know.
            alone = negative is None and cond.known is None
            null = self._encode((negative or Cond())._replace(known=cond.known), 1 if alone else count)
        guided = classifier_free(self.denoiser, encoded, null, sampling.guidance, sampling.interval)
        return threshold(guided, self.schedule, sampling.threshold)

    def set_null(self, text: Text) -> None:
        """Store `clip.encode_text([""])` as what no caption is (conditions.text.null "empty")."""
        if self.network.conditions.text is None:
            raise ValueError("this decoder reads no captions, so it has no empty one")
        self.network.conditions.text.reader.set_null(text)

    def set_null_image(self, embed: Float[Tensor, "1 d"]) -> None:
        """Store the raw embedding that stands for none (conditions.image_embed.null "given")."""
        if self.network.conditions.image_embed is None:
            raise ValueError("this decoder reads no embeddings, so it has none to stand for nothing")
        self.network.conditions.image_embed.set_null(embed)

    @property
    def sampling(self) -> Sampling:
        """How it samples by default."""
        return self.config.sampling

    def describe(self) -> str:
        """How it samples by default, in a few words."""
        return self.sampling.describe()

    @property
    def inversion(self) -> Inversion:
        """How it inverts by default."""
        return self.config.inversion

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes; () without labels, or where they have no names."""
        return () if self.config.conditions.label is None else self.config.conditions.label.names

    def resolve(self, sampling: Sampling | None = None) -> Sampling:
        """`sampling`, or the decoder's own, its steps the timesteps that are visited; pure noise lives at the first."""
        sampling = sampling or self.config.sampling
        self.config.allow(sampling)
        return sampling.replace(steps=spaced(self.schedule.T, sampling.steps))

    def _encode(self, cond: Cond, count: int, drops: Drops | None = None) -> Encoded:
        return self.network.encode(tokenized(cond, self.config.conditions.text), count, drops)

"""Training task of an upsampler."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unclip.config import Config
from unclip.images import eight_bit
from unclip.metrics import psnr, sharpness
from unclip.randomness import Noise
from unclip.training.conditions import conditions_of, needs_clip, random_keep, read_fields, read_widths
from unclip.training.evaluation import losses, mean_losses
from unclip.training.task import Answers, Task, Widths, complete_null, name_classes, require
from unclip.types import Batch, Cond, ImageTextEncoder, Losses

from .config import UpsamplerConfig
from .filters import resize
from .upsampler import Upsampler


class UpsamplerTask(Task):
    """Whole high-resolution pictures in, losses of crops out.

    Batches hold `images` and what the upsampler takes: `labels`, and `text`, which a frozen `clip` may make of `captions`, or
    `captions` for a tokenizer of its own.  One that takes known pixels learns to fill holes drawn at random.
    """

    model: Upsampler

    def __init__(self, model: Upsampler, clip: ImageTextEncoder | None = None):
        super().__init__()
        if clip is not None and not needs_clip(model.config.conditions):
            raise ValueError("an upsampler that reads no CLIP states of captions is trained without a CLIP: leave clip out")
        self.model = model
        self._clip = [clip]  # in a list, so that the teacher is no submodule: neither trained nor saved

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        images, cond = self._images(batch), self._cond(batch)
        low, high, cond = self.model.pairs(images, cond, noise)
        noise = noise.repeat(self.model.config.crops_per_image)
        return self.model.loss_pairs(low, high, self._with_known(cond, high, noise), noise=noise)

    def validate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Losses, and of one crop of each picture, upsampled and by bicubic: squared error and sharpness, as 8-bit files."""
        low, high = self._crops(self._images(batch), noise)
        cond = self._with_known(self._cond(batch), high, noise)
        sampled = self.model.sample(low, cond, noise=noise.at("sample"))
        made = {"": sampled, "/bicubic": resize(low, (high.shape[-2], high.shape[-1]))}
        rows = losses(lambda noise: self.model.loss_pairs(low, high, cond, noise=noise), noise)
        for name, x in made.items():
            x = eight_bit(x.float().cpu())
            rows |= {f"mse{name}": 10 ** (-psnr(x, high) / 10), f"gradient{name}": sharpness(x)}
        return rows | {"gradient/true": sharpness(high)}

    def summarize(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """PSNR in dB of the error over all crops (single flat crops have none), sharpness as a part of the true crops'."""
        numbers = mean_losses(rows, self.model.schedule.T)
        for name in ("", "/bicubic"):
            numbers[f"psnr{name}"] = float(-10 * rows[f"mse{name}"].double().mean().log10())
        for name in ("", "/bicubic"):
            numbers[f"sharpness{name}"] = float(rows[f"gradient{name}"].double().sum() / rows["gradient/true"].double().sum())
        return numbers

    def sample_images(self, batch: Batch, noise: Noise) -> Float[Tensor, "n 3 h w"]:
        """Three pictures for each of the batch's first four: a degraded crop resized, upsampled, and the true one."""
        noise = noise[:4]
        low, high = self._crops(self._images(batch)[: len(noise)], noise)
        cond = self._with_known(self._cond(batch).rows(slice(len(noise))), high, noise)
        sampled = self.model.sample(low, cond, noise=noise).cpu()
        return torch.stack([self.model.network.encode(low).resized, sampled, high], dim=1).flatten(0, 1)

    @classmethod
    def reads(cls, config: Config) -> tuple[str, ...]:
        assert isinstance(config, UpsamplerConfig)
        return ("images", *read_fields(config.conditions))

    @classmethod
    def widths(cls, config: Config) -> Widths | None:
        assert isinstance(config, UpsamplerConfig)
        return read_widths(config.conditions)

    @classmethod
    def resolve(cls, config: Config, answers: Answers) -> Config:
        """With the names of the data's classes."""
        assert isinstance(config, UpsamplerConfig)
        return config.replace(conditions=name_classes(config.conditions, answers.classes))

    def complete(self, answers: Answers, fresh: bool) -> list[str]:
        """The null, where it is CLIP's empty caption."""
        return complete_null(self.model, answers)

    def _cond(self, batch: Batch) -> Cond:
        (clip,) = self._clip
        return conditions_of(batch, self.model.config.conditions, clip, type(self).__name__)

    def _with_known(self, cond: Cond, high: Float[Tensor, "b 3 S S"], noise: Noise) -> Cond:
        """With what is known of each crop, where the upsampler takes that."""
        if "known" not in self.model.takes:
            return cond
        return cond._replace(known=(high, random_keep(noise.at("known"), *high.shape[-2:])))

    def _images(self, batch: Batch) -> Float[Tensor, "b 3 H W"]:
        require(batch, ["images"], type(self).__name__)
        assert batch.images is not None
        return batch.images

    def _crops(self, images: Float[Tensor, "b 3 H W"], noise: Noise) -> tuple[Float[Tensor, "b 3 s s"], Float[Tensor, "b 3 S S"]]:
        """The first training pair of each picture, on the CPU."""
        rows = [self.model.config.make_pairs(image, noise[i : i + 1].at("pair")) for i, image in enumerate(images)]
        return torch.stack([low[0] for low, _ in rows]), torch.stack([high[0] for _, high in rows])

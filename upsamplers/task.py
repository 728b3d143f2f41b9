"""Training task of an upsampler."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unclip.config import Config
from unclip.images import eight_bit
from unclip.metrics import psnr, sharpness
from unclip.randomness import Noise
from unclip.training.evaluation import losses, mean_losses
from unclip.training.task import Task, require
from unclip.types import Batch, Losses

from .filters import resize
from .upsampler import Upsampler


class UpsamplerTask(Task):
    """Whole high-resolution pictures in, losses of crops out."""

    model: Upsampler

    def __init__(self, model: Upsampler):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        return self.model.loss(self._images(batch), noise=noise)

    def validate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Losses, and of one crop of each picture, upsampled and by bicubic: squared error and sharpness, as 8-bit files."""
        low, high = self._crops(self._images(batch), noise)
        made = {"": self.model.sample(low, noise=noise.at("sample")), "/bicubic": resize(low, (high.shape[-2], high.shape[-1]))}
        rows = losses(lambda noise: self.model.loss_pairs(low, high, noise=noise), noise)
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
        sampled = self.model.sample(low, noise=noise).cpu()
        return torch.stack([self.model.network.encode(low).resized, sampled, high], dim=1).flatten(0, 1)

    @classmethod
    def reads(cls, config: Config) -> tuple[str, ...]:
        return ("images",)

    def _images(self, batch: Batch) -> Float[Tensor, "b 3 H W"]:
        require(batch, ["images"], type(self).__name__)
        assert batch.images is not None
        return batch.images

    def _crops(self, images: Float[Tensor, "b 3 H W"], noise: Noise) -> tuple[Float[Tensor, "b 3 s s"], Float[Tensor, "b 3 S S"]]:
        """The first training pair of each picture, on the CPU."""
        rows = [self.model.config.make_pairs(image, noise[i : i + 1].at("pair")) for i, image in enumerate(images)]
        return torch.stack([low[0] for low, _ in rows]), torch.stack([high[0] for _, high in rows])

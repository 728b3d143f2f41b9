"""Training an upsampler."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unclip.randomness import Noise
from unclip.types import Batch, Losses, Task, require

from .upsampler import Upsampler


class UpsamplerTask(Task):
    """Whole high-resolution pictures in, losses of crops out."""

    model: Upsampler

    def __init__(self, model: Upsampler):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        require(batch, ["images"], type(self).__name__)
        assert batch.images is not None
        return self.model.loss(batch.images, noise=noise)

    def sample_images(self, batch: Batch, noise: Noise) -> Float[Tensor, "n 3 h w"]:
        """Three pictures for each of the batch's first four: a degraded crop resized, upsampled, and the true one."""
        require(batch, ["images"], type(self).__name__)
        assert batch.images is not None
        config, noise = self.model.config, noise[:4]
        images = batch.images[: len(noise)]
        rows = [config.make_pairs(image, noise[i : i + 1].at("pair")) for i, image in enumerate(images)]
        low = torch.stack([low[0] for low, _ in rows])
        high = torch.stack([high[0] for _, high in rows])
        sampled = self.model.sample(low, noise=noise).cpu()
        return torch.stack([self.model.network.encode(low), sampled, high], dim=1).flatten(0, 1)

"""What the training loop trains for the prior: image embeddings and captions of a frozen CLIP."""

from __future__ import annotations

import torch

from unclip.randomness import Noise
from unclip.types import Batch, ImageTextEncoder, Losses, Task, require

from .ar_prior import ARPrior
from .contrastive_prior import ContrastivePrior
from .diffusion_prior import DiffusionPrior


class PriorTask(Task):
    """Batches hold `image_embed` and `text`, or else `images` and `captions` for a frozen `clip` to read."""

    def __init__(self, model: DiffusionPrior | ARPrior | ContrastivePrior, clip: ImageTextEncoder | None = None):
        super().__init__()
        self.model: DiffusionPrior | ARPrior | ContrastivePrior = model
        self._clip = [clip]  # in a list, so that the teacher is no submodule: neither trained nor saved

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        image_embed, text = batch.image_embed, batch.text
        (clip,) = self._clip
        if clip is None:
            require(batch, ["image_embed", "text"], "PriorTask without a CLIP")
        else:
            require(
                batch,
                [*(["images"] if image_embed is None else []), *(["captions"] if text is None else [])],
                "PriorTask",
            )
            with torch.no_grad():
                if image_embed is None:
                    assert batch.images is not None
                    image_embed = clip.encode_image(batch.images)
                if text is None:
                    assert batch.captions is not None
                    text = clip.encode_text(batch.captions)
        assert image_embed is not None and text is not None
        return self.model.loss(image_embed, text, noise=noise)

"""What the training loop trains for the decoder: pictures, with embeddings and captions of a frozen CLIP."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unclip.clip.preprocess import fit_square
from unclip.randomness import Noise
from unclip.types import Batch, Cond, ImageTextEncoder, Losses, Task, require

from .decoder import Decoder


class DecoderTask(Task):
    """Batches hold `images` and, unless a frozen `clip` is given to make them, `image_embed` and `text`.

    Pictures may be larger than the decoder's: CLIP sees them as they come, the decoder at its own size.
    """

    def __init__(self, model: Decoder, clip: ImageTextEncoder | None = None):
        super().__init__()
        self.model: Decoder = model
        self._clip = [clip]  # in a list, so that the teacher is no submodule: neither trained nor saved

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        require(batch, ["images"], "DecoderTask")
        assert batch.images is not None
        images = fit_square(batch.images, self.model.image_size)
        return self.model.loss(images, self._cond(batch), noise=noise)

    def sample_images(self, batch: Batch, noise: Noise) -> Float[Tensor, "n 3 h w"]:
        """Pictures for the batch's own embeddings."""
        return self.model.sample(self._cond(batch), noise=noise)

    def _cond(self, batch: Batch) -> Cond:
        image_embed, text = batch.image_embed, batch.text
        reads_text = self.model.config.text is not None
        if image_embed is None or (reads_text and text is None):
            (clip,) = self._clip
            if clip is None:
                require(batch, ["image_embed", *(["text"] if reads_text else [])], "DecoderTask without a CLIP")
            else:
                require(batch, ["images", *(["captions"] if reads_text else [])], "DecoderTask")
                assert batch.images is not None
                with torch.no_grad():
                    image_embed = clip.encode_image(batch.images) if image_embed is None else image_embed
                    text = clip.encode_text(batch.captions or []) if reads_text and text is None else text
        return Cond(image_embed=image_embed, text=text if reads_text else None)

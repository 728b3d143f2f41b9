"""What the training loop trains for the decoder: pictures, with embeddings and captions of a frozen CLIP."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unclip.clip.preprocess import fit_square
from unclip.randomness import Noise
from unclip.training.evaluation import losses, mean_losses, partner_texts, partners
from unclip.training.task import Task, require
from unclip.types import Batch, Cond, ImageTextEncoder, Losses, Sampling

from .decoder import Decoder

NOISY = 0.25  # signal-to-noise ratio at which it is asked what the conditions change: layout is open there, noise not all


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

    def examine(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Losses, and at one noisy timestep what another sample's conditions change in the predicted picture.

        `error` is the RMS error of that prediction, `change` how far it moves (RMS) under the partner's embedding or text
        (rows 2k and 2k + 1 are partners): 0 = the decoder ignores it.  NaN for a row without a partner.
        """
        require(batch, ["images"], "DecoderTask")
        assert batch.images is not None
        images, cond = fit_square(batch.images, self.model.image_size), self._cond(batch)
        schedule, b = self.model.schedule, len(images)
        t = torch.full((b,), 1 + int((schedule.snr(torch.arange(1, schedule.T + 1)) > NOISY).sum())).clamp(max=schedule.T)
        alpha, sigma = schedule.at(t, images)
        x_t = alpha * images + sigma * noise.at("change").normal(images.shape[1:]).to(images)
        assert cond.image_embed is not None
        conds = {"own": cond, "image": cond._replace(image_embed=partners(cond.image_embed))}
        if cond.text is not None:
            conds["text"] = cond._replace(text=partner_texts(cond.text))
        x0 = {name: self.model.denoise(c, b, Sampling())(x_t, t).x0.clamp(-1, 1) for name, c in conds.items()}
        rows = {"error": _rms(x0["own"] - images), "error/other": _rms(x0["image"] - images)}
        rows |= {f"change_{name}": _rms(x0[name] - x0["own"]) for name in conds if name != "own"}
        if b % 2:
            for name in rows.keys() - {"error"}:
                rows[name][-1] = float("nan")
        return losses(lambda noise: self.model.loss(images, cond, noise=noise), noise) | rows

    def summarize(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Means; losses also by timestep quartile."""
        others = {name: float(value.double().nanmean()) for name, value in rows.items() if name not in ("loss", "t")}
        return mean_losses(rows, self.model.schedule.T) | others

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


def _rms(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    return x.float().square().flatten(1).mean(1).sqrt()

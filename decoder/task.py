"""Training task of the decoder: pictures, with embeddings and captions of a frozen CLIP."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unclip.clip.preprocess import fit_square
from unclip.config import Config
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.training.conditions import conditions_of, random_keep, read_fields, read_widths
from unclip.training.evaluation import losses, mean_losses, partner_texts, partners
from unclip.training.task import Answers, Task, Widths, complete_null, name_classes, require
from unclip.types import Batch, Cond, ImageTextEncoder, Losses

from .config import DecoderConfig
from .decoder import Decoder

NOISY = 0.25  # signal-to-noise ratio at which it is asked what the conditions change: layout is open there, noise not all


class DecoderTask(Task):
    """Batches hold `images` and what the decoder takes: `labels`, `image_embed` and `text`, which a frozen `clip` may make.

    A decoder with a tokenizer of its own reads `captions`.  Pictures may be larger than the decoder's: CLIP sees them as they
    come, the decoder at its own size.  One that takes known pixels learns to fill holes drawn at random.
    """

    def __init__(self, model: Decoder, clip: ImageTextEncoder | None = None):
        super().__init__()
        self.model: Decoder = model
        self._clip = [clip]  # in a list, so that the teacher is no submodule: neither trained nor saved

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        require(batch, ["images"], "DecoderTask")
        assert batch.images is not None
        images = fit_square(batch.images, self.model.image_size)
        return self.model.loss(images, self._cond(batch, images, noise), noise=noise)

    def validate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Losses, and at one noisy timestep what another sample's conditions change in the predicted picture.

        `error` is the RMS error of that prediction, `change` how far it moves (RMS) under the partner's embedding or text
        (rows 2k and 2k + 1 are partners): 0 = the decoder ignores it.  NaN for a row without a partner.
        """
        require(batch, ["images"], "DecoderTask")
        assert batch.images is not None
        images = fit_square(batch.images, self.model.image_size)
        cond = self._cond(batch, images, noise)
        schedule, b = self.model.schedule, len(images)
        t = torch.full((b,), 1 + int((schedule.snr(torch.arange(1, schedule.T + 1)) > NOISY).sum())).clamp(max=schedule.T)
        alpha, sigma = schedule.at(t, images)
        x_t = alpha * images + sigma * noise.at("change").normal(images.shape[1:]).to(images)
        conds = {"own": cond}
        if cond.image_embed is not None:
            conds["image"] = cond._replace(image_embed=partners(cond.image_embed))
        if cond.text is not None:
            conds["text"] = cond._replace(text=partner_texts(cond.text))
        if cond.label is not None:
            conds["label"] = cond._replace(label=partners(cond.label))
        x0 = {name: self.model.denoise(c, b, Sampling())(x_t, t).x0.clamp(-1, 1) for name, c in conds.items()}
        rows = {"error": _rms(x0["own"] - images)}
        if len(conds) > 1:  # the first condition tells the picture best
            rows["error/other"] = _rms(x0[list(conds)[1]] - images)
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
        """Pictures for the batch's own conditions."""
        require(batch, ["images"], "DecoderTask")
        assert batch.images is not None
        images = fit_square(batch.images, self.model.image_size)
        return self.model.sample(self._cond(batch, images, noise), noise=noise)

    @classmethod
    def reads(cls, config: Config) -> tuple[str, ...]:
        assert isinstance(config, DecoderConfig)
        return ("images", *read_fields(config.conditions))

    @classmethod
    def widths(cls, config: Config) -> Widths | None:
        assert isinstance(config, DecoderConfig)
        return read_widths(config.conditions)

    @classmethod
    def resolve(cls, config: Config, answers: Answers) -> Config:
        """With the names of the data's classes."""
        assert isinstance(config, DecoderConfig)
        return config.replace(conditions=name_classes(config.conditions, answers.classes))

    @classmethod
    def image_size(cls, config: Config) -> int:
        assert isinstance(config, DecoderConfig)
        return config.image_size

    def complete(self, answers: Answers, fresh: bool) -> list[str]:
        """The null, where it is CLIP's empty caption."""
        return complete_null(self.model, answers)

    def _cond(self, batch: Batch, images: Tensor, noise: Noise) -> Cond:
        (clip,) = self._clip
        cond = conditions_of(batch, self.model.config.conditions, clip, "DecoderTask")
        if "known" not in self.model.takes:
            return cond
        return cond._replace(known=(images, random_keep(noise.at("known"), *images.shape[-2:]).to(images.device)))


def _rms(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    return x.float().square().flatten(1).mean(1).sqrt()

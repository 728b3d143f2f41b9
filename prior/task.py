"""Training task of the priors: image embeddings and captions of a frozen CLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from unclip.config import Config
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.training.evaluation import caption_ids, chance, losses, mean_losses, retrieval
from unclip.training.task import Answers, Task, Widths, complete_null, require
from unclip.trees import move
from unclip.types import Batch, ImageTextEncoder, Losses, Text

from .ar_prior import ARPrior, ARPriorConfig
from .contrastive_prior import ContrastivePrior, ContrastivePriorConfig
from .diffusion_prior import DiffusionPrior, PriorConfig

STATISTICS = 16_384  # samples whose embeddings give them
MEASURED = 256  # for the analytic variance


class PriorTask(Task):
    """Batches hold `image_embed` and `text`, or else `images` and `captions` for a frozen `clip` to read."""

    def __init__(self, model: DiffusionPrior | ARPrior | ContrastivePrior, clip: ImageTextEncoder | None = None):
        super().__init__()
        self.model: DiffusionPrior | ARPrior | ContrastivePrior = model
        self._clip = [clip]  # in a list, so that the teacher is no submodule: neither trained nor saved

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        image_embed, text = self._inputs(batch)
        return self.model.loss(image_embed, text, noise=noise)

    def validate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Losses, and one embedding drawn for each caption beside the true one and the caption's."""
        true, text = self._inputs(batch)
        drawn = self.model.sample(text, noise=noise.at("sample"), sampling=self._sampling())[:, 0]
        embeds = {"drawn": drawn.float(), "true": true.float().to(drawn.device), "text": text.z_t.float().to(drawn.device)}
        ids = caption_ids(text.strings).to(drawn.device)
        return losses(lambda noise: self.model.loss(true, text, noise=noise), noise) | embeds | {"caption": ids}

    def summarize(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Cosine of drawn to true z_i, R@k of the true one among all, length of drawn by true; each beside its baselines."""
        drawn, true, text, ids = rows["drawn"], rows["true"], rows["text"], rows["caption"]
        compared = {
            "cosine": drawn,
            "cosine/text": text,
            "cosine/mean": true.mean(0, keepdim=True).expand_as(true),
            "cosine/other": drawn.roll(1, dims=0),
        }
        numbers = mean_losses(rows, getattr(getattr(self.model, "schedule", None), "T", None))
        numbers |= {name: float(cosine_similarity(x.double(), true.double(), dim=-1).mean()) for name, x in compared.items()}
        recall, costless = retrieval(drawn, true, ids), retrieval(text, true, ids)
        for k in (1, 5):
            numbers |= {f"R@{k}": recall[f"R@{k}"], f"R@{k}/text": costless[f"R@{k}"], f"R@{k}/chance": chance(ids, k)}
        return numbers | {"norm": float((drawn.double().norm(dim=-1) / true.double().norm(dim=-1)).mean())}

    @classmethod
    def reads(cls, config: Config) -> tuple[str, ...]:
        return "image_embed", "text"

    @classmethod
    def widths(cls, config: Config) -> Widths:
        assert isinstance(config, (PriorConfig, ARPriorConfig, ContrastivePriorConfig))
        network = config.network
        return Widths(network.embed_dim, network.context, network.states_width or 1)

    @classmethod
    def resolve(cls, config: Config, answers: Answers) -> Config:
        """With the number of an AR prior's components, where it gives a share of the variance."""
        if isinstance(config, ARPriorConfig) and isinstance(config.quantizer.dims, float):
            return config.resolve(answers.samples(STATISTICS)[0])
        return config

    def complete(self, answers: Answers, fresh: bool) -> list[str]:
        """Statistics of the embeddings, and the null."""
        made = []
        if fresh or not self.model.fitted:
            image_embed, text = answers.samples(STATISTICS)
            self.model.fit(image_embed, text.z_t)
            made.append(f"statistics of the embeddings were measured on {len(image_embed)} of them")
        return made + complete_null(self.model, answers)

    @staticmethod
    def measure(model: Any, answers: Answers) -> None:
        """A diffusion prior's analytic variance at the timesteps that it visits by default; nothing for others."""
        if isinstance(model, DiffusionPrior) and model.config.sampling.variance == "analytic":
            image_embed, text = answers.samples(MEASURED)
            noise = Noise.of(0, range(len(image_embed))).at("measure")
            model.measure_variance(image_embed, move(text, model.device), model.config.sampling.steps, noise)

    def _sampling(self) -> Sampling | None:
        """The prior's own, but for the analytic variance, which is measured after training."""
        sampling = self.model.config.sampling
        if isinstance(sampling, Sampling) and sampling.sampler == "ddpm" and sampling.variance == "analytic":
            return sampling.replace(variance="small")
        return None

    def _inputs(self, batch: Batch) -> tuple[Tensor, Text]:
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
        return image_embed, text

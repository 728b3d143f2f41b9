"""What parts need beside weights: statistics of embeddings, CLIP's empty caption, variances.  Made where they are missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prior import ARPrior, ARPriorConfig, ContrastivePrior, DiffusionPrior
from unclip.clip import CLIP
from unclip.config import Config
from unclip.data.order import Data
from unclip.nn.text import TextReader
from unclip.randomness import Noise
from unclip.trees import move
from unclip.types import Text

SAMPLES = 16_384  # evenly spread, whose embeddings give the statistics
MEASURED = 256  # for the analytic variance
AT_ONCE = 64
Known = Callable[[], tuple[Tensor, Text]]  # `embeddings_of` the training data, computed when first asked for


@torch.no_grad()
def embeddings_of(data: Data, clip: CLIP, n: int) -> tuple[Tensor, Text]:
    """Raw embeddings of up to n samples, evenly spread over the data: of pictures (k, d), and their captions'."""
    count = min(n, len(data))
    rows = [i * len(data) // count for i in range(count)]
    images: list[Tensor] = []
    texts: list[Text] = []
    for start in range(0, count, AT_ONCE):
        batch = data.batch(rows[start : start + AT_ONCE])
        if batch.image_embed is None:
            if batch.images is None:
                raise ValueError("the data have neither pictures nor embeddings: there is nothing to learn from")
            images.append(clip.encode_image(batch.images.to(clip.device)).float().cpu())
        else:
            images.append(batch.image_embed.float())
        text = batch.text
        if text is None:
            if batch.captions is None:
                raise ValueError("the data have no captions, which a prior learns from")
            text = clip.encode_text(batch.captions)
        texts.append(move(text, "cpu", torch.float32))
    strings = [string for text in texts for string in text.strings]
    return torch.cat(images), Text(strings, *(torch.cat(list(column)) for column in zip(*(text[1:] for text in texts))))


def resolved(config: Config, known: Known) -> Config:
    """The config, with the number of an AR prior's components where it gives a share of the variance."""
    if isinstance(config, ARPriorConfig) and isinstance(config.quantizer.dims, float):
        return config.resolve(known()[0])
    return config


def complete(part: Any, known: Known, clip: CLIP | None, *, fresh: bool, say: Callable[[str], object]) -> None:
    """Give the part everything that training needs.  Of one to train on only what is missing is made, and told."""
    assert clip is not None
    if isinstance(part, ARPrior) and (fresh or bool(part.dot.edges.isnan().any())):
        image_embed, text = known()
        part.fit(image_embed, text.z_t)
        _tell(fresh, say, f"components and buckets were measured on {len(image_embed)} embeddings")
    elif isinstance(part, (DiffusionPrior, ContrastivePrior)) and (fresh or not _fitted(part)):
        image_embed, _ = known()
        part.fit(image_embed)
        _tell(fresh, say, f"statistics of the embeddings were measured on {len(image_embed)} of them")
    for reader in part.modules():
        if isinstance(reader, TextReader) and reader.config.null == "empty" and not bool(reader.empty_mask.any()):
            part.set_null(clip.encode_text([""]))
            _tell(fresh, say, "the null was made: CLIP's own empty caption")


def measure(part: Any, data: Data, clip: CLIP) -> None:
    """A diffusion prior's analytic variance at the timesteps that it samples by default; nothing for other parts."""
    if isinstance(part, DiffusionPrior) and part.config.sampling.variance == "analytic":
        image_embed, text = embeddings_of(data, clip, MEASURED)
        noise = Noise.of(0, range(len(image_embed))).at("measure")
        part.measure_variance(image_embed, move(text, part.device), part.config.sampling.steps, noise)


def _fitted(part: Any) -> bool:
    """Whether statistics were ever taken: embeddings of norm exactly 1 on average are those of a part just made."""
    scaling = part.scaling
    known = bool(torch.isfinite(scaling.norm)) and float(scaling.norm) not in (0.0, 1.0)
    return known and (scaling.kind != "statistics" or bool((scaling.std > 0).all()))


def _tell(fresh: bool, say: Callable[[str], object], what: str) -> None:
    if not fresh:
        say(f"missing in the weights to train on: {what}")

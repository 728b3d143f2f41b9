"""CLIP embeddings of the training data: stored ones, checked against their CLIP, or computed for a few samples."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unclip.clip import CLIP
from unclip.clip.identity import identity, same_identity
from unclip.data.embedding_shards import EmbeddingShards
from unclip.data.embeddings import Embeddings
from unclip.data.mix import Mix
from unclip.data.order import Data
from unclip.data.reader import Reader
from unclip.progress import Bars
from unclip.trees import move
from unclip.types import Text

AT_ONCE = 64
ALIKE = 0.8  # cosine of a picture's embeddings when it is read at two sizes; other CLIPs' are far below


class DataAnswers:
    """The `Answers` of a training: from the data where these bring embeddings, else by its CLIP."""

    def __init__(self, data: Data, clip: CLIP | None, bars: Bars | None = None):
        self.data, self.clip, self.bars = data, clip, bars or Bars(False)
        self.samples = functools.cache(self._samples)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(getattr(self.data, "classes", ()))  # which data without labels need not have

    def empty(self) -> Text:
        if self.clip is None:
            raise ValueError("the model's null is CLIP's empty caption: name the CLIP, for instance clip='emoji'")
        with torch.no_grad():
            return self.clip.encode_text([""])

    @torch.no_grad()
    def _samples(self, n: int) -> tuple[Float[Tensor, "k d"], Text]:
        count = min(n, len(self.data))
        rows = [i * len(self.data) // count for i in range(count)]
        pieces = []
        for start in range(0, count, AT_ONCE):
            self.bars.show("embed", start, count)
            pieces.append(self._encode(rows[start : start + AT_ONCE]))
        self.bars.show("embed", count, count)
        images, texts = [image for image, _ in pieces], [text for _, text in pieces]
        strings = [string for text in texts for string in text.strings]
        tensors = [None if column[0] is None else torch.cat(list(column)) for column in zip(*(text[1:] for text in texts))]
        return torch.cat(images), Text(strings, *tensors)  # type: ignore[arg-type]

    def _encode(self, rows: list[int]) -> tuple[Tensor, Text]:
        batch, clip = self.data.batch(rows), self.clip
        image_embed, text = batch.image_embed, batch.text
        if image_embed is None:
            if batch.images is None or clip is None:
                raise ValueError("the data have neither embeddings nor, with a CLIP, pictures: there is nothing to learn from")
            image_embed = clip.encode_image(batch.images.to(clip.device)).float().cpu()
        if text is None:
            if batch.captions is None or clip is None:
                raise ValueError("the data have no captions, or no CLIP that reads them, and a prior learns from these")
            text = clip.encode_text(batch.captions)
        return image_embed.float(), move(text, "cpu", torch.float32)


def check_embeddings(data: Data, clip: CLIP, name: str) -> None:
    """ValueError where `data` bring embeddings of another CLIP than `clip`, which is called `name`.

    A warning where the data have changed since, as far as that shows without reading pictures.
    """
    clip_identity = functools.cache(lambda: identity(clip))
    for source in data.readers if isinstance(data, Mix) else [data]:
        store: Any = getattr(source, "embeddings", None)  # of other kinds of data nothing is known
        try:
            if isinstance(store, EmbeddingShards):
                same_identity(store.index.clip, clip_identity())
            elif isinstance(store, Embeddings):
                store.check(clip, _pictures(source, store, clip), alike=ALIKE)
        except ValueError as error:
            problem = f"{store.name} holds embeddings of another CLIP than {name}"
            raise ValueError(f"{problem}: {error}. Name the CLIP that made them, or embed the data with this one") from None
        if isinstance(store, EmbeddingShards) and isinstance(source, Reader) and source.source.digest() != store.index.data:
            change = f"{store.name} was made of other data than {source.name}, or they have changed since"
            warnings.warn(f"{change}: captions and embeddings are those of then", stacklevel=1)


def _pictures(source: Any, store: Embeddings, clip: CLIP) -> Any:
    """The samples as CLIP sees them; None where stored captions will do, which unlike pictures have one size."""
    if store.has_text or not isinstance(source, Reader) or not clip.image_size:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which pictures have no embedding was told when the data were opened
        return Reader(source.source, clip.image_size, embeddings=store)

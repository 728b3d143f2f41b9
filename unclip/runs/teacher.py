"""Whether the embeddings that a training reads are answers of the CLIP that it names."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from unclip.clip import CLIP
from unclip.clip.identity import identity, same_identity
from unclip.data.embedding_shards import EmbeddingShards
from unclip.data.embeddings import Embeddings
from unclip.data.mix import Mix
from unclip.data.open import DataConfig
from unclip.data.reader import Embedded, Reader

ALIKE = 0.8  # cosine of a picture's embeddings when it is read at two sizes; other CLIPs' are far below


def check_embeddings(config: DataConfig, data: Reader | Embedded | Mix, clip: CLIP, name: str) -> None:
    """ValueError where `data` bring embeddings of another CLIP than `clip`, which is called `name`.

    A warning where the data have changed since, as far as that shows without reading pictures.
    """
    given = functools.cache(lambda: identity(clip))
    parts = data.parts if isinstance(data, Mix) else [data]
    for part, place in zip(parts, _places(config), strict=True):
        store = part.embeddings
        try:
            if isinstance(store, EmbeddingShards):
                same_identity(store.index.clip, given())
            elif isinstance(store, Embeddings):
                store.check(clip, _pictures(part, store, clip), alike=ALIKE)
        except ValueError as error:
            told = f"{place} holds embeddings of another CLIP than {name}"
            raise ValueError(f"{told}: {error}. Name the CLIP that made them, or embed the data with this one") from None
        if isinstance(store, EmbeddingShards) and isinstance(part, Reader) and part.source.digest() != store.index.data:
            what = f"{place} was made of other data than {part.name}, or they have changed since"
            warnings.warn(f"{what}: captions and embeddings are those of then", stacklevel=1)


def _pictures(part: Reader | Embedded, store: Embeddings, clip: CLIP) -> Any:
    """The samples as CLIP sees them; None where stored captions will do, which unlike pictures have one size."""
    if store.has_text or not isinstance(part, Reader) or not clip.image_size:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which pictures have no embedding was told when the data were opened
        return Reader(part.source, clip.image_size, embeddings=store)


def _places(config: DataConfig) -> list[str]:
    if isinstance(config.source, str):
        return [config.embeddings or config.source]
    return [one.embeddings or one.path for one in config.source]

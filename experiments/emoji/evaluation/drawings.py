"""All drawings of four styles as what a picture is held against: the nearest motifs and styles, by two eyes.

Pixels: plain RGB distance at 64 pixels.  EfficientNet-Lite0: cosine of ImageNet features (`lite0`), which saw none of them.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from experiments.emoji.data import motifs, styled
from experiments.emoji.data.drawings import STYLES
from experiments.emoji.evaluation import lite0
from experiments.emoji.evaluation.siblings import groups_of
from unclip.files import write_files

SIZE = 64
CHUNK = 1024  # drawings compared at once


class Drawings:
    """The drawings in the order of `motifs.pictures()`, their motifs and styles as numbers."""

    def __init__(self) -> None:
        self.data = styled.StyledEmoji("all", SIZE)
        self.every = motifs.pictures()
        self.names = [one.motif for one in self.every]
        self.motifs = groups_of(self.names)
        self.styles = torch.tensor([STYLES.index(one.style) for one in self.every])
        self.number = {name: int(group) for name, group in zip(self.names, self.motifs)}
        self._features: Tensor | None = None
        self.row = {one.key: i for i, one in enumerate(self.every)}

    def __len__(self) -> int:
        return len(self.every)

    def images(self, rows: Sequence[int]) -> Float[Tensor, "n 3 s s"]:
        images = self.data.batch(rows).images
        assert images is not None
        return images

    def closeness(self, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n m"]:
        """Minus the RGB distance of each picture to each drawing."""
        flat = images.flatten(1).float()
        parts = []
        for start in range(0, len(self), CHUNK):
            rows = range(start, min(start + CHUNK, len(self)))
            parts.append(-torch.cdist(flat, self.images(rows).flatten(1)))
        return torch.cat(parts, dim=1)

    def likeness(self, judge: nn.Module, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n m"]:
        """Cosine of the judge's features of each picture and each drawing, whose are computed once and cached."""
        path = styled.rendered_path(SIZE).with_name(f"lite0-{lite0.SIDE}-{styled.rendered_path(SIZE).stem}.npy")
        if self._features is None and path.exists():
            self._features = torch.from_numpy(np.load(path)).float()
        if self._features is None:
            starts = tqdm(range(0, len(self), CHUNK), "drawings by EfficientNet-Lite0", file=sys.stderr, disable=None)
            parts = [lite0.features(judge, self.images(range(start, min(start + CHUNK, len(self))))) for start in starts]
            self._features = torch.cat(parts)
            stored = io.BytesIO()
            np.save(stored, self._features.half().numpy())
            write_files([(path, stored.getvalue())])
        return lite0.features(judge, images) @ self._features.T

    def tier(self, tier: motifs.Tier) -> list[int]:
        return [i for i, one in enumerate(self.every) if one.tier == tier]

    def trained_relative(self, row: int) -> int | None:
        """A trained drawing of the same emoji in another style, else of its motif; None where there is none."""
        one = self.every[row]
        options = [self.row.get(f"{style}-{one.row.key}") for style in STYLES if style != one.style]
        options += [i for i, other in enumerate(self.every) if other.motif == one.motif and other.style != one.style]
        return next((i for i in options if i is not None and self.every[i].tier == "train"), None)


def first_motifs(scores: Float[Tensor, "n m"], groups: Int[Tensor, " m"], k: int) -> Int[Tensor, "n k"]:
    """The k best motifs of each row, a motif by its best drawing."""
    best = scores.new_full((len(scores), int(groups.max()) + 1), -torch.inf)
    best.scatter_reduce_(1, groups.to(scores.device).expand(len(scores), -1), scores, "amax")
    return best.topk(min(k, best.shape[1]), dim=1).indices


def hits(first: Int[Tensor, "n k"], meant: Sequence[set[int]], k: int) -> list[float]:
    """1 where one of the first k motifs is meant."""
    return [float(bool(set(row[:k]) & wanted)) for row, wanted in zip(first.tolist(), meant)]


def within(scores: Float[Tensor, "n m"], styles: Int[Tensor, " m"], wanted: Int[Tensor, " n"]) -> Float[Tensor, "n m"]:
    """Scores of the drawings of the wanted style alone."""
    return scores.masked_fill(styles[None] != wanted[:, None], -torch.inf)


def sample(rows: Sequence[int], drawings: Drawings, n: int | None) -> list[int]:
    """The first n by the SHA-1 of their keys: a choice that nobody made."""
    order = sorted(rows, key=lambda i: hashlib.sha1(drawings.every[i].key.encode()).hexdigest())
    return order[:n] if n else order

"""Pictures on their way through the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from unclip.checks import check_int
from unclip.clip.rerank import rerank
from unclip.editing.latent import Latent
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.trees import tree_map
from unclip.types import Cond, ImageTextEncoder

from .steering import UNSTEERED, Steering


@dataclass(frozen=True)
class Drawing:
    """Pictures to be drawn, row by row: of what, from where, with which noise."""

    cond: Cond
    noise: Noise  # its children "decoder" and "upsampler_..." are the stages'
    x_t: Tensor  # where the decoder starts, at the first of the timesteps of `sampling`
    sampling: Sampling
    steering: Steering = UNSTEERED
    captions: tuple[str, ...] = ()
    seeds: tuple[tuple[int, int], ...] = ()
    latent: Latent | None = None

    def __len__(self) -> int:
        return len(self.x_t)

    def pick(self, rows: Sequence[int]) -> Drawing:
        """Some of the pictures."""
        text, negative, init = self.cond.text, self.steering.negative, self.steering.init
        cond = tree_map(lambda x: x[rows], self.cond._replace(text=None))._replace(text=text and text.rows(rows))
        steering = self.steering._replace(negative=negative and negative.rows(rows), init=init and init.rows(rows))
        return replace(
            self,
            cond=cond,
            noise=Noise([self.noise.paths[i] for i in rows]),
            x_t=self.x_t[rows],
            steering=steering,
            captions=tuple(self.captions[i] for i in rows),
            seeds=tuple(self.seeds[i] for i in rows),
            latent=self.latent and self.latent.rows(rows),
        )


class Ranking(NamedTuple):
    """Of the pictures drawn for each caption the n that a CLIP finds nearest to it are kept (re-ranking, DALL-E 1 2.6)."""

    clip: ImageTextEncoder
    captions: list[str]
    n: int

    def rows(self, images: Tensor) -> list[int]:
        """The rows of the kept pictures, caption-major, the best first."""
        return rerank(self.clip, images, self.captions, self.n).rows.flatten().tolist()


def ranking_of(clip: ImageTextEncoder | None, captions: list[str] | None, n: int) -> Ranking:
    """How pictures are ranked; ValueError where nothing can rank them, or there is nothing to rank them by."""
    if clip is None or captions is None:
        raise ValueError("best_of ranks pictures by their captions with a CLIP, which a cascade lacks: give both, clip=...")
    return Ranking(clip, captions, n)


def draws(n: int, best_of: int | None) -> int:
    """How many pictures are drawn for each caption, to keep n; ValueError for fewer."""
    if best_of is None:
        return n
    return check_int("best_of", best_of, n, "how many pictures are drawn for each caption, to keep n")

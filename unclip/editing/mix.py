"""Mixing: one embedding from several captions, pictures and latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unclip.checks import check_int
from unclip.progress import with_bars
from unclip.randomness import Noise
from unclip.types import Callback

from .edits import check_edit, draw_edit
from .latent import Latent
from .pipeline import Pipeline
from .result import Edit
from .slerp import spherical_mean
from .sources import Source, embeddings


@with_bars
@torch.no_grad()
def mix(
    pipe: Pipeline,
    sources: Sequence[Source],
    weights: Sequence[float | int] | None = None,
    n: int = 1,
    guidance: float | None = None,
    seed: int = 0,
    first: int = 0,
    size: int | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> Edit:
    """n pictures of a mixture of captions, pictures and latents.

    z_i's direction is the weighted mean on the sphere, its norm the weighted mean of norms; of two sources that is a point of
    the path that `interpolate` takes between them.  z_i alone conditions the pictures.  weights: one for each source, equal by
    default; only their ratios count.  A string that is no path, and does not look like one, is a caption.  Picture k is number
    first + k of the seed.
    """
    check_edit(pipe, size, guidance)
    n = check_int("n", n, 1, "how many pictures of the mixture")
    seed, first = check_int("seed", seed), check_int("first", first, 0)
    if isinstance(sources, (str, Path)) or not isinstance(sources, Sequence):
        sources = [sources]
    shares = _shares(weights, len(sources))
    embeds = embeddings(pipe, sources, seed, callback)
    image_embed = spherical_mean(embeds, torch.tensor(shares, dtype=torch.float64))
    size_0, sampling = pipe.decoder.image_size, pipe.decoder.resolve(None)
    noise = Noise.of(seed, range(first, first + n)).at("mix")
    x_t = noise.at("x_T").normal((3, size_0, size_0))
    latent = Latent(image_embed.expand(n, -1).contiguous(), x_t, sampling, ("",) * n, pipe.models())
    label = " + ".join(f"{share:.2f} {_name(source)}" for share, source in zip(shares, sources))
    return draw_edit(pipe, "mix", latent, sampling, [label] * n, n, None, guidance, seed, size, callback, noise, first)


def _shares(weights: Any, count: int) -> list[float]:
    """The weights, summing to 1; ValueError for some that cannot be meant."""
    if count < 2:
        raise ValueError(f"{count} source was given; a mixture is of two or more")
    if weights is None:
        return [1 / count] * count
    values = [float(weight) for weight in weights]
    if len(values) != count:
        raise ValueError(f"{len(values)} weights came with {count} sources: give one each")
    if not all(math.isfinite(weight) and weight >= 0 for weight in values) or not sum(values) > 0:
        raise ValueError(f"weights are {values}; they are at least 0, finite, and not all 0: a source's share of the mixture")
    return [weight / sum(values) for weight in values]


def _name(source: object) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    return "latent" if isinstance(source, Latent) else "picture"

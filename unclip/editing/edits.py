"""Editing pictures through the latent pair (z_i, x_T): what a picture shows, and how it shows it (unCLIP, section 3).

Functions of a pipeline; `UnCLIP` has them as methods.  A *source* is a picture (file, PIL picture, tensor (3, h, w) or
(b, 3, h, w) in [-1, 1]), a `Latent` or its file, or what `generate` or another edit returned, whose latent is known.  A
picture's latent leads back to it exactly.  A generation's leads back to what z_i and x_T alone draw: not the noise of a sampler
that draws some (ddpm, eta > 0), and in interpolations and text diffs not its caption; where that counts, give its picture.
Everything but the upsamplers runs in float32: an inversion is exact only where both ways see the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unclip.checks import check_int
from unclip.deprecation import renamed_arguments
from unclip.progress import with_bars
from unclip.randomness import Noise
from unclip.sampling import Inversion, Sampling
from unclip.types import Callback

from .latent import Latent
from .pca import PCA
from .pipeline import Pipeline
from .result import Edit
from .slerp import slerp
from .sources import ImageLike, Source, ends, exact, opened

Start = Literal["kept", "fresh"]
NoisePath = Literal["slerp", "fixed"]


@renamed_arguments(pictures="images")
@with_bars
@torch.no_grad()
def invert(
    pipe: Pipeline,
    images: ImageLike | Sequence[ImageLike],
    inversion: Inversion | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> Latent:
    """The latent pair of one or more pictures: CLIP's embedding, and the x_T that the decoder, given it, draws them from.

    Pictures are laid on white, turned upright and cropped to a square, never squashed.  The decoder sees them at its own
    size: what `reconstruct` returns is the picture at that size, upsampled.
    """
    check_edit(pipe, None, None, inversion)
    return opened(pipe, images, inversion, callback).latent


@with_bars
@torch.no_grad()
def reconstruct(
    pipe: Pipeline,
    source: Source | Sequence[ImageLike],
    size: int | None = None,
    seed: int = 0,
    inversion: Inversion | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> Edit:
    """The picture that a latent stands for."""
    check_edit(pipe, size, None, inversion)
    seed = check_int("seed", seed)
    latent, shown = opened(pipe, source, inversion, callback)
    labels = ["reconstruction"] * len(latent)
    return draw_edit(pipe, "reconstruct", latent, exact(latent.sampling), labels, 1, shown, None, seed, size, callback)


@with_bars
@torch.no_grad()
def vary(
    pipe: Pipeline,
    source: Source | Sequence[ImageLike],
    n: int = 4,
    eta: float = 1.0,
    x_t: Start = "kept",
    guidance: float | None = None,
    seed: int = 0,
    first: int = 0,
    size: int | None = None,
    inversion: Inversion | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> Edit:
    """n variations of each picture: same z_i, other details (unCLIP 3.1).

    `x_t` "kept" starts from the source's own x_T, and DDIM's `eta` says how much noise each step renews: 0 reconstructs.
    "fresh" draws another x_T and samples as the decoder does by default; what stays is what z_i tells, and nothing has to
    be inverted.  `guidance`: of the decoder, else the latent's own.  Picture k is number first + k of the seed.
    """
    check_edit(pipe, size, guidance, inversion)
    seed, first = check_int("seed", seed), check_int("first", first, 0)
    n = check_int("n", n, 1, "how many variations of each picture")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it runs from 0, the source itself, to 1, as much new noise as ddpm draws")
    fresh = check_choice("x_t", x_t, Start) == "fresh"
    latent, shown = opened(pipe, source, inversion, callback, embed_only=fresh)
    latent = latent.repeat(n)
    noise = Noise.of(seed, range(first, first + len(latent))).at("vary")
    if fresh:
        sampling = pipe.decoder.resolve(None)
        size_0 = pipe.decoder.image_size
        latent = replace(latent, x_t=noise.at("x_T").normal((3, size_0, size_0)), sampling=sampling)
    elif eta == 0:
        sampling = exact(latent.sampling)
    else:
        sampling = _to_clean(latent.sampling).replace(sampler="ddim", variance="small", eta=float(eta))
    labels = ["fresh x_T" if fresh else f"eta {eta:g}"] * len(latent)
    return draw_edit(pipe, "vary", latent, sampling, labels, n, shown, guidance, seed, size, callback, noise, first)


@with_bars
@torch.no_grad()
def interpolate(
    pipe: Pipeline,
    sources: Sequence[Source],
    steps: int = 7,
    x_t: NoisePath = "slerp",
    guidance: float | None = None,
    seed: int = 0,
    size: int | None = None,
    inversion: Inversion | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> Edit:
    """A path through two or more pictures, `steps` from each to the next, ends included (unCLIP 3.2).

    z_i is slerped.  `x_t` "slerp": x_T is slerped too, and the sources are on the path; "fixed": one fresh x_T for all.
    Sources may also be captions: a string that is no path, and does not look like one, is drawn first.  Captions do not
    condition the pictures on the way, z_i alone does.
    """
    check_edit(pipe, size, guidance, inversion)
    seed = check_int("seed", seed)
    check_choice("x_t", x_t, NoisePath)
    if isinstance(sources, (str, Path)) or not isinstance(sources, Sequence):
        sources = [sources]
    steps = check_int("steps", steps, 2, "pictures from one source to the next, both ends included")
    latents, shown = ends(pipe, sources, x_t == "slerp", seed, inversion, callback)
    embeds, starts = (torch.cat([getattr(z, name) for z in latents]).cpu() for name in ("image_embed", "x_t"))
    frames = torch.arange((len(embeds) - 1) * (steps - 1) + 1)
    rows = (frames // (steps - 1)).clamp(max=len(embeds) - 2)  # the last picture is the end of the last pair
    fractions = (frames - rows * (steps - 1)) / (steps - 1)
    image_embed = slerp(embeds[rows], embeds[rows + 1], fractions)
    if x_t == "fixed":
        size_0, sampling = pipe.decoder.image_size, pipe.decoder.resolve(None)
        x = Noise.of(seed).at("interpolate").at("x_T").normal((3, size_0, size_0)).expand(len(rows), -1, -1, -1)
    else:
        x, sampling = slerp(starts[rows], starts[rows + 1], fractions), exact(latents[0].sampling)
    latent = Latent(image_embed, x.contiguous(), sampling, ("",) * len(rows), pipe.models())
    labels = [f"{k / (steps - 1):.2f}" for k in frames.tolist()]
    return draw_edit(pipe, "interpolate", latent, sampling, labels, len(rows), shown, guidance, seed, size, callback)


@renamed_arguments(picture="image")
@with_bars
@torch.no_grad()
def text_diff(
    pipe: Pipeline,
    image: Source | Sequence[ImageLike],
    target: str,
    source: str | None = None,
    theta: float = 0.4,
    steps: int = 5,
    guidance: float | None = None,
    seed: int = 0,
    size: int | None = None,
    inversion: Inversion | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> Edit:
    """Turn a picture's embedding from what `source` says towards what `target` says (unCLIP 3.3).

    z_d = normalise(z_t - z_t0) of the two captions; z_i's direction turns towards z_d by up to `theta` of the angle between
    them (typically 0.25 to 0.5), in `steps` pictures from 0, and keeps its norm; x_T stays.  `source`: what the picture
    shows, or a dummy such as "a photo", "" for CLIP's answer to nothing; None leaves z_t0 out.  The first picture is the
    reconstruction, unless `guidance` is given.
    """
    check_edit(pipe, size, guidance, inversion)
    seed = check_int("seed", seed)
    if not 0 < theta <= 1:
        raise ValueError(f"theta is {theta}; it is the fraction of the angle to turn by: above 0, at most 1, usually 0.25 to 0.5")
    steps = check_int("steps", steps, 2, "pictures from the reconstruction to the edit, both included")
    if not isinstance(target, str) or not isinstance(source, (str, type(None))):
        raise ValueError(f"the target is {target!r} and the source {source!r}: both are captions, and the source may be left out")
    if not target.strip():
        raise ValueError("the target caption is empty: say what the picture shall become")
    texts = normalize(pipe.clip.encode_text([target] if source is None else [target, source]).z_t.float().cpu(), dim=-1)
    direction = texts[0] if source is None else texts[0] - texts[1]
    if direction.norm() < 1e-4:
        raise ValueError(f"{target!r} and {source!r} mean the same to this CLIP: there is no direction between them")
    latent, shown = opened(pipe, image, inversion, callback)
    count = len(latent)
    latent = replace(latent.repeat(steps), captions=("",) * (count * steps))
    fractions = torch.linspace(0, theta, steps).repeat(count)
    z_d = normalize(direction, dim=0) * latent.image_embed.norm(dim=1, keepdim=True)
    sampling = exact(latent.sampling)
    latent = replace(latent, image_embed=slerp(latent.image_embed, z_d, fractions), sampling=sampling)
    labels = [f"theta {f:.2f}" for f in fractions.tolist()]
    return draw_edit(pipe, "text diff", latent, sampling, labels, steps, shown, guidance, seed, size, callback)


@with_bars
@torch.no_grad()
def reconstruct_pca(
    pipe: Pipeline,
    source: Source | Sequence[ImageLike],
    components: Sequence[int],
    pca: PCA | None = None,
    guidance: float | None = None,
    seed: int = 0,
    size: int | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> Edit:
    """Pictures drawn from the first k principal components of z_i alone, for each k listed, from one x_T (unCLIP 4, Fig. 7).

    pca: of the embeddings of a data set; None = the one that the pipeline came with.
    """
    check_edit(pipe, size, guidance)
    seed = check_int("seed", seed)
    pca = pca or pipe.pca
    if pca is None:
        raise ValueError("this pipeline came without principal components: give pca=PCA.fit(image embeddings of a data set)")
    if not components:
        raise ValueError("no numbers of components were given: list some, for instance [20, 40, 80]")
    latent, shown = opened(pipe, source, None, callback, embed_only=True)
    count, size_0 = len(latent), pipe.decoder.image_size
    embeds = torch.stack([pca.reduce(latent.image_embed, k) for k in components], dim=1).flatten(0, 1)
    sampling = pipe.decoder.resolve(None)
    x = Noise.of(seed).at("pca").at("x_T").normal((3, size_0, size_0)).expand(len(embeds), -1, -1, -1).contiguous()
    latent = Latent(embeds, x, sampling, ("",) * len(embeds), pipe.models())
    labels = [f"{k} components" for k in components] * count
    return draw_edit(pipe, "reconstruct pca", latent, sampling, labels, len(components), shown, guidance, seed, size, callback)


def draw_edit(
    pipe: Pipeline,
    verb: str,
    latent: Latent,
    sampling: Sampling,
    labels: list[str],
    columns: int,
    shown: Tensor | None,
    guidance: float | None,
    seed: int,
    size: int | None,
    callback: Callback | None,
    noise: Noise | None = None,
    first: int = 0,
) -> Edit:
    """Decode and upsample.  Without noise of their own all pictures get the same, so that a series does not flicker."""
    noise = noise or Noise.of(seed, [0] * len(latent)).at(verb)
    sampling = sampling if guidance is None else sampling.replace(guidance=float(guidance))
    latent = replace(latent, sampling=sampling)
    stages = pipe.draw(latent, sampling, noise, size, callback)
    return Edit(
        verb=verb,
        images=stages[max(stages)],
        latent=latent,
        stages=stages,
        labels=tuple(labels),
        columns=columns,
        sources=shown,
        metadata={"edit": verb, "seed": str(seed), "model": pipe.name},
        first=first,
    )


def check_edit(pipe: Pipeline, size: int | None, guidance: float | None, inversion: object = None) -> None:
    """Refuse now what would be refused after an inversion."""
    if not isinstance(inversion, (Inversion, type(None))):
        raise ValueError(f"inversion is {inversion!r}; it must be an Inversion, for instance Inversion(steps=50), or None")
    pipe.stages(size)
    Sampling(guidance=1.0 if guidance is None else float(guidance))


def _to_clean(sampling: Sampling) -> Sampling:
    """The way on to t = 0: where new noise was drawn, the last of it has to be taken out."""
    assert isinstance(sampling.steps, tuple)
    return sampling.replace(steps=(*(t for t in sampling.steps if t > 0), 0))


def check_choice(name: str, value: str, words: object) -> str:
    if value not in get_args(words):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(get_args(words))}")
    return value

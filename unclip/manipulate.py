"""Editing pictures through the latent pair (z_i, x_T): what a picture shows, and how it shows it (unCLIP, section 3).

Functions of a pipeline; `UnCLIP` has them as methods.  A *source* is a picture (file, PIL picture, tensor (3, h, w) or
(b, 3, h, w) in [-1, 1]), a `Latent` or its file, or what `generate` or another edit returned, whose latent is known.
Everything but the upsamplers runs in float32: an inversion is exact only where both ways see the same numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from unclip.clip.preprocess import fit_square
from unclip.data.pictures import load_picture

from .edits import Edit
from .pca import PCA
from .randomness import Noise
from .results import Generation, Latent
from .types import Inversion, Sampling

if TYPE_CHECKING:
    from PIL import Image

    from .pipeline import Progress, UnCLIP

Picture: TypeAlias = "str | Path | Image.Image | Tensor"
Source: TypeAlias = "Picture | Latent | Generation | Edit"
Start = Literal["kept", "fresh"]
Way = Literal["slerp", "fixed"]
SMALLEST = 8  # pixels of a picture's shorter side


@torch.no_grad()
def invert(
    pipe: UnCLIP, pictures: Picture | Sequence[Picture], inversion: Inversion | None = None, progress: Progress | None = None
) -> Latent:
    """The latent pair of one or more pictures: CLIP's embedding, and the x_T that the decoder, given it, draws them from.

    Pictures are laid on white, turned upright and cropped to a square, never squashed.  The decoder sees them at its own
    size: what `reconstruct` returns is the picture at that size, upsampled.
    """
    return _opened(pipe, pictures, inversion, progress).latent


@torch.no_grad()
def reconstruct(
    pipe: UnCLIP,
    source: Source | Sequence[Picture],
    size: int | None = None,
    seed: int = 0,
    inversion: Inversion | None = None,
    progress: Progress | None = None,
) -> Edit:
    """The picture that a latent stands for."""
    _check(pipe, size, None)
    latent, given = _opened(pipe, source, inversion, progress)
    labels = ["reconstruction"] * len(latent)
    return _edit(pipe, "reconstruct", latent, _exact(latent.sampling), labels, 1, given, None, seed, size, progress)


@torch.no_grad()
def vary(
    pipe: UnCLIP,
    source: Source | Sequence[Picture],
    n: int = 4,
    eta: float = 1.0,
    x_t: Start = "kept",
    guidance: float | None = None,
    seed: int = 0,
    first: int = 0,
    size: int | None = None,
    inversion: Inversion | None = None,
    progress: Progress | None = None,
) -> Edit:
    """n variations of each picture: same z_i, other details (unCLIP 3.1).

    `x_t` "kept" starts from the source's own x_T, and DDIM's `eta` says how much noise each step renews: 0 reconstructs.
    "fresh" draws another x_T and samples as the decoder does by default; what stays is what z_i tells, and nothing has to
    be inverted.  `guidance`: of the decoder, else the latent's own.  Picture k is number first + k of the seed.
    """
    _check(pipe, size, guidance)
    if n < 1 or first < 0:
        raise ValueError(f"n is {n} and first {first}: at least one variation, and numbers start at 0")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it runs from 0, the source itself, to 1, as much new noise as ddpm draws")
    fresh = one_of("x_t", x_t, Start) == "fresh"
    latent, given = _opened(pipe, source, inversion, progress, embed_only=fresh)
    latent = latent.repeat(n)
    noise = Noise.of(seed, range(first, first + len(latent))).at("vary")
    if fresh:
        how = pipe.decoder.resolve(None)
        size_0 = pipe.decoder.image_size
        latent = replace(latent, x_t=noise.at("x_T").normal((3, size_0, size_0)), sampling=how)
    elif eta == 0:
        how = _exact(latent.sampling)
    else:
        how = _to_clean(latent.sampling).replace(sampler="ddim", variance="small", eta=float(eta))
    labels = ["fresh x_T" if fresh else f"eta {eta:g}"] * len(latent)
    return _edit(pipe, "vary", latent, how, labels, n, given, guidance, seed, size, progress, noise=noise)


@torch.no_grad()
def interpolate(
    pipe: UnCLIP,
    sources: Sequence[Source],
    steps: int = 7,
    x_t: Way = "slerp",
    guidance: float | None = None,
    seed: int = 0,
    size: int | None = None,
    inversion: Inversion | None = None,
    progress: Progress | None = None,
) -> Edit:
    """A path through two or more pictures, `steps` from each to the next, ends included (unCLIP 3.2).

    z_i is slerped.  `x_t` "slerp": x_T is slerped too, and the sources are on the path; "fixed": one fresh x_T for all.
    Sources may also be captions: a string that is no file, and does not look like one, is drawn first.  Captions do not
    condition the pictures on the way, z_i alone does.
    """
    _check(pipe, size, guidance)
    one_of("x_t", x_t, Way)
    if isinstance(sources, (str, Path)) or not isinstance(sources, Sequence):
        sources = [sources]
    if steps < 2:
        raise ValueError(f"steps is {steps}; a path from one picture to the next has at least its two ends")
    read = [_read(pipe, source) for source in sources]  # all of them, before the first is inverted
    count = sum(1 if isinstance(source, str) else len(source) for source in read)
    if count < 2:
        raise ValueError(f"{count} picture was given; an interpolation goes from one to another")
    latents, pictures = _all_opened(pipe, read, x_t, seed, inversion, progress)
    embeds, starts = (torch.cat([getattr(z, name) for z in latents]).cpu() for name in ("image_embed", "x_t"))
    way = torch.arange((len(embeds) - 1) * (steps - 1) + 1)
    rows = (way // (steps - 1)).clamp(max=len(embeds) - 2)  # the last picture is the end of the last pair
    fractions = (way - rows * (steps - 1)) / (steps - 1)
    image_embed = slerp(embeds[rows], embeds[rows + 1], fractions)
    if x_t == "fixed":
        size_0, how = pipe.decoder.image_size, pipe.decoder.resolve(None)
        x = Noise.of(seed).at("interpolate").at("x_T").normal((3, size_0, size_0)).expand(len(rows), -1, -1, -1)
    else:
        x, how = slerp(starts[rows], starts[rows + 1], fractions), _exact(latents[0].sampling)
    latent = Latent(image_embed, x.contiguous(), how, ("",) * len(rows), pipe.models())
    labels = [f"{k / (steps - 1):.2f}" for k in way.tolist()]
    return _edit(pipe, "interpolate", latent, how, labels, len(rows), pictures, guidance, seed, size, progress)


@torch.no_grad()
def text_diff(
    pipe: UnCLIP,
    picture: Source | Sequence[Picture],
    target: str,
    source: str | None = None,
    theta: float = 0.4,
    steps: int = 5,
    guidance: float | None = None,
    seed: int = 0,
    size: int | None = None,
    inversion: Inversion | None = None,
    progress: Progress | None = None,
) -> Edit:
    """Turn a picture's embedding from what `source` says towards what `target` says (unCLIP 3.3).

    z_d = normalise(z_t - z_t0) of the two captions; z_i's direction turns towards z_d by up to `theta` of the angle between
    them (typically 0.25 to 0.5), in `steps` pictures from 0, and keeps its norm; x_T stays.  `source`: what the picture
    shows, or a dummy such as "a photo", "" for CLIP's answer to nothing; None leaves z_t0 out.  The first picture is the
    reconstruction, unless `guidance` is given.
    """
    _check(pipe, size, guidance)
    if not 0 < theta <= 1:
        raise ValueError(f"theta is {theta}; it is the part of the angle to turn by: above 0, at most 1, usually 0.25 to 0.5")
    if steps < 2:
        raise ValueError(f"steps is {steps}; from the picture to its edit there are at least two pictures")
    if not target.strip():
        raise ValueError("the target caption is empty: say what the picture shall become")
    texts = normalize(pipe.clip.encode_text([target] if source is None else [target, source]).embed.float().cpu(), dim=-1)
    direction = texts[0] if source is None else texts[0] - texts[1]
    if direction.norm() < 1e-4:
        raise ValueError(f"{target!r} and {source!r} mean the same to this CLIP: there is no direction between them")
    latent, given = _opened(pipe, picture, inversion, progress)
    count = len(latent)
    latent = replace(latent.repeat(steps), captions=("",) * (count * steps))
    fractions = torch.linspace(0, theta, steps).repeat(count)
    z_d = normalize(direction, dim=0) * latent.image_embed.norm(dim=1, keepdim=True)
    how = _exact(latent.sampling)
    latent = replace(latent, image_embed=slerp(latent.image_embed, z_d, fractions), sampling=how)
    labels = [f"theta {f:.2f}" for f in fractions.tolist()]
    return _edit(pipe, "text diff", latent, how, labels, steps, given, guidance, seed, size, progress)


@torch.no_grad()
def reconstruct_pca(
    pipe: UnCLIP,
    source: Source | Sequence[Picture],
    components: Sequence[int],
    pca: PCA | None = None,
    guidance: float | None = None,
    seed: int = 0,
    size: int | None = None,
    progress: Progress | None = None,
) -> Edit:
    """Pictures drawn from the first k principal components of z_i alone, for each k listed, from one x_T (unCLIP 4, Fig. 7).

    pca: of the embeddings of a data set; None = the one that the pipeline came with.
    """
    _check(pipe, size, guidance)
    pca = pca or pipe.pca
    if pca is None:
        raise ValueError("this pipeline came without principal components: give pca=PCA.fit(image embeddings of a data set)")
    if not components:
        raise ValueError("no numbers of components were given: list some, for instance [20, 40, 80]")
    latent, given = _opened(pipe, source, None, progress, embed_only=True)
    count, size_0 = len(latent), pipe.decoder.image_size
    embeds = torch.stack([pca.reduce(latent.image_embed, k) for k in components], dim=1).flatten(0, 1)
    how = pipe.decoder.resolve(None)
    x = Noise.of(seed).at("pca").at("x_T").normal((3, size_0, size_0)).expand(len(embeds), -1, -1, -1).contiguous()
    latent = Latent(embeds, x, how, ("",) * len(embeds), pipe.models())
    labels = [f"{k} components" for k in components] * count
    return _edit(pipe, "reconstruct pca", latent, how, labels, len(components), given, guidance, seed, size, progress)


def slerp(a: Float[Tensor, "b ..."], b: Float[Tensor, "b ..."], fraction: float | Float[Tensor, " b"]) -> Float[Tensor, "b ..."]:
    """Per sample: the direction turns from a's to b's by `fraction` of their angle, the norm goes linearly.

    Opposite vectors have no one way between them: they turn through the axis that a points along least.  A zero vector has
    the other's direction.
    """
    x, y = a.flatten(1).double(), b.flatten(1).double()
    f = torch.as_tensor(fraction, dtype=torch.float64).cpu().expand(len(x)).to(x.device)[:, None]
    norm_x, norm_y = x.norm(dim=1, keepdim=True), y.norm(dim=1, keepdim=True)
    x = torch.where(norm_x > 0, x / norm_x.clamp(min=1e-300), y / norm_y.clamp(min=1e-300))
    y = torch.where(norm_y > 0, y / norm_y.clamp(min=1e-300), x)
    cos = (x * y).sum(1, keepdim=True)
    across = y - cos * x
    sin = across.norm(dim=1, keepdim=True)
    axis = torch.zeros_like(x).scatter_(1, x.abs().argmin(1, keepdim=True), 1.0)
    axis = normalize(axis - (axis * x).sum(1, keepdim=True) * x, dim=1)
    across = torch.where(sin > 1e-7, across / sin.clamp(min=1e-300), axis)  # only at 0 and pi is it not told by y
    angle = torch.atan2(sin, cos) * f
    turned = (torch.cos(angle) * x + torch.sin(angle) * across) * torch.lerp(norm_x, norm_y, f)
    turned = turned.reshape(a.shape).to(a.dtype)
    f = f.reshape(-1, *[1] * (a.ndim - 1))
    return torch.where(f == 0, a, torch.where(f == 1, b, turned))  # the ends to the last bit


class _Opened(NamedTuple):
    latent: Latent
    pictures: Tensor | None  # (b, 3, s, s) at the decoder's size, where a picture was given


def _opened(
    pipe: UnCLIP,
    source: Source | Sequence[Picture],
    inversion: Inversion | None,
    progress: Progress | None,
    embed_only: bool = False,
) -> _Opened:
    """The latent of a source.  `embed_only`: nobody will look at x_T, so a picture is not inverted."""
    if isinstance(source, (str, Path)) and _is_latent_file(source):
        source = Latent.load(source)
    if isinstance(source, (Generation, Edit)):
        small = source.stages[min(source.stages)]
        return _Opened(_belonging(pipe, source.latent), small)
    if isinstance(source, Latent):
        return _Opened(_belonging(pipe, source), None)
    images = _pictures(source)
    size, device = pipe.decoder.image_size, pipe.device
    # CLIP sees each picture as it came, the decoder at its own size.
    embeds = [pipe.clip.encode_image(image[None].to(device)).float().cpu() for image in images]
    small, image_embed = torch.cat([fit_square(image[None].float().cpu(), size) for image in images]), torch.cat(embeds)
    captions = ("",) * len(small)
    if embed_only:
        how = pipe.decoder.resolve(None)
        return _Opened(Latent(image_embed, torch.zeros_like(small), how, captions, pipe.models()), small)
    x_t: list[Tensor] = []
    back: tuple[int, ...] = ()
    for rows in pipe.chunks(len(small), size):
        if progress:
            progress("invert", rows.start, len(small))
        cond = pipe.condition(image_embed[rows], captions[rows])
        x, back = pipe.decoder.invert(small[rows].to(device), cond, inversion=inversion)
        x_t.append(x.float().cpu())
    if progress:
        progress("invert", len(small), len(small))
    how = Sampling(sampler="ddim", steps=back)
    return _Opened(Latent(image_embed, torch.cat(x_t), how, captions, pipe.models()), small)


def _read(pipe: UnCLIP, source: Source) -> str | list[Tensor] | Latent | Generation | Edit:
    """A source of an interpolation, of which a string is a caption from here on; refused when it is no good."""
    if isinstance(source, str) and not _looks_like_a_file(source):
        return source
    if isinstance(source, (str, Path)) and _is_latent_file(source):
        source = Latent.load(source)
    if isinstance(source, Latent):
        return _belonging(pipe, source)
    return source if isinstance(source, (Generation, Edit)) else _pictures(source)


def _all_opened(
    pipe: UnCLIP,
    sources: Sequence[str | list[Tensor] | Latent | Generation | Edit],
    x_t: Way,
    seed: int,
    inversion: Inversion | None,
    progress: Progress | None,
) -> tuple[list[Latent], Tensor | None]:
    """The latents of an interpolation's sources, which can be mixed only when all are drawn in the same way."""
    small = pipe.sizes[0]
    captions = [source for source in sources if isinstance(source, str)]
    drawn = pipe.generate(captions, seed=seed, size=small, progress=progress) if captions else None
    opened, k = [], 0
    for source in sources:
        if drawn is not None and isinstance(source, str):
            one = _Opened(replace(drawn.latent.rows(slice(k, k + 1)), captions=("",)), drawn.images[k : k + 1])
            if len(captions) < len(sources) and x_t == "slerp":  # among pictures it is one too
                one = _opened(pipe, drawn.images[k], inversion, progress)
            k += 1
        else:
            one = _opened(pipe, source, inversion, progress, embed_only=x_t == "fixed")
        opened.append(one)
    latents = [one.latent for one in opened]
    if x_t == "slerp" and any(_exact(latent.sampling) != _exact(latents[0].sampling) for latent in latents):
        raise ValueError(
            "these latents are drawn by different samplings, between which x_T cannot be interpolated: invert all pictures "
            "with the same settings (give them as pictures), or use x_t='fixed'"
        )
    pictures = [one.pictures for one in opened if one.pictures is not None]
    return latents, torch.cat(pictures) if len(pictures) == len(opened) else None


def _edit(
    pipe: UnCLIP,
    verb: str,
    latent: Latent,
    how: Sampling,
    labels: list[str],
    columns: int,
    given: Tensor | None,
    guidance: float | None,
    seed: int,
    size: int | None,
    progress: Progress | None,
    noise: Noise | None = None,
) -> Edit:
    """Decode and upsample.  Without noise of their own all pictures get the same, so that a series does not flicker."""
    noise = noise or Noise.of(seed, [0] * len(latent)).at(verb)
    how = how if guidance is None else how.replace(guidance=float(guidance))
    latent = replace(latent, sampling=how)
    stages = pipe.draw(latent, how, noise, size, progress)
    return Edit(
        verb=verb,
        images=stages[max(stages)],
        latent=latent,
        stages=stages,
        labels=tuple(labels),
        columns=columns,
        sources=given,
        story={"edit": verb, "seed": str(seed), "model": pipe.name},
    )


def _check(pipe: UnCLIP, size: int | None, guidance: float | None) -> None:
    """Refuse now what would be refused after an inversion."""
    pipe.stages(size)
    Sampling(guidance=1.0 if guidance is None else float(guidance))


def _exact(sampling: Sampling) -> Sampling:
    """The way from x_T that draws no noise."""
    if sampling.sampler == "ddpm":
        return sampling.replace(sampler="ddim", variance="small")
    return sampling.replace(eta=0.0)


def _to_clean(sampling: Sampling) -> Sampling:
    """The way on to t = 0: where new noise was drawn, the last of it has to be taken out."""
    assert isinstance(sampling.steps, tuple)
    return sampling.replace(steps=(*(t for t in sampling.steps if t > 0), 0))


def _belonging(pipe: UnCLIP, latent: Latent) -> Latent:
    own = pipe.models()
    for part in ("clip", "decoder"):
        if latent.models.get(part) != own[part]:
            raise ValueError(
                f"this latent was made with another {part} ({latent.models.get(part)}, pipeline "
                f"{latent.models.get('pipeline')!r}) than this pipeline's ({own[part]}): invert the picture again"
            )
    return latent


def _pictures(source: Picture | Sequence[Picture]) -> list[Tensor]:
    """One or many pictures, each (3, h, w)."""
    if isinstance(source, Tensor) and source.ndim == 4:
        source = list(source)
    many = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    if not many:
        raise ValueError("no picture was given")
    images = []
    for picture in many:
        frames = _frames(picture)
        if frames > 1:
            warnings.warn(f"an animated picture was given: the first of its {frames} frames is used", stacklevel=2)
        image = load_picture(picture)
        height, width = image.shape[-2:]
        if min(height, width) < SMALLEST:
            raise ValueError(f"a picture of {width} x {height} pixels shows nothing; its shorter side must have {SMALLEST}")
        images.append(image)
    return images


def _frames(picture: Picture) -> int:
    from PIL import Image

    if isinstance(picture, Tensor):
        return 1
    if isinstance(picture, Image.Image):
        return int(getattr(picture, "n_frames", 1))
    try:
        with Image.open(picture) as opened:
            return int(getattr(opened, "n_frames", 1))
    except Exception:  # load_picture says what is wrong with it
        return 1


def _is_latent_file(source: str | Path) -> bool:
    return Path(source).suffix.lower() == ".safetensors"


def _looks_like_a_file(text: str) -> bool:
    """A path that exists, or a word that ends like a file: a typing error in a path must not become a caption."""
    suffix = Path(text).suffix
    ends_like_a_file = 1 < len(suffix) <= 5 and suffix[1:].isalnum() and not suffix[1:].isdecimal()
    try:
        return (Path(text).is_file()) or _is_latent_file(text) or (ends_like_a_file and " " not in text)
    except OSError:  # longer than a path can be
        return False


def one_of(name: str, value: str, words: object) -> str:
    if value not in get_args(words):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(get_args(words))}")
    return value

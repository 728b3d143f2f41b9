"""Sources of edits: pictures, captions and latents, read and brought to a latent pair (z_i, x_T)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, TypeGuard, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from unclip.checks import path_of
from unclip.clip.preprocess import fit_square
from unclip.contracts import accepts
from unclip.data.images import load_image
from unclip.diffusion.guidance import reporting
from unclip.files import regular_file
from unclip.randomness import Noise
from unclip.sampling import Inversion, Sampling
from unclip.types import Callback

from .latent import Latent
from .pipeline import Drawn, Pipeline

if TYPE_CHECKING:
    from PIL import Image

ImageLike: TypeAlias = "str | Path | Image.Image | Tensor | np.ndarray"
Source: TypeAlias = "ImageLike | Latent | Drawn"
SMALLEST = 8  # pixels of a picture's shorter side


@runtime_checkable
class Invertible(Protocol):
    """A decoder that says beforehand how its inversion goes."""

    @property
    def inversion(self) -> Inversion: ...  # its default

    def inverse_timesteps(self, inversion: Inversion) -> tuple[int, ...]: ...


class SourceImages(NamedTuple):
    """Pictures (3, h, w) as they came, and those of every size (b, 3, s, s) where a pipeline has drawn them."""

    images: list[Tensor]
    stages: Mapping[int, Tensor]


def source_images(source: Source | Sequence[ImageLike]) -> SourceImages:
    """The pictures of a source, which is no latent: that would have to be drawn first."""
    if isinstance(source, Latent) or (isinstance(source, (str, Path)) and _is_latent_file(source)):
        raise ValueError("a latent is no picture: give the picture, or draw it with `reconstruct` first")
    if isinstance(source, Drawn):
        return SourceImages(list(source.stages[max(source.stages)]), source.stages)
    return SourceImages(read_images(source), {})


class Opened(NamedTuple):
    """A source's latent, and its pictures (b, 3, s, s) at the decoder's size where it has some."""

    latent: Latent
    images: Tensor | None

    def rows(self, which: slice) -> Opened:
        return Opened(self.latent.rows(which), None if self.images is None else self.images[which])


def opened(
    pipe: Pipeline,
    source: Source | Sequence[ImageLike],
    inversion: Inversion | None,
    callback: Callback | None,
    embed_only: bool = False,
) -> Opened:
    """The latent of a source.  `embed_only`: nobody will look at x_T, so a picture is not inverted."""
    resolved = _resolve(pipe, source)
    return resolved if isinstance(resolved, Opened) else _inverted(pipe, resolved, inversion, callback, embed_only)


def ends(
    pipe: Pipeline, sources: Sequence[Source], mixed: bool, seed: int, inversion: Inversion | None, callback: Callback | None
) -> tuple[list[Latent], Tensor | None]:
    """The latents that an interpolation goes through.  `mixed`: their x_T will be, so all must be drawn in the same way.

    A string that is no path, and does not look like one, is a caption and drawn first.  All sources are read before any is
    drawn, and what has to be inverted is inverted together.
    """
    read = [source if _is_caption(source) else _resolve(pipe, source) for source in sources]
    count = sum(1 if isinstance(source, str) else len(source.latent if isinstance(source, Opened) else source) for source in read)
    if count < 2:
        raise ValueError(f"{count} picture was given; an interpolation goes from one to another")
    resolved = _drawn(pipe, read, mixed, seed, callback)
    images = [image for source in resolved if isinstance(source, list) for image in source]
    fresh = _inverted(pipe, images, inversion, callback, embed_only=not mixed) if images else None
    pairs, k = [], 0
    for source in resolved:
        if isinstance(source, list):
            assert fresh is not None
            k, source = k + len(source), fresh.rows(slice(k, k + len(source)))
        pairs.append(source)
    latents, shown = [one.latent for one in pairs], [one.images for one in pairs if one.images is not None]
    if mixed and any(exact(latent.sampling) != exact(latents[0].sampling) for latent in latents):
        raise ValueError(
            "these latents are drawn by different samplings, between which x_T cannot be interpolated: invert all pictures "
            "with the same settings (give them as pictures), or use x_t='fixed'"
        )
    return latents, torch.cat(shown) if len(shown) == len(pairs) else None


def embeddings(pipe: Pipeline, sources: Sequence[Source], seed: int, callback: Callback | None) -> Tensor:
    """The image embedding (k, d) of each source, a caption's drawn by the prior; ValueError for a source of several pictures."""
    read = [source if _is_caption(source) else _resolve(pipe, source) for source in sources]
    for resolved in read:
        count = 1 if isinstance(resolved, str) else len(resolved.latent if isinstance(resolved, Opened) else resolved)
        if count != 1:
            raise ValueError(f"a source holds {count} pictures; give each as one of its own")
    captions = [source for source in read if isinstance(source, str)]
    if captions:
        noise = Noise.of(seed, range(len(captions))).at("prior")
        text = pipe.clip.encode_text(captions)
        drawn = iter(pipe.embed(text, noise, callback=callback).unsqueeze(1))
    embeds = []
    for one in read:
        if isinstance(one, str):
            embeds.append(next(drawn))
        else:
            opened_ = one if isinstance(one, Opened) else _inverted(pipe, one, None, None, embed_only=True)
            embeds.append(opened_.latent.image_embed.cpu())
    return torch.cat(embeds)


def exact(sampling: Sampling) -> Sampling:
    """The way from x_T that draws no noise."""
    if sampling.sampler == "ddpm":
        return sampling.replace(sampler="ddim", variance="small")
    return sampling.replace(eta=0.0)


def _inverted(
    pipe: Pipeline, images: Sequence[Tensor], inversion: Inversion | None, callback: Callback | None, embed_only: bool
) -> Opened:
    """Of pictures (3, h, w): CLIP sees each as it came, the decoder at its own size."""
    size, device = pipe.decoder.image_size, pipe.device
    embeds = [pipe.clip.encode_image(image[None].to(device)).float().cpu() for image in images]
    small, image_embed = torch.cat([fit_square(image[None].float().cpu(), size) for image in images]), torch.cat(embeds)
    captions = ("",) * len(small)
    if embed_only:
        sampling = pipe.decoder.resolve(None)
        return Opened(Latent(image_embed, torch.zeros_like(small), sampling, captions, pipe.models()), small)
    x_t: list[Tensor] = []
    back: tuple[int, ...] = ()
    for rows in pipe.chunks(len(small), size):
        cond = pipe.condition(image_embed[rows], captions[rows])
        options = {}
        if callback is not None and isinstance(pipe.decoder, Invertible) and accepts(pipe.decoder.invert, "wrap"):
            settings = inversion or pipe.decoder.inversion
            passes = (len(pipe.decoder.inverse_timesteps(settings)) - 1) * (1 + settings.refine)
            options["wrap"] = reporting(callback, "invert", passes, rows, len(small))
        x, back = pipe.decoder.invert(small[rows].to(device), cond, inversion=inversion, **options)
        x_t.append(x.float().cpu())
    sampling = Sampling(sampler="ddim", steps=back)
    return Opened(Latent(image_embed, torch.cat(x_t), sampling, captions, pipe.models()), small)


def _resolve(pipe: Pipeline, source: Source | Sequence[ImageLike]) -> list[Tensor] | Opened:
    """A source read: its pictures, or its latent where that is known."""
    if isinstance(source, (str, Path)) and _is_latent_file(source):
        source = Latent.load(source)
    if isinstance(source, Drawn) and not isinstance(source, Latent):
        if source.latent is None:  # of a cascade, or drawn around known pixels: pictures like others
            return source_images(source).images
        return Opened(_belonging(pipe, source.latent), source.stages[min(source.stages)])
    return Opened(_belonging(pipe, source), None) if isinstance(source, Latent) else read_images(source)


def _drawn(
    pipe: Pipeline, read: Sequence[str | list[Tensor] | Opened], mixed: bool, seed: int, callback: Callback | None
) -> list[list[Tensor] | Opened]:
    """Captions become drawings.  Their latents are known, unless x_T is mixed with one found or drawn in another way: then they
    are pictures like others."""
    captions = [source for source in read if isinstance(source, str)]
    others = [source for source in read if not isinstance(source, str)]
    if not captions:
        return others
    made = pipe.generate(captions, seed=seed, size=pipe.sizes[0], callback=callback)
    drawn = Opened(replace(made.latent, captions=("",) * len(captions)), made.images)
    sampling = exact(made.latent.sampling)
    as_images = mixed and any(isinstance(one, list) or exact(one.latent.sampling) != sampling for one in others)
    resolved: list[list[Tensor] | Opened] = []
    k = 0
    for source in read:
        if isinstance(source, str):
            row, k = slice(k, k + 1), k + 1
            source = list(made.images[row]) if as_images else drawn.rows(row)
        resolved.append(source)
    return resolved


def _belonging(pipe: Pipeline, latent: Latent) -> Latent:
    models = pipe.models()
    for name in ("clip", "decoder"):
        if latent.models.get(name) != models[name]:
            raise ValueError(
                f"this latent was made with another {name} ({latent.models.get(name)}, pipeline "
                f"{latent.models.get('pipeline')!r}) than this pipeline's ({models[name]}), or with its weights in another type: "
                "invert the picture again"
            )
    return latent


def read_images(source: ImageLike | Sequence[ImageLike]) -> list[Tensor]:
    """One or many pictures, each (3, h, w)."""
    if isinstance(source, (Tensor, np.ndarray)) and source.ndim == 4:
        source = list(source)
    many = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    if not many:
        raise ValueError("no picture was given")
    images = []
    for one in many:
        frames = _frames(one)
        if frames > 1:
            warnings.warn(f"an animated picture was given: the first of its {frames} frames is used", stacklevel=2)
        image = load_image(one)
        height, width = image.shape[-2:]
        if min(height, width) < SMALLEST:
            raise ValueError(f"a picture of {width} x {height} pixels shows nothing; its shorter side must have {SMALLEST}")
        images.append(image)
    return images


def _frames(image: ImageLike) -> int:
    from PIL import Image

    if isinstance(image, (Tensor, np.ndarray)):
        return 1
    if isinstance(image, Image.Image):
        return int(getattr(image, "n_frames", 1))
    try:
        with Image.open(regular_file(path_of(image))) as file:
            return int(getattr(file, "n_frames", 1))
    except Exception:  # load_image says what is wrong with it
        return 1


def _is_latent_file(source: str | Path) -> bool:
    return Path(source).suffix.lower() == ".safetensors"


def _is_caption(source: object) -> TypeGuard[str]:
    """A string that is no path and does not end like a file: a typing error in a path must not become a caption."""
    from PIL import Image

    if not isinstance(source, str):
        return False
    suffix = Path(source).suffix.lower()
    known = _is_latent_file(source) or suffix in Image.registered_extensions()
    # The ending may be mistyped too, but "e.g" has one as well, and so has a sentence.
    ends_like_a_file = 2 < len(suffix) <= 5 and suffix[1:].isalnum() and not suffix[1:].isdecimal() and " " not in source
    try:
        return not (known or ends_like_a_file or (source and path_of(source).exists()))  # "" is a caption, and the folder "."
    except OSError:  # longer than a path can be
        return True

"""Image to image: a picture, noised in part, is drawn anew for a caption (SDEdit, Meng et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unclip.clip.preprocess import fit_square
from unclip.sampling import Sampling

from .init_image import InitImages
from .pipeline import Painter, Pipeline
from .result import Edit
from .sources import ImageLike, Source, SourceImages, source_images


@torch.no_grad()
def img2img(
    pipe: Painter,
    picture: Source | Sequence[ImageLike],
    caption: str | Sequence[str] | None = None,
    strength: float = 0.75,
    n: int = 1,
    seed: int = 0,
    first: int = 0,
    size: int | None = None,
    guidance: float | None = None,
    decoder: Sampling | None = None,
    **options: Any,
) -> Edit:
    """n drawings of each picture, in its colours and layout, of what its caption says (SDEdit; GLIDE 4.2).

    strength: the fraction of the decoder's steps that is taken, from the picture with so much noise: near 0 it stays, 1 is
    `generate` to the last bit.  On a cosine schedule most happens from 0.6 to 0.9.  picture: one or several; caption: one for
    all, or one each.  guidance: of the decoder.  options: all others of the pipeline's `generate`.  Returns one row per picture.
    """
    source = source_images(picture)
    small = pipe.sizes[0]
    start = InitImages({small: fitted(source, small)}, strength=strength)
    sampling = guided(pipe, decoder, guidance)
    captions = each(caption, len(start))
    if captions is None and isinstance(pipe, Pipeline):
        raise ValueError("no caption was given: say what the picture shall become, '' for whatever the model likes")
    options = each_label(options, start)
    made = pipe.generate(captions, n=n, seed=seed, first=first, size=size, decoder=sampling, init=start, **options)
    strength_label = f"{start.strength:g}"
    before = fitted(source, made.images.shape[-1])
    return edit_of(pipe, "img2img", made, f"strength {strength_label}", before, {"strength": strength_label}, n, seed, first)


def fitted(source: SourceImages, size: int) -> Tensor:
    """Pictures (b, 3, size, size): as they were drawn at this size, else cropped and resized."""
    if size in source.stages:
        return source.stages[size].float().cpu()
    return torch.cat([fit_square(image[None].float().cpu(), size) for image in source.images])


def each(caption: str | Sequence[str] | None, count: int) -> Any:
    """One caption for each of several pictures."""
    captions = [caption] if isinstance(caption, str) else caption
    return captions * count if isinstance(captions, list) and len(captions) == 1 else captions


def each_label(options: dict[str, Any], init: InitImages) -> dict[str, Any]:
    """The options of `generate`, one label among them for each of several pictures."""
    labels = options.get("labels")
    return options | {"labels": [labels] * len(init)} if isinstance(labels, (int, str)) else options


def guided(pipe: Painter, sampling: Sampling | None, guidance: float | None) -> Sampling | None:
    """A sampling, None = the decoder's own, with another guidance."""
    if guidance is None:
        return sampling
    return (sampling or pipe.decoder.resolve(None)).replace(guidance=float(guidance))


def edit_of(
    pipe: Painter, verb: str, made: Any, label: str, before: Tensor, metadata: dict[str, str], n: int, seed: int, first: int
) -> Edit:
    """What `generate` has returned, n pictures a row, as an edit beside the pictures that were given."""
    captions = set(made.captions)
    metadata = {"edit": verb, "seed": str(seed), "model": pipe.name, **metadata}
    return Edit(
        verb=verb,
        images=made.images,
        latent=made.latent,
        stages=made.stages,
        labels=(label,) * len(made) if len(captions) == 1 else tuple(f"{caption}, {label}" for caption in made.captions),
        columns=n,
        sources=before if len(before) > 1 else before.expand(len(made) // n, -1, -1, -1),
        metadata=metadata | ({"caption": captions.pop()} if len(captions) == 1 else {}),
        first=first,
        numbers=tuple(index for _, index in made.seeds),
    )

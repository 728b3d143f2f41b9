"""Inpainting: a part of a picture is drawn anew, every other pixel stays as it is (GLIDE 2.2; RePaint, Lugmayr et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unclip.checks import check_int
from unclip.clip.preprocess import fit_square
from unclip.sampling import Sampling
from unclip.types import Decoder

from .img2img import each, each_label, edit_of
from .init_image import InitImages
from .mask import Mask, at_size, filled, keep_masks, weights
from .pipeline import Painter, Pipeline
from .result import Edit
from .sources import ImageLike, Source, SourceImages, source_images

STEPS = 50
REPAINT, REPAINT_STEPS = (5, 4), 25  # 85 passes


@torch.no_grad()
def inpaint(
    pipe: Painter,
    picture: Source | Sequence[ImageLike],
    caption: str | Sequence[str] | None = None,
    *,
    keep: Mask | Sequence[Mask] | None = None,
    mask: Mask | Sequence[Mask] | None = None,
    n: int = 1,
    seed: int = 0,
    first: int = 0,
    size: int | None = None,
    feather: int = 0,
    repaint: bool | tuple[int, int] = False,
    guidance: float | None = None,
    decoder: Sampling | None = None,
    **options: Any,
) -> Edit:
    """n drawings of each picture with a part of it drawn anew; kept pixels are the given ones to the last bit, at every size.

    keep: True, or white, where pixels stay.  mask: True, or white, where they are drawn anew.  Give one, as large as the picture.
    What the picture shows in the hole has no influence.  caption: of the finished picture, one for all or one each; None: the
    embedding is CLIP's of what is kept.  feather: over so many kept pixels of the picture, drawn and given ones are blended.
    repaint: (jump, times), go back and draw steps again (RePaint); True = (5, 4).  decoder: its sampling, by default
    `inpaint_sampling`.  options: all others of the pipeline's `generate`.  The result can be given as the next picture.  Returns
    one row per picture, without a latent: known pixels have shaped it, not (z_i, x_T) alone.

    A stage more than twice as large as the picture has no pixels to keep: it enlarges what the smaller one has drawn.
    """
    source = source_images(picture)
    feather = check_int("feather", feather, 0, "over how many pixels of the picture its border is blended")
    keeps = keep_masks(keep, mask, [(image.shape[-2], image.shape[-1]) for image in source.images])
    around = known(source, keeps, pipe.stages(size), feather)
    captions = each(caption, len(around))
    if caption is None and isinstance(pipe, Pipeline) and "image_embed" in pipe.decoder.takes:
        around, captions = _shown_by_clip(pipe, source, keeps, around), [""] * len(around)
    chosen = decoder or inpaint_sampling(pipe.decoder, repaint)
    chosen = chosen if not repaint else chosen.replace(repaint=_jumps(repaint))
    chosen = chosen if guidance is None else chosen.replace(guidance=float(guidance))
    made = pipe.generate(
        captions, n=n, seed=seed, first=first, size=size, decoder=chosen, init=around, **each_label(options, around)
    )
    label = "around what is kept" if caption is None else "drawn anew"
    return edit_of(pipe, "inpaint", made, label, _before(source, keeps, made.images.shape[-1]), {}, n, seed, first)


def inpaint_sampling(decoder: Decoder, repaint: bool | tuple[int, int] = False) -> Sampling:
    """How a decoder draws around known pixels.

    Its own way, if it was trained to (`Known`).  Else 50 steps of ddpm: between them the noise is drawn anew, which knits what is
    drawn to what is kept, where a multistep solver looks back at what was not yet replaced.  RePaint takes 25.
    """
    chosen = decoder.resolve(None)
    if "known" in decoder.takes and not repaint:
        return chosen
    if chosen.sampler != "ddpm":
        chosen = chosen.replace(sampler="ddpm", eta=0.0, variance="small")
    jumps = _jumps(repaint)
    return decoder.resolve(chosen.replace(steps=REPAINT_STEPS if jumps else STEPS, repaint=jumps))


def _jumps(repaint: bool | tuple[int, int]) -> tuple[int, int] | None:
    return REPAINT if repaint is True else repaint or None


def known(source: SourceImages, keeps: Sequence[Tensor], sizes: Sequence[int], feather: int = 0) -> InitImages:
    """What is kept of pictures, for stages of these sizes; ValueError where that is all of a picture, or nothing."""
    images: dict[int, Tensor] = {}
    weight: dict[int, Tensor] = {}
    soft = [weights(keep, feather) for keep in keeps]
    full = [filled(image[None].float().cpu(), keep) for image, keep in zip(source.images, keeps)]
    for size in sizes:
        has = [size == sizes[0] or size <= 2 * min(image.shape[-2:]) for image in full]
        if any(has):
            fitted = torch.cat([fit_square(image, size) for image in full])
            images[size] = source.stages[size].float().cpu() if size in source.stages else fitted
            weight[size] = torch.cat([at_size(one, size) * float(has_pixels) for one, has_pixels in zip(soft, has)])
    small, largest = weight[sizes[0]], weight[max(weight)]
    whole = "of the square that is used of it" if any(k.shape[-2] != k.shape[-1] for k in keeps) else "of it"
    for i in range(len(full)):
        if (small[i] == 1).all():
            raise ValueError(f"picture {i}: all {whole} is kept, nothing would be drawn; does the mask mean the other part?")
        if not (largest[i] == 1).any():
            problem = f"picture {i}: nothing {whole} is kept" + (f" with feather {feather}" if feather else "")
            raise ValueError(f"{problem}; draw it with generate, or start from it with img2img")
    return InitImages(images, keep=weight)


def _shown_by_clip(pipe: Pipeline, source: SourceImages, keeps: Sequence[Tensor], around: InitImages) -> InitImages:
    """With CLIP's embedding of what is kept, continued into the hole: an erased part would be seen as a thing of its own."""
    embeds = [
        pipe.clip.encode_image(filled(image[None].float().cpu(), keep).to(pipe.device)).float().cpu()
        for image, keep in zip(source.images, keeps)
    ]
    return InitImages(around.images, keep=around.keep, image_embed=torch.cat(embeds))


def _before(source: SourceImages, keeps: Sequence[Tensor], size: int) -> Tensor:
    """The given pictures with grey holes (b, 3, size, size)."""
    kept = known(source, keeps, [size])
    return torch.where(kept.keep[size] == 1, kept.images[size], 0.0)

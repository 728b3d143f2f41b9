"""What leads a drawing beside its conditions: negatives, a guide, init images; checked before anything is drawn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unclip.contracts import accepts
from unclip.diffusion.guidance import gradient_guidance, keep_known
from unclip.diffusion.schedule import Scheduled
from unclip.editing.init_image import InitImages, scheduled
from unclip.sampling import Sampling
from unclip.trees import move
from unclip.types import Adjustable, Cond, Guide, GuideModel, Labelled, Text, Wrap


class Steering(NamedTuple):
    """What guidance leads away from, a guide with its scale, and the pictures that a drawing starts from or keeps parts of."""

    negative: Text | None = None
    guide: Guide | GuideModel | None = None
    guide_scale: float | None = None  # None = the guide's own
    init: InitImages | None = None

    def away(self, takes: Sequence[str], rows: slice) -> Text | None:
        """The negative captions of a component, if it reads captions."""
        return None if self.negative is None or "text" not in takes else self.negative.rows(rows)

    def guided(self, cond: Cond) -> list[Wrap]:
        """The guide of pictures with these conditions."""
        scale = scale_of(self.guide) if self.guide_scale is None else self.guide_scale
        if self.guide is None or scale == 0:
            return []
        fn = self.guide.guide(cond) if isinstance(self.guide, GuideModel) else self.guide
        return [lambda denoise: gradient_guidance(denoise, fn, scale)]

    def known(self, size: int, rows: slice) -> tuple[Any, Any] | None:
        """What a stage of this size knows of its pictures: (images, keep)."""
        return None if self.init is None else self.init.rows(rows).known(size)

    def pasted(self, size: int, rows: slice, drawn: Tensor) -> Tensor:
        """What a stage of this size has drawn, with what is kept of the given pictures in its place."""
        return drawn if self.init is None else self.init.rows(rows).paste(size, drawn)

    def around(self, stage: Any, known: tuple[Any, Any] | None, device: torch.device) -> list[Wrap]:
        """Known pixels in the place of what a stage predicts for them, in each step; nothing where it takes no `wrap`."""
        if known is None or not (isinstance(stage, Scheduled) and accepts(stage.sample, "wrap")):  # type: ignore[attr-defined]
            return []
        schedule, (images, keep) = stage.schedule, move(known, device)
        return [lambda denoise: keep_known(denoise, schedule, images, keep)]


UNSTEERED = Steering()


def check_steering(
    steering: Steering, pipe: Any, stages: Sequence[int], decoding: Sampling, settings: Sequence[Sampling | None], callback: Any
) -> None:
    """ValueError for what cannot be called, and for a stage that has no argument for what shall lead it; a warning for what
    does nothing.  decoding, settings: the samplings of decoder and upsamplers; stages: the sizes that are drawn."""
    decoder, (negative, guide, guide_scale, init) = pipe.decoder, steering
    check_callables(callback, guide, guide_scale)
    check_guide(guide, decoder)
    reads = negative is not None and "text" in decoder.takes
    check_way_in(decoder.sample, "decoder", negative=reads, steered=guide is not None)
    if reads and decoding.guidance == 1:
        warn_inert("decoder")
    for high, upsampler, sampling in zip(stages[1:], pipe.upsamplers, settings):
        if negative is not None and "text" in takes_of(upsampler):
            check_way_in(upsampler.sample, f"upsampler_{high}", negative=True)
            if isinstance(upsampler, Adjustable) and upsampler.resolve(sampling).guidance == 1:
                warn_inert(f"upsampler_{high}")
    if init is not None and (init.keep or init.strength < 1):
        scheduled(decoder, "decoder")
    if init is not None and init.keep and not accepts(decoder.sample, "wrap"):
        raise ValueError("the decoder cannot draw around known pixels: its sample() has no argument `wrap`")


def check_guide(guide: Any, decoder: Any) -> None:
    """ValueError for a guide of another resolution, schedule or other classes than the decoder's, where both tell them."""
    kind = type(guide).__name__
    sizes = getattr(guide, "image_size", None), decoder.image_size
    if guide is not None and sizes[0] not in (None, sizes[1]):
        problem = f"the guide, a {kind}, reads pictures of {sizes[0]} pixels, and the decoder draws {sizes[1]}"
        raise ValueError(f"{problem}: take one of the decoder's resolution")
    if isinstance(guide, Scheduled) and isinstance(decoder, Scheduled) and not guide.schedule.same(decoder.schedule):
        theirs, ours = guide.schedule.describe(), decoder.schedule.describe()
        problem = f"the guide, a {kind}, was trained with another noise schedule ({theirs}) than the decoder ({ours})"
        raise ValueError(f"{problem}: its timesteps mean other noise, take one of the decoder's schedule")
    names, known = (names_of_classes(x) for x in (guide, decoder))
    if names and known and names != known:
        wrong = next(pair for pair in zip_longest(names, known) if pair[0] != pair[1])
        problem = f"the guide, a {kind}, has other classes than the decoder: {wrong[0]!r} where that has {wrong[1]!r}"
        raise ValueError(f"{problem}: take one of the same classes, in the same order")


def names_of_classes(component: Any) -> tuple[str, ...]:
    """By number; () where there are none, or they have no names."""
    return component.label_names if isinstance(component, Labelled) else ()


def scale_of(guide: Any) -> float:
    """How strongly a guide steers by default: its `scale`, where it has one."""
    scale: float = getattr(guide, "scale", 1.0)
    return scale


def takes_of(component: Any) -> tuple[str, ...]:
    """The fields of `Cond` that an upsampler is built for: those without `takes` see the low resolution alone."""
    takes: tuple[str, ...] = getattr(component, "takes", ())
    return takes


def check_way_in(method: Any, stage: str, negative: bool = False, steered: bool = False) -> None:
    """ValueError for a component whose `sample` has no argument for what shall lead it."""
    if negative and not accepts(method, "negative"):
        raise ValueError(f"the {stage} takes no negative caption: its sample() has no argument `negative`")
    if steered and not accepts(method, "wrap"):
        raise ValueError(f"the {stage} cannot be guided: its sample() has no argument `wrap`")


def check_callables(callback: Any, guide: Any, guide_scale: Any) -> None:
    """ValueError for a callback or guide that cannot be called, and a scale that is no finite number."""
    if callback is not None and not callable(callback):
        raise ValueError(f"callback is {callback!r}; it is called with a Step after every denoising step, as print could be")
    if guide is not None and not isinstance(guide, GuideModel) and not callable(guide):
        raise ValueError(f"guide is {guide!r}; give a function (x_t, t) -> (b), or a model with guide(cond) that makes one")
    number = isinstance(guide_scale, (int, float)) and not isinstance(guide_scale, bool) and abs(guide_scale) < float("inf")
    if guide_scale is not None and not number:
        raise ValueError(f"guide_scale is {guide_scale!r}; it must be a finite number (0 = not guided), or None for the guide's")


def warn_inert(stage: str, stacklevel: int = 4) -> None:
    warnings.warn(f"negative changes nothing in the {stage}: its guidance is 1, ask for more", stacklevel=stacklevel)


def negative_text(read: Callable[[list[str]], Text], strings: Sequence[str], count: int, n: int) -> Text | None:
    """Captions to lead away from, one for all or one each, as read by `read`; None where all are blank, which means the null."""
    if len(strings) not in (1, count):
        raise ValueError(f"{len(strings)} negative captions came with {count} captions: give one for all, or one each")
    if not any(caption.strip() for caption in strings):
        return None
    return read(list(strings) * (count if len(strings) == 1 else 1)).repeat(n)


def init_rows(init: InitImages | None, count: int, n: int) -> InitImages | None:
    """Init images, one for all captions or one each, n times each."""
    if init is None:
        return None
    if len(init) not in (1, count):
        raise ValueError(f"{len(init)} pictures came with {count} captions: give one for all, or one each")
    return init.repeat(n if len(init) == count else count * n)

"""Run a stage on a chunk of pictures with callback and guidance; check captions, labels and settings."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import signature
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unclip.checks import DTYPES, check_int, device_of
from unclip.contracts import accepts
from unclip.deprecation import warn
from unclip.diffusion.guidance import reporting
from unclip.diffusion.schedule import resampled
from unclip.sampling import Sampling
from unclip.types import Callback, Denoise, Labelled, Step, Wrap

from .steering import check_way_in


class FormerNames:
    """Former names of what every pipeline has, for one version."""

    @property
    def parts(self) -> dict[str, Any]:
        warn("pipe.parts", "pipe.components")
        components: dict[str, Any] = self.components  # type: ignore[attr-defined]
        return components


class Progress(NamedTuple):
    """The callback for one stage and one chunk of pictures, `rows` of `total`."""

    callback: Callback | None
    stage: str
    steps: int  # 0 = not known beforehand
    rows: slice
    total: int


def run_stage(
    method: Callable[..., Any],
    inputs: Sequence[Any],
    options: Mapping[str, Any],
    progress: Progress,
    negative: Any = None,
    steered: Sequence[Wrap] = (),
) -> Any:
    """Call a stage's `sample`.  What steers it (`steered`) and the callback come in by `wrap`, passed only where there is any.

    A component without `wrap` cannot be steered.  It is told of by its own `on_step`, else by one step when it has finished.
    """
    callback, stage, steps, rows, total = progress
    options = dict(options)
    check_way_in(method, stage, negative is not None, bool(steered))
    if negative is not None:
        options["negative"] = negative
    wraps = list(steered)
    stepwise = callback is not None and steps > 0 and accepts(method, "wrap")
    if callback is not None and stepwise:
        wraps.append(reporting(callback, stage, steps, rows, total))
    if wraps:
        options["wrap"] = lambda denoise: _composed(wraps, denoise)
    passwise = callback is not None and not stepwise and "on_step" in signature(method).parameters
    if callback is not None and passwise:
        options["on_step"] = lambda step, steps, state: callback(Step(stage, step, steps, 0, state, rows, total))
    drawn = method(*inputs, **options)
    if callback is not None and not stepwise and not passwise:
        callback(Step(stage, 1, 1, 0, drawn, rows, total))
    return drawn


def _composed(wraps: Sequence[Wrap], denoise: Denoise) -> Denoise:
    for wrap in wraps:
        denoise = wrap(denoise)
    return denoise


def passes(stage: Any, sampling: Any, t: int | None = None) -> int:
    """How many denoising steps a sampling takes, from timestep t where given; 0 where the component does not say."""
    resolved = stage.resolve(sampling) if hasattr(stage, "resolve") else None
    if not isinstance(resolved, Sampling) or not isinstance(resolved.steps, tuple):
        return 0
    visited = resolved.steps if t is None else (t, *(s for s in resolved.steps if s < t))
    visited = visited if resolved.repaint is None else resampled(visited, *resolved.repaint)
    return sum(s < t for t, s in pairwise(visited))


def chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def captions_of(captions: Any) -> list[str]:
    """One caption or several as a list; ValueError for what is no text."""
    if not isinstance(captions, (str, Sequence)) or isinstance(captions, (bytes, bytearray)):
        raise ValueError(f"captions are {captions!r}; give a string, or a list of strings")
    strings = [captions] if isinstance(captions, str) else list(captions)
    if not strings:
        raise ValueError("no caption was given: the list of captions is empty")
    for caption in strings:
        try:
            caption.encode()
        except (AttributeError, UnicodeEncodeError):  # half of a surrogate pair, or bytes of another encoding
            raise ValueError(f"a caption is text, not {caption!r}") from None
    return strings


def names_of(*components: object) -> tuple[str, ...]:
    """The names of the classes of the first component that knows some."""
    return next(
        (component.label_names for component in components if isinstance(component, Labelled) and component.label_names), ()
    )


def labels_of(labels: Any, names: Sequence[str]) -> list[int]:
    """One label or several, class numbers or names, as class numbers; ValueError for what is neither."""
    alone = isinstance(labels, str) or not isinstance(labels, Iterable) or (isinstance(labels, Tensor) and labels.ndim == 0)
    numbers = []
    for label in [labels] if alone else labels:
        if not isinstance(label, str):
            numbers.append(check_int("a label", label, what="the number of a class, or else its name"))
        elif label in names:
            numbers.append(names.index(label))
        else:
            near = difflib.get_close_matches(label, names, 5, 0.4) or list(names[:10])
            known = f"near are {', '.join(near)}" if names else "the labels of this decoder have no names, give numbers"
            raise ValueError(f"no label {label!r}; {known}")
    if not numbers:
        raise ValueError("no label was given: the list of labels is empty")
    return numbers


def numbers_of(n: Any, seed: Any, first: Any) -> tuple[int, int, int]:
    """n, seed and first as whole numbers; ValueError where there is nothing to draw."""
    n = check_int("n", n, 1, "how many pictures for each caption (several captions are given as a list)")
    return n, check_int("seed", seed), check_int("first", first, 0)


def check_settings(name: str, value: Any, kind: type) -> None:
    """ValueError for settings that are no `kind` and no `Sampling`."""
    if not isinstance(value, (kind, Sampling, type(None))):
        raise ValueError(f"{name}: {value!r} is no {kind.__name__}, which tells how this component samples (None = its own)")


def settings_of(decoder: Any, upsamplers: Any, count: int) -> list[Sampling | None]:
    """The settings of `count` upsamplers, one each; ValueError for settings of a wrong kind, the decoder's included."""
    settings = [None] * count if upsamplers is None else upsamplers
    if not isinstance(settings, Sequence) or len(settings) != count:
        actual = f"{len(settings)} settings" if isinstance(settings, Sequence) else repr(settings)
        raise ValueError(f"{actual} for {count} upsamplers; give a list, one each (None = its own)")
    for name, value in (("decoder", decoder), *(("upsamplers", s) for s in settings)):
        check_settings(name, value, Sampling)
    return list(settings)


def settle(components: Mapping[str, Any]) -> tuple[torch.device, Any]:
    """Put modules in evaluation mode; the device that they are on, and what keeps their weights elsewhere, if anything does."""
    modules = [component for component in components.values() if isinstance(component, nn.Module)]
    for module in modules:
        module.eval()
    offload = next((shared for module in modules if (shared := getattr(module, "offload", None))), None)
    places = [getattr(module, "offload", None) or next(module.parameters(), None) for module in modules]
    return next((place.device for place in places if place is not None), torch.device("cpu")), offload


def move_parts(components: Mapping[str, Any], offload: Any, device: torch.device | str, dtype: torch.dtype) -> torch.device:
    """Modules to a device; ValueError for a type that networks do not compute in there."""
    if dtype not in DTYPES:
        raise ValueError(f"networks compute in {', '.join(map(str, DTYPES))}, not in {dtype}")
    target = device_of(device)
    if dtype == torch.float16 and target.type == "cpu":
        raise ValueError("a CPU computes float16 a hundred times slower than float32: use bfloat16 or float32")
    if offload is not None and target != offload.device:
        offload.to(target)
    for component in components.values():
        if isinstance(component, nn.Module) and getattr(component, "offload", None) is None:
            component.to(target)
    return target

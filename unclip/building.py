"""Build modules on the meta device, and fill them strictly with tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unclip.weights import Lazy

from .config import Config, visible

M = TypeVar("M", bound=nn.Module)


def build(component_class: Callable[[Any], M], config: Config, dtype: torch.dtype | None = None) -> M:
    """A component whose parameters, in `dtype`, wait on the meta device to be filled; its buffers are real."""
    dtype = dtype or torch.float32
    with torch.random.fork_rng(devices=[]):
        try:
            with _parameters_on_meta(dtype), _Undrawn():
                return component_class(config)
        except NotImplementedError:  # open_clip moves the models that it knows by name, and nothing moves off meta
            component = component_class(config)
    for parameter in component.parameters():
        parameter.data = parameter.data.to(dtype)
    return component


@contextmanager
def _parameters_on_meta(dtype: torch.dtype) -> Iterator[None]:
    """Parameters are dropped as soon as a module registers them, so that at most one exists and none is initialised."""

    def drop(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None:
            return None
        return nn.Parameter(torch.empty_like(parameter, dtype=dtype, device="meta"), parameter.requires_grad)

    hook = nn.modules.module.register_module_parameter_registration_hook(drop)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def sketch(
    component_class: Callable[[Any], M], config: Config, dtype: torch.dtype | None = None, source: str = "the config"
) -> M:
    """A component of this config on the meta device, parameters in `dtype`: which tensors it has, without memory for any of them.

    ValueError where there can be none of these sizes.
    """
    try:
        with torch.device("meta"), _Undrawn(), torch.random.fork_rng(devices=[]):
            component = component_class(config)
    except (RuntimeError, ArithmeticError, TypeError) as error:  # of torch, for numbers that are too large, among others
        reason = visible((str(error).strip() or type(error).__name__).splitlines()[0])
        raise ValueError(
            f"{source} describes no {getattr(component_class, '__name__', 'part')} that can be built: {reason}"
        ) from None
    for parameter in component.parameters():
        parameter.data = parameter.data.to(dtype or torch.float32)
    return component


class _Undrawn(TorchFunctionMode):
    """New weights on the meta device are neither drawn nor scaled: torch would import its compiler for that, over a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.randn, torch.rand) and (empty := torch.empty(*args, **kwargs)).is_meta:
            return empty
        if func is Tensor.mul and args[0].is_meta and isinstance(args[1], (int, float)):
            return args[0]
        if getattr(func, "__module__", None) == nn.init.__name__ and kwargs["tensor"].is_meta:
            return kwargs["tensor"]
        return func(*args, **kwargs)


def compare(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor] | Mapping[str, Lazy], source: str) -> None:
    """ValueError that lists what is wrong, unless a file's tensors are those expected: by name, shape and kind of type."""
    both = sorted(set(expected) & set(actual))
    problems: dict[str, Sequence[str]] = {
        "missing": sorted(set(expected) - set(actual)),
        "unexpected": sorted(set(actual) - set(expected)),
        "of another shape": [
            f"{name} (file {tuple(actual[name].shape)}, config {tuple(expected[name].shape)})"
            for name in both
            if tuple(actual[name].shape) != tuple(expected[name].shape)
        ],
        "of another type": [
            f"{name} (file {actual[name].dtype}, config {expected[name].dtype})"
            for name in both
            if not _fits(actual[name].dtype, expected[name].dtype)
        ],
    }
    refuse_problems(source, problems)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Assign tensors to a module's parameters and buffers: all of them, no others, in the right shapes, finite."""
    expected = module.state_dict()
    compare(expected, tensors, source)
    refuse_broken(module, tensors, source, expected)
    module.load_state_dict({name: tensors[name].to(expected[name].dtype) for name in expected}, strict=True, assign=True)


def refuse_problems(source: str, problems: Mapping[str, Sequence[str]]) -> None:
    """ValueError that lists what is wrong with a file's tensors, unless nothing is."""
    if any(problems.values()):
        lines = [f"{len(names)} {title}: {_first_names(names)}" for title, names in problems.items() if names]
        raise ValueError(f"{source} does not fit its config: {'; '.join(lines)}")


def refuse_broken(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, fresh: Mapping[str, Tensor] | None = None
) -> None:
    """Weights must be finite.  Buffers are statistics, which may be NaN where they are so in a `fresh` module: not measured."""
    weights = {name for name, _ in module.named_parameters()}

    def sound(name: str, x: Tensor) -> bool:
        if name in weights:
            return bool(torch.isfinite(x).all())
        broken = torch.isinf(x) if fresh is None else ~torch.isfinite(x) & ~torch.isnan(fresh[name])
        return not bool(broken.any() or torch.isinf(x).any())

    wrong = [name for name, x in tensors.items() if not sound(name, x)]
    if wrong:
        reason = "the file, its type or its training is broken"
        raise ValueError(f"{source} holds NaN or infinite weights in {_first_names(wrong)}: {reason}")


def _fits(actual: torch.dtype, wanted: torch.dtype) -> bool:
    return actual == wanted or (actual.is_floating_point and wanted.is_floating_point)


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(map(visible, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

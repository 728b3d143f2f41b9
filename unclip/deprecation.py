"""Former public names, which still work for one version and warn."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def warn(old: str, new: str, stacklevel: int = 3) -> None:
    """DeprecationWarning at the caller of the function that calls this."""
    warnings.warn(f"{old} is now called {new}", DeprecationWarning, stacklevel=stacklevel)


def renamed_arguments(**names: str) -> Callable[[F], F]:
    """Let a function be called with its arguments' former names: `@renamed_arguments(old="new")`.  TypeError for both at once."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            for old in names.keys() & options.keys():
                new = names[old]
                if new in options:
                    raise TypeError(f"{function.__qualname__} was given {old}, the former name of {new}, beside it")
                warn(f"the argument {old} of {function.__qualname__}", new)
                options[new] = options.pop(old)
            return function(*args, **options)

        return call  # type: ignore[return-value]

    return decorate


def renamed_attributes(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` for its former names: old -> the attribute's name today."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn(f"{module}.{name}", names[name])
        return getattr(sys.modules[module], names[name])

    return get

"""Check that an object keeps a contract of `unclip.types`, where it is handed over and not in the middle of a drawing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

# Passed only when there is something to pass: components may lack them.  A component that has no denoiser to wrap may take
# on_step(step, steps, state), called after each of its passes.
OPTIONAL = ("negative", "wrap", "on_step")


def accepts(method: Callable[..., Any], name: str) -> bool:
    """Whether a component's method takes the optional argument `name` of its contract."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # written in another language: nothing is known of it
        return True
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def keep_contract(component: object, contract: type) -> None:
    """ValueError unless the component has what the contract asks for, and its methods can be called as the contract's are."""
    methods = [name for name, value in vars(contract).items() if callable(value) and not name.startswith("_")]
    lacks = [name for name in (*contract.__annotations__, *methods) if not hasattr(component, name)]
    if isinstance(component, type):
        raise ValueError(f"a component is an object, not the class {component.__name__} itself")
    problem = f"{type(component).__name__} does not keep the contract {contract.__name__} of unclip.types"
    if lacks:
        raise ValueError(f"{problem}: it lacks {', '.join(lacks)}")
    for name in methods:
        expected = list(inspect.signature(vars(contract)[name]).parameters.values())[1:]  # without self
        try:
            actual = inspect.signature(getattr(component, name))
        except (TypeError, ValueError):  # written in another language: nothing is known of it
            continue
        expected = [p for p in expected if p.name not in OPTIONAL]
        by_name = {p.name: None for p in expected if p.kind is p.KEYWORD_ONLY}
        try:
            actual.bind(*expected[: len(expected) - len(by_name)], **by_name)
        except TypeError as error:
            is_, must = (f"{name}({', '.join(p.name for p in params)})" for params in (actual.parameters.values(), expected))
            raise ValueError(f"{problem}: it has {is_} where it must have {must}: {error}") from None

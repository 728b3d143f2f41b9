"""A part of ours to be made of somebody else's tensors, and reading somebody else's JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unclip.building import build, fill, sketch
from unclip.checkpoint import Component
from unclip.config import Config, visible
from unclip.weights import Lazy

from .table import Table, gather


class Recipe(NamedTuple):
    """One component: its class and config, the table that names its tensors, and the source that holds them."""

    part: type[Component[Any]]
    config: Config
    table: Table
    source: Mapping[str, Lazy]
    where: str
    ignored: tuple[str, ...] = ()
    constants: Mapping[str, Tensor] = {}  # tensors of ours that the source has not

    def make(self, dtype: torch.dtype | None = None) -> Component[Any]:
        """The component, its parameters in `dtype` (None = float32); ValueError unless every tensor fits."""
        component = sketch(self.part, self.config, dtype, self.where)  # not built before its sizes are known to be the source's
        # Buffers that the table does not name are no weights: they keep what their constructor gave them.
        parameters = {name for name, _ in component.named_parameters()}
        wanted = {name: x for name, x in component.state_dict().items() if name in parameters or name in self.table}
        wanted = {name: x for name, x in wanted.items() if name not in self.constants}
        made = gather(self.table, wanted, self.source, self.where, self.ignored)
        component = build(self.part, self.config, dtype)
        fill(component, {**component.state_dict(), **self.constants, **made}, self.where)
        component.check()
        return component.eval()


def require(config: Mapping[str, Any], where: Path, **allowed: Any) -> None:
    """ValueError unless each setting that is there has the one value that is understood."""
    wrong = {name: config[name] for name, value in allowed.items() if name in config and config[name] != value}
    if wrong:
        problem = ", ".join(f"{name} is {visible(repr(value))}, not {allowed[name]!r}" for name, value in wrong.items())
        raise ValueError(f"{where} describes something else than Karlo's: {problem}")


def number(config: Mapping[str, Any], name: str, where: Path, default: int | None = None, most: int = 100_000) -> int:
    """A whole number of a config; more than `most` is a mistake, whose tables and tensors would ask for all memory."""
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{where}: {name} is {visible(repr(value))}; it must be a whole number from 1 to {most}")
    return value


Loaders = dict[str, Callable[[], Component[Any]]]

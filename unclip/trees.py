"""Functions over the tensors of nested tuples, lists, dicts and NamedTuples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Tree = TypeVar("Tree")


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply `function` to the tensors of equally built tuples, lists, dicts and NamedTuples; None and strings stay."""
    return cast(Tree, _tree_map(function, tree, *others))


def _tree_map(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    if isinstance(first, Tensor):
        return function(first, *others)
    if isinstance(first, dict):
        return {k: _tree_map(function, v, *(o[k] for o in others)) for k, v in first.items()}
    if isinstance(first, (list, tuple)):
        rows = [_tree_map(function, *row) for row in zip(first, *others)]
        return type(first)(*rows) if hasattr(first, "_fields") else type(first)(rows)
    return first


def move(tree: Tree, device: torch.device | str | None, dtype: torch.dtype | None = None) -> Tree:
    """The same tree on another device; floating tensors also in another type."""
    # Only towards an accelerator: a copy to the CPU that is not waited for can be read before it has arrived.
    ahead = device is not None and torch.device(device).type != "cpu"

    def one(x: Tensor) -> Tensor:
        return x.to(device, dtype if dtype and x.is_floating_point() else None, non_blocking=ahead)

    return tree_map(one, tree)

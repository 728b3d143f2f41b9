"""Activation checkpointing: a network's blocks, computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network, in order: members of its outermost lists, as transformers and UNets have them."""
    repeated: list[nn.Module] = []
    for child in model.children():
        inside = blocks(child)
        listed = isinstance(model, nn.ModuleList) and not isinstance(child, (nn.ModuleList, nn.ModuleDict))
        repeated += [child] if listed else inside
    return repeated


@contextmanager
def recomputed(model: nn.Module, active: bool = True) -> Iterator[None]:
    """While this lasts, blocks keep only their inputs for the backward pass, which runs them again, with the same dropout.

    ValueError: the model has no blocks.
    """
    chosen = blocks(model) if active else []
    if active and not chosen:
        raise ValueError(
            f"checkpointing finds no blocks in {type(model).__name__}: it recomputes the members of a torch.nn.ModuleList "
            "(transformer blocks, UNet blocks); set checkpointing to false"
        )
    for block in chosen:
        block.forward = _recomputing(block.forward)  # on the object: names in the state stay as they are
    try:
        yield
    finally:
        for block in chosen:
            del block.forward


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        args = tuple(Replay(a) if isinstance(a, Iterator) else a for a in args)

        def again(*args: Any, **kwargs: Any) -> Any:
            for a in args:
                if isinstance(a, Replay):
                    a.rewind()
            return forward(*args, **kwargs)

        return checkpoint(again, *args, use_reentrant=False, **kwargs)

    return run


class Replay:
    """An iterator whose items can be drawn again, so that a UNet block finds the same context the second time."""

    def __init__(self, items: Iterator[Any]):
        self._items, self._drawn, self._next = items, [], 0  # type: ignore[var-annotated]

    def __iter__(self) -> Replay:
        return self

    def __next__(self) -> Any:
        if self._next == len(self._drawn):
            self._drawn.append(next(self._items))
        self._next += 1
        return self._drawn[self._next - 1]

    def rewind(self) -> None:
        self._next = 0

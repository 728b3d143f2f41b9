"""Tables: for each tensor of ours, under which names another layout stores it and how to turn that into ours.

A table's keys are names of ours, in which `#` is a number and `*` any ending; both are carried into the other names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from unclip.building import refuse_problems
from unclip.weights import Lazy


class Row(NamedTuple):
    """The names of the source tensors, and what makes ours of them; shapes are found by trying it on the meta device."""

    theirs: tuple[str, ...]
    how: Callable[..., Tensor]


Table = Mapping[str, Row]


def row(*theirs: str, how: Callable[..., Tensor] | None = None) -> Row:
    """Without `how`, a tensor is taken as it is, and several are stacked along their first dimension."""
    return Row(theirs, how or (same if len(theirs) == 1 else stack))


def same(x: Tensor) -> Tensor:
    return x


def stack(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors)


def transposed(x: Tensor) -> Tensor:
    return x.t()


def flat(x: Tensor) -> Tensor:
    """Vectors that are stored with leading dimensions of 1: (1, d) or (1, 1, d) -> (d)."""
    return x.reshape(-1)


def rows_of(x: Tensor) -> Tensor:
    """(1, n, d) -> (n, d)."""
    return x.squeeze(0)


def heads_last(parts: int, heads: int | None = None, head_width: int | None = None) -> Callable[[Tensor], Tensor]:
    """Rows as (head, q | k | v, channel) -> (q | k | v, head, channel), of weights and biases, 1-d convolutions flattened."""
    sizes = {"h": heads} if heads else {"d": head_width}

    def transform(x: Tensor) -> Tensor:
        x = x.flatten(1) if x.ndim > 2 else x
        return rearrange(x, "(h p d) ... -> (p h d) ...", p=parts, **sizes)

    return transform


def channels_first(tokens: int) -> Callable[[Tensor], Tensor]:
    """Rows as (channel, token) -> (token, channel)."""
    return lambda x: rearrange(x, "(c k) ... -> (k c) ...", k=tokens)


def as_convolution(transform: Callable[..., Tensor] = stack) -> Callable[..., Tensor]:
    """Weights (o, i) of a linear layer, or (o, i, 1), as those (o, i, 1, 1) of a convolution; biases as they are."""

    def convolved(*tensors: Tensor) -> Tensor:
        x = transform(*tensors)
        return x.flatten(1)[..., None, None] if x.ndim > 1 else x

    return convolved


def as_linear(x: Tensor) -> Tensor:
    """Weights (o, i, 1) of a 1-d convolution as those (o, i) of a linear layer; biases as they are."""
    return x.flatten(1) if x.ndim > 1 else x


def under(prefix: str, table: Table, theirs: str = "") -> dict[str, Row]:
    """The same table with a prefix before our names, and one before theirs."""
    return {prefix + name: Row(tuple(theirs + t for t in r.theirs), r.how) for name, r in table.items()}


def gather(
    table: Table,
    wanted: Mapping[str, Tensor],
    source: Mapping[str, Lazy],
    where: str,
    ignored: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Our tensors, in the types of `wanted` (meta tensors will do), each made of its sources, one after the other.

    Strict, and before any number is read: ValueError that lists what is missing, unexpected (but for names that end in one
    of `ignored`) and misshapen, in the source's own names.
    """
    rows = {name: entry for name in wanted if (entry := _find(table, name)) is not None}
    needed = {t for r in rows.values() for t in r.theirs}
    problems: dict[str, list[str]] = {
        "missing": sorted({*(needed - set(source)), *(f"(ours) {name}" for name in wanted if name not in rows)}),
        "unexpected": sorted(name for name in set(source) - needed if not name.endswith(ignored)),
        "of another shape": [],
        "of another type": [],
    }
    for name, r in rows.items():
        if all(t in source for t in r.theirs):
            lazies = [source[t] for t in r.theirs]
            shape = _shape(r, lazies)
            names = " + ".join(f"{t} {lazy.shape}" for t, lazy in zip(r.theirs, lazies))
            if shape != tuple(wanted[name].shape):
                problems["of another shape"].append(f"{names} (config {tuple(wanted[name].shape)})")
            elif any(not lazy.dtype.is_floating_point for lazy in lazies):
                problems["of another type"].append(f"{names} ({', '.join(str(lazy.dtype) for lazy in lazies)})")
    refuse_problems(where, problems)
    return {name: r.how(*(source[t].read(wanted[name].dtype) for t in r.theirs)).contiguous() for name, r in rows.items()}


def _shape(r: Row, lazies: list[Lazy]) -> tuple[int, ...] | None:
    try:
        return tuple(r.how(*(torch.empty(lazy.shape, device="meta") for lazy in lazies)).shape)
    except (RuntimeError, ValueError, IndexError, TypeError):  # what einops and torch say of shapes that do not go
        return None


def _find(table: Table, name: str) -> Row | None:
    """The row for a name of ours, its wildcards filled in."""
    if name in table:
        return table[name]
    for pattern, r in table.items():
        if "#" not in pattern and "*" not in pattern:
            continue
        escaped = re.escape(pattern).replace(r"\#", r"(?P<number>\d+)").replace(r"\*", r"(?P<rest>.+)")
        if match := re.fullmatch(escaped, name):
            number, rest = (match.groupdict().get(group, "") for group in ("number", "rest"))
            return Row(tuple(t.replace("#", number).replace("*", rest) for t in r.theirs), r.how)
    return None

"""Multi-head attention with a key/value cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unclip.nn.cpu.linear import Linear


class KeyValue(NamedTuple):
    """Cached keys and values of earlier tokens.

    b divides the rows of the queries: consecutive rows share one entry, for instance all candidates of one caption.
    """

    k: Float[Tensor, "b heads l d"]
    v: Float[Tensor, "b heads l d"]


class Attention(nn.Module):
    """Self-attention, optionally causal, that also sees earlier tokens; one softmax over everything seen."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)  # rows: q of every head, then k, then v
        self.out = Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b l w"],
        visible: Bool[Tensor, "b 1 q l"] | None = None,
        causal: bool = False,
        past: Sequence[tuple[KeyValue, Bool[Tensor, "_ _"] | None]] = (),
    ) -> tuple[Float[Tensor, "b l w"], KeyValue]:
        """Attended x and its keys and values.  `visible`: which of x a query sees; None = all, or those up to it."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (b, heads, l, d)
        if not past:
            # A mask given already contains the triangle.
            y = nn.functional.scaled_dot_product_attention(q, k, v, visible, is_causal=causal and visible is None)
        else:
            if causal and visible is None and x.shape[1] > 1:
                visible = triangle(x.shape[1], x.device)
            y = joint_attention(q, [*past, (KeyValue(k, v), visible)])
        return self.out(y.transpose(1, 2).flatten(2)), KeyValue(k, v)  # (b, heads, l, d) -> (b, l, w)


def joint_attention(
    q: Float[Tensor, "b heads l d"], sets: Sequence[tuple[KeyValue, Tensor | None]]
) -> Float[Tensor, "b heads l d"]:
    """Softmax attention over several sets of keys and values, without repeating a set that several rows of q share.

    The mask (True = visible) of a set is over its keys, (b', l'), or per query, (b', 1, l, l').  With weights in
    half precision scores are float32, as they are within torch's own attention; autocast rounds the products all the same.
    """
    at_least = torch.promote_types(q.dtype, torch.float32)
    scaled = q.to(at_least) * q.shape[-1] ** -0.5
    scores = []
    for (k, _), mask in sets:
        score = _unshare(_share(scaled, len(k)) @ k.to(at_least).transpose(-1, -2), len(q))  # (b, heads, l, l')
        if mask is not None:
            mask = mask[:, None, None] if mask.ndim == 2 else mask  # (b', 1, 1 or l, l')
            score = score.masked_fill(~mask.repeat_interleave(max(1, len(q) // len(mask)), 0), float("-inf"))
        scores.append(score)
    weights = torch.cat(scores, dim=-1).softmax(-1).split([len_(kv) for kv, _ in sets], dim=-1)
    terms = [_unshare(_share(w, len(kv.v)) @ kv.v.to(at_least), len(q)) for w, (kv, _) in zip(weights, sets)]
    return (torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]).to(q.dtype)


def triangle(length: int, device: torch.device) -> Bool[Tensor, "1 1 l l"]:
    """The causal mask: a token sees itself and what is before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def len_(kv: KeyValue) -> int:
    return kv.k.shape[2]


def _share(x: Tensor, rows: int) -> Tensor:
    """(rows * n, heads, l, d) -> (rows, heads, n * l, d): the rows that share keys become more queries."""
    if len(x) == rows:
        return x
    if len(x) % rows:
        raise ValueError(f"{len(x)} rows cannot share {rows} rows of keys: the first must be a multiple of the second")
    n = len(x) // rows
    return x.unflatten(0, (rows, n)).transpose(1, 2).flatten(2, 3)


def _unshare(x: Tensor, rows: int) -> Tensor:
    """The way back."""
    if len(x) == rows:
        return x
    n = rows // len(x)
    return x.unflatten(2, (n, -1)).transpose(1, 2).flatten(0, 1)

"""Which samples make up global batch k: a pure function of (seed, epoch, k), so that a run resumes exactly anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np

from unclip.randomness import Noise
from unclip.types import Batch


@runtime_checkable
class Data(Protocol):
    """What training reads: captioned pictures by number.  `keys` are unique; all joining is by them, never by row.

    Data that are not drawn evenly also have `weights`, one number a sample, for `indices`.
    """

    @property
    def keys(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        """The samples `indices`, in that order, on the CPU.  noise: one stream per sample, for augmentation and the
        choice among several captions; None = the clean picture and the first caption."""
        ...


def indices(n: int, batch: int, seed: int, k: int, weights: Sequence[float] | np.ndarray | None = None) -> list[int]:
    """Global batch k = 0, 1, ... of endless shuffled epochs over n samples.

    Epochs follow each other without a gap or a short batch: a batch may hold the end of one and the start of the next.
    With `weights` an epoch has n draws too, and sample i occurs weights[i] / mean(weights) times in it, rounded up or
    down.
    """
    if n < 1 or batch < 1 or k < 0:
        raise ValueError(f"n={n}, batch={batch}, k={k}: an order needs n and batch from 1 and k from 0 up")
    shares = None if weights is None else _shares_once(n, _Same(weights)) if _frozen(weights) else _shares(n, weights)
    position = k * batch
    chosen: list[int] = []
    while len(chosen) < batch:
        epoch, start = divmod(position + len(chosen), n)
        chosen += _epoch(n, seed, epoch, shares)[start : start + batch - len(chosen)].tolist()
    return chosen


def slice_for(batch: int, rank: int, world: int) -> slice:
    """The part of a global batch that process `rank` of `world` takes: equal shares, in order."""
    if not 0 <= rank < world:
        raise ValueError(f"rank is {rank} of {world} processes; it must lie in 0..{world - 1}")
    if batch % world:
        raise ValueError(f"a batch of {batch} cannot be shared equally by {world} processes: choose a multiple of {world}")
    share = batch // world
    return slice(rank * share, (rank + 1) * share)


class _Same:
    """Weights as a key of a cache that asks whether they are the same object, not whether they are equal."""

    def __init__(self, weights: Sequence[float] | np.ndarray):
        self.weights = weights

    def __hash__(self) -> int:
        return id(self.weights)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.weights is other.weights


def _frozen(weights: Sequence[float] | np.ndarray) -> bool:
    """Nobody can change them in place, so that looking at them once is enough: a million take 20 ms."""
    return isinstance(weights, np.ndarray) and not weights.flags.writeable


@lru_cache(maxsize=4)
def _shares_once(n: int, weights: _Same) -> bytes:
    return _shares(n, weights.weights)


def _shares(n: int, weights: Sequence[float] | np.ndarray) -> bytes:
    """Cumulative shares as bytes, which the cache can compare by value."""
    w = np.asarray(weights, np.float64)
    if w.shape != (n,) or not np.isfinite(w).all() or (w < 0).any() or not w.sum() > 0:
        raise ValueError(f"weights must be {n} finite numbers from 0 up, not all zero; got shape {w.shape}")
    return (np.cumsum(w) / w.sum()).tobytes()


@lru_cache(maxsize=4)
def _epoch(n: int, seed: int, epoch: int, shares: bytes | None) -> np.ndarray:
    # A stream of its own name: nothing else of the run draws from it.
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed & (2**64 - 1), epoch, 0x0DE2])))
    if shares is None:
        return rng.permutation(n)
    # Systematic sampling: one comb of n teeth over the cumulative shares, so counts never stray by one or more.
    comb = (np.arange(n) + rng.random()) / n
    drawn = np.searchsorted(np.frombuffer(shares, np.float64), comb, side="right").clip(max=n - 1)
    return rng.permutation(drawn)

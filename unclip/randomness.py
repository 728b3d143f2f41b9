"""Seeded noise, one stream per image, so that a picture does not depend on its batch, its device or its neighbours.

A stream is named by a path (seed, image index, stage, purpose, ...).  The path is hashed to the key of a Philox generator on
the CPU: equal paths give bit-equal numbers everywhere, different paths independent ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor


class Noise:
    """One random stream per row of a batch.

    `normal`, `uniform` and `integers` return CPU tensors (b, *shape) and advance every stream; `at` and `repeat` give fresh
    child streams that depend on the path alone, never on what was drawn before.
    """

    def __init__(self, paths: Sequence[str]):
        self.paths = tuple(paths)
        self._streams: list[np.random.Generator] | None = None

    @classmethod
    def of(cls, seed: int, index: Iterable[int] | SupportsIndex = 0) -> Noise:
        """Streams for images `index` (one number or several) of the run `seed`."""
        indices = index if isinstance(index, Iterable) else [index]
        return cls([f"{int(seed)}/{int(i)}" for i in indices])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice) -> Noise:
        """Fresh streams for some of the rows."""
        if not isinstance(rows, slice):  # a number would name one path, and a path is a sequence too
            raise TypeError(f"rows of noise are taken by a slice, noise[{rows}:{rows} + 1], not by {rows!r}")
        return Noise(self.paths[rows])

    def at(self, name: str | int) -> Noise:
        """Independent child streams for a stage or purpose: `noise.at("prior").at("x_T")`."""
        return Noise([f"{path}/{name}" for path in self.paths])

    def repeat(self, n: int) -> Noise:
        """n child streams per image, ordered image-major: (b) -> (b*n)."""
        return Noise([f"{path}#{j}" for path in self.paths for j in range(n)])

    def normal(self, shape: Sequence[int] = ()) -> Tensor:
        """Standard normal float32 (b, *shape)."""
        return self._draw(lambda g: g.standard_normal(shape, dtype=np.float32), np.float32)

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        """Uniform on [0, 1), float32 (b, *shape)."""
        return self._draw(lambda g: g.random(shape, dtype=np.float32), np.float32)

    def integers(self, low: int, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Integers low <= i < high, int64 (b, *shape)."""
        return self._draw(lambda g: g.integers(low, high, shape, dtype=np.int64), np.int64)

    def _draw(self, draw: Callable[[np.random.Generator], Any], dtype: Any) -> Tensor:
        if self._streams is None:
            self._streams = [_generator(path) for path in self.paths]
        return torch.from_numpy(np.stack([np.asarray(draw(g), dtype) for g in self._streams]))


def check_noise(noise: Any, count: int, what: str) -> None:
    """ValueError unless there is one stream for each of `count` rows: one stream would be given to all of them."""
    if not isinstance(noise, Noise):
        problem = f"noise is {noise!r}; a stream for each picture is expected"
        raise ValueError(f"{problem}: Noise.of(seed, range({count})), from unclip import Noise")
    if len(noise) != count:
        raise ValueError(f"{count} {what} need a noise stream each, got {len(noise)}: Noise.of(seed, range({count}))")


def _generator(path: str) -> np.random.Generator:
    key = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))

"""Several sources as one, each drawn as often as its weight says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unclip.randomness import Noise, check_noise
from unclip.types import Batch, Text

from .embeddings import TEXT_TENSORS
from .reader import Embedded, Reader


class Mix:
    """The samples of all `parts`, one part after the other.

    shares: of the draws, one positive number a part; None = each sample is drawn as often as any other.  [1, 1] is the
    paper's way with its two sets (unCLIP App. C).  Keys stay unique: parts that have a key in common with another get
    their name in front of all their keys, `pets/one`; of equal names the second becomes `pets-2`.
    """

    def __init__(self, readers: Sequence[Reader | Embedded], names: Sequence[str], shares: Sequence[float] | None = None):
        if not readers:
            raise ValueError("there is nothing to mix: give at least one source")
        fields = [reader.fields for reader in readers]
        if len(set(fields)) > 1:
            other = next(i for i, has in enumerate(fields) if has != fields[0])
            described = [f"{names[i]} has {', '.join(sorted(fields[i]))}" for i in (0, other)]
            raise ValueError(f"sources that are mixed have the same things, but {' and '.join(described)}")
        self.readers, self.fields, self.name = list(readers), fields[0], "+".join(names)
        self.classes = readers[0].classes
        if unlike := [name for name, reader in zip(names, readers) if reader.classes != self.classes]:
            raise ValueError(f"{names[0]} and {unlike[0]} number their classes differently: open both with the same `classes`")
        self.starts = np.cumsum([0, *map(len, readers)])
        self.keys, self.names = _unique(readers, names)
        self.weights: Float[np.ndarray, " n"] | None = None
        if shares is not None:
            if len(shares) != len(readers) or not all(0 < share < float("inf") for share in shares):
                raise ValueError(f"the weights of sources are positive numbers, one each; got {list(shares)} for {len(readers)}")
            self.weights = np.concatenate([np.full(len(reader), share / len(reader)) for reader, share in zip(readers, shares)])
            self.weights.setflags(write=False)  # which `indices` takes as leave to look at them once

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        """The samples `indices` in that order, each read by its part with its own noise."""
        n = len(self)
        if wrong := [i for i in indices if not -n <= i < n]:
            raise ValueError(f"there is no sample {wrong[0]} among {n}")
        if noise is not None:
            check_noise(noise, len(indices), "samples")
        if not indices:
            return self.readers[0].batch([])
        rows = np.asarray(indices) % n
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        order, batches = [], []
        for p in np.unique(owners).tolist():
            mine = np.flatnonzero(owners == p).tolist()
            streams = None if noise is None else Noise([noise.paths[i] for i in mine])
            batch = self.readers[p].batch([int(rows[i] - self.starts[p]) for i in mine], streams)
            prefix = self.names[p]
            batches.append(batch._replace(keys=[f"{prefix}/{key}" for key in batch.keys]) if prefix else batch)
            order += mine
        return _merge(batches, [order.index(i) for i in range(len(order))])


def _unique(readers: Sequence[Reader | Embedded], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """All keys, and the prefix of each part, empty where its keys are nobody else's."""
    different = [f"{name}-{seen + 1}" if (seen := list(names[:i]).count(name)) else name for i, name in enumerate(names)]
    owner: dict[str, int] = {}
    shared: set[int] = set()
    for p, reader in enumerate(readers):
        for key in reader.keys:
            if (first := owner.setdefault(key, p)) != p:
                shared |= {first, p}
    prefixes = [name if p in shared else "" for p, name in enumerate(different)]
    keys = [f"{prefix}/{key}" if prefix else key for prefix, reader in zip(prefixes, readers) for key in reader.keys]
    if len(set(keys)) < len(keys):
        raise ValueError(f"keys of the sources {', '.join(different)} are the same even with their names in front: rename one")
    return keys, prefixes


def _merge(batches: list[Batch], order: list[int]) -> Batch:
    """The batches one after the other, then rows in `order`."""
    rows = torch.tensor(order)

    def strings(all_of: list[list[str]]) -> list[str]:
        joined = [string for group in all_of for string in group]
        return [joined[i] for i in order]

    def tensors(all_of: list[Tensor]) -> Tensor:
        if len({x.shape[1:] for x in all_of}) > 1:
            shapes = " and ".join(str(tuple(x.shape[1:])) for x in all_of)
            raise ValueError(f"sources that are mixed have equal shapes; here are {shapes}: are embeddings of two CLIPs mixed?")
        return torch.cat(all_of)[rows]

    first = batches[0]
    text = None
    if first.text is not None:
        texts = [batch.text for batch in batches if batch.text is not None]
        merged = [tensors([getattr(one, name) for one in texts]) for name in TEXT_TENSORS]
        text = Text(strings([one.strings for one in texts]), *merged)
    return Batch(
        keys=strings([batch.keys for batch in batches]),
        images=None if first.images is None else tensors([b.images for b in batches if b.images is not None]),
        captions=None if first.captions is None else strings([b.captions for b in batches if b.captions is not None]),
        image_embed=None if first.image_embed is None else tensors([b.image_embed for b in batches if b.image_embed is not None]),
        text=text,
        labels=None if first.labels is None else tensors([b.labels for b in batches if b.labels is not None]),
    )

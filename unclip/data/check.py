"""Everything of a source read once: what there is, what is broken, what is there twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from unclip.config import Config
from unclip.files import visible

from .embedding_shards import EmbeddingShards
from .images import decode_image, read_size
from .open import open_source
from .sample import class_names
from .shards import Shards
from .source import LONGEST_NAME, Source, listed


class Quantiles(Config, frozen=True, kw_only=True):
    """Smallest, median and largest of some numbers."""

    least: int
    median: int
    most: int

    @classmethod
    def of(cls, values: Iterable[int]) -> Quantiles | None:
        ordered = sorted(values)
        return cls(least=ordered[0], median=ordered[len(ordered) // 2], most=ordered[-1]) if ordered else None

    def __str__(self) -> str:
        return f"{self.least} to {self.most} (median {self.median})"


class CheckReport(Config, frozen=True, kw_only=True):
    """What `check` found.  Sides in pixels, lengths in characters; `broken` and `damaged_shards` make a source not `fine`."""

    source: str
    samples: int
    readable: int
    bytes: int  # of all picture files
    formats: dict[str, int]  # by suffix
    short_side: Quantiles | None
    long_side: Quantiles | None
    captions: int
    captions_per_picture: Quantiles | None
    caption_length: Quantiles | None
    blank_captions: int
    same_captions: int  # captions that another one equals already
    duplicates: list[list[str]]  # keys of pictures with equal bytes
    left_out: dict[str, list[str]]
    broken: dict[str, str]  # key -> why
    damaged_shards: dict[str, str]
    classes: dict[str, int] = {}  # name -> pictures that can be read, in the order of the numbers

    @property
    def fine(self) -> bool:
        return not self.broken and not self.damaged_shards

    def lines(self) -> list[str]:
        """For people."""
        mebi = self.bytes / 2**20
        formats = ", ".join(f"{n} {suffix}" for suffix, n in self.formats.items())
        kind = "labelled" if self.classes else "captioned"
        lines = [f"{self.source}: {self.samples} {kind} pictures, {self.readable} readable, {mebi:.1f} MiB ({formats})"]
        copies = sum(len(group) - 1 for group in self.duplicates)
        if self.short_side and self.long_side:
            lines += [f"  short side      {self.short_side} pixels", f"  long side       {self.long_side} pixels"]
            lines += [f"  same pictures   {copies}" + (f", for instance {', '.join(self.duplicates[0][:3])}" if copies else "")]
        lines += [f"  captions        {self.captions}"]
        if self.captions_per_picture and self.caption_length:
            lines += [f"  each picture    {self.captions_per_picture} captions"]
            lines += [f"  their length    {self.caption_length} characters"]
            lines += [f"  blank captions  {self.blank_captions}", f"  same captions   {self.same_captions}"]
        if self.classes:
            lines += [f"  classes         {len(self.classes)} of {Quantiles.of(self.classes.values())} pictures"]
            ordered = sorted(self.classes, key=lambda name: -self.classes[name])
            lines += [f"  largest         {listed([f'{name} {self.classes[name]}' for name in ordered])}"]
            lines += [f"  smallest        {listed([f'{name} {self.classes[name]}' for name in reversed(ordered)])}"]
        lines += [f"  left out        {len(names)} {what}: {listed(names)}" for what, names in self.left_out.items() if names]
        lines += [f"  damaged shard   {shard} {problem}" for shard, problem in self.damaged_shards.items()]
        lines += [f"  broken          {reason}" for reason in self.broken.values()]
        return [visible(line, LONGEST_NAME) for line in lines]


class _Seen(NamedTuple):
    """What is kept of one sample."""

    hash: bytes
    size: int
    suffix: str
    sides: tuple[int, int] | None
    captions: list[tuple[bytes, int]]  # hash and length; a caption that is blank has the length 0
    problem: str | None


def check(
    source: str | Path,
    *,
    labels: str | None = None,
    threads: int = 4,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> CheckReport:
    """Read every picture, caption and, as `open_data` does, label of a source.  `progress` is told how many of how many are done.

    Of embeddings, the hash of every shard.  ValueError: there is nothing that could be read as data.
    """
    opened = open_source(source, labels)
    if isinstance(opened, EmbeddingShards):
        return _check_embeddings(str(source), opened)
    if not isinstance(opened, Source):
        raise ValueError(f"{source} is one file of embeddings, which was read whole just now: it is fine")
    rows = range(len(opened.keys))
    seen = []
    with ThreadPoolExecutor(threads) as pool:
        for one in _in_order(pool, lambda row: _look(opened, row), rows, 8 * threads):
            seen.append(one)
            progress(len(seen), len(rows))
    return _report(str(source), opened, seen)


def _look(source: Source, row: int) -> _Seen:
    data, sides, problem = b"", None, None
    captions: list[str] = []
    try:
        data = source.image_bytes(row)
        decode_image(data, source.where(row))
        sides = read_size(data)  # a very large one is decoded smaller
        captions = source.captions(row)
    except ValueError as error:
        problem = str(error)
    lengths = [(_hash(caption.strip().encode()), len(caption.strip())) for caption in captions]
    return _Seen(_hash(data), len(data), Path(source.where(row)).suffix.lower()[1:], sides, lengths, problem)


def _report(name: str, source: Source, seen: Sequence[_Seen]) -> CheckReport:
    sides = [one.sides for one in seen if one.sides]
    captions = [caption for one in seen for caption in one.captions]
    alike: dict[bytes, list[str]] = {}
    for key, one in zip(source.keys, seen):
        if one.problem is None:
            alike.setdefault(one.hash, []).append(key)
    lengths = [length for _, length in captions]
    labels = source.labels or ()
    counts = Counter(label for label, one in zip(labels, seen) if one.problem is None)
    return CheckReport(
        source=name,
        samples=len(seen),
        readable=sum(one.problem is None for one in seen),
        bytes=sum(one.size for one in seen),
        formats=dict(Counter(one.suffix for one in seen).most_common()),
        short_side=Quantiles.of(min(pair) for pair in sides),
        long_side=Quantiles.of(max(pair) for pair in sides),
        captions=len(captions),
        captions_per_picture=Quantiles.of(len(one.captions) for one in seen if one.captions),
        caption_length=Quantiles.of(lengths),
        blank_captions=lengths.count(0),
        same_captions=sum(n - 1 for n in Counter(digest for digest, length in captions if length).values()),
        duplicates=[keys for keys in alike.values() if len(keys) > 1],
        left_out={what: names for what, names in source.left_out.items() if names},
        broken={key: one.problem for key, one in zip(source.keys, seen) if one.problem is not None},
        damaged_shards={k: v for k, v in source.problems.items() if v} if isinstance(source, Shards) else {},
        classes={name: counts[name] for name in class_names(labels)},
    )


def _check_embeddings(name: str, store: EmbeddingShards) -> CheckReport:
    captions = sum(receipt.captions for receipt in store.receipts)
    return CheckReport(
        source=name,
        samples=store.index.count,
        readable=len(store.keys),
        bytes=sum(receipt.size for receipt in store.receipts),
        formats={"safetensors": len(store.paths)},
        short_side=None,
        long_side=None,
        captions=captions,
        captions_per_picture=None,
        caption_length=None,
        blank_captions=0,
        same_captions=0,
        duplicates=[],
        left_out={},
        broken={},
        damaged_shards=dict(problem.split(" ", 1) for problem in store.problems()),
    )


def _in_order(pool: ThreadPoolExecutor, look: Callable[[int], _Seen], rows: Iterable[int], ahead: int) -> Iterator[_Seen]:
    """Results in order with a bounded number under way: a pool's own map would start them all."""
    rest = iter(rows)
    waiting: list[Future[_Seen]] = [pool.submit(look, row) for row in islice(rest, ahead)]
    while waiting:
        yield waiting.pop(0).result()
        waiting += [pool.submit(look, row) for row in islice(rest, 1)]


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()

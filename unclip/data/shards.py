"""Tar shards in the webdataset convention, read through an index: in any order, from any row, here or behind a URL."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import compress
from pathlib import Path
from typing import TypeVar

import numpy as np

from unclip.files import visible

from . import files
from .images import MAX_BYTES
from .sample import FOLDER, MAX_TEXT, read_captions
from .shard_cache import keep, recall
from .shard_index import SampleEntry, ShardIndex, scan
from .shard_labels import Labels, read_labels
from .source import LONGEST_NAME, listed, say_left_out

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 16  # that look at shards when a source is opened: waiting for a file system is most of the work


class Shards:
    """Pictures with a .txt (one caption a line) or .json ("caption": text or list) of the same name, in tar files.

    `shards`: paths and URLs, globs, brace ranges.  A sample's key is its members' name without suffix or, where that leaves
    one without its other half, up to the first dot (see `naming.group`), with %2E and %25 for a dot and a percent sign (which
    `unclip data pack` writes).  A key that comes again in a shard becomes `key-2`; where two shards have the same key, all
    keys get their shard's name in front.  Each shard is read once from begin to end for its index, kept beside it
    (`x.tar.index.json`) or in the cache folder and made anew when its size or its date (etag) has changed.  A compressed
    shard, or one on a web server without ranges, is first copied to the cache.  So every source has an index and an exact
    order, however many processes read it.  Of a truncated shard the whole samples are used.

    labels: "folder" (a picture's class is the top-level folder of its member), the name of a field of the .json, or "cls" for
    the .cls.  Pictures with a label need no caption; those without one are left out.
    """

    def __init__(self, shards: str | Sequence[str], labels: str | None = None):
        patterns = [shards] if isinstance(shards, str) else list(shards)
        self.shards = [place for pattern in patterns for place in files.expand(str(pattern))]
        if not self.shards:
            raise ValueError("no shards were given; give at least one tar file")
        if twice := [shard for shard, times in Counter(self.shards).items() if times > 1]:
            raise ValueError(f"the shard {twice[0]} is given twice")
        self.shards = _once(self.shards)
        self.name = _stem(self.shards[0]) if len(self.shards) == 1 else _folder_name(self.shards[0])
        opened = _each(_open, self.shards, "index")
        self._places = [place for place, _ in opened]
        indexes = [index for _, index in opened]
        self.problems = {shard: index.problem for shard, index in zip(self.shards, indexes) if index.problem}
        whole = [[bool(entry.text_suffix) for entry in index.entries] for index in indexes]
        named: list[Labels] = []
        if labels is not None:
            named = _each(partial(_labels, field=labels), list(zip(self.shards, opened)), "labels")
            whole = [[name is not None for name in one.names] for one in named]
        kept = [list(compress(index.entries, flags)) for index, flags in zip(indexes, whole)]
        for shard, problem in self.problems.items():
            n = len(kept[self.shards.index(shard)])
            warnings.warn(f"{shard} {problem}; its {n} whole samples are used", stacklevel=1)
        self.left_out = {
            f"pictures have no {'caption' if labels is None else 'label'}": [
                entry.key for index, flags in zip(indexes, whole) for entry, one in zip(index.entries, flags) if not one
            ],
        }
        for what, lost in (item for index in indexes for item in index.lost.items()):
            self.left_out.setdefault(what, []).extend(lost)
        say_left_out(self.left_out)
        order = self._sort(kept, labels)
        names = [name for one in named for name in one.names if name is not None]
        self.labels = [names[i] for i in order] if named else None
        self.captioned = labels is None or any(one.captioned for one in named)

    def _sort(self, kept: list[list[SampleEntry]], labels: str | None) -> list[int]:
        """All entries by key; the order is that of their places among the entries as they come."""
        entries = [entry for shard in kept for entry in shard]
        if not entries:
            what, members = "captioned picture", "0001.jpg and 0001.txt"
            if labels is not None:
                what = f"picture with the label {labels!r}"
                members = "cats/0001.jpg" if labels == FOLDER else "0001.jpg and 0001.json"
            raise ValueError(
                f"there is no {what} in the {len(self.shards)} shards, the first is {self.shards[0]};"
                f" expected members such as {members}{self._contents()}"
            )
        keys = [entry.key for entry in entries]
        shard = np.repeat(np.arange(len(kept), dtype=np.int32), [len(shard) for shard in kept])
        if len(set(keys)) < len(keys):
            names = _names(self.shards)
            keys = [f"{names[s]}/{key}" for s, key in zip(shard.tolist(), keys)]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self.keys = [keys[i] for i in order]
        self._shard = shard[order]
        # Numbers in arrays: ten million samples are then a gigabyte of keys and half of one of places.
        self._image = np.array([(e.offset, e.size) for e in entries], np.int64)[order]
        self._text = np.array([(e.text_offset, e.text_size) for e in entries], np.int64)[order]
        kinds = [(entry.suffix, entry.text_suffix) for entry in entries]
        self._kinds = sorted(set(kinds))
        number = {kind: i for i, kind in enumerate(self._kinds)}
        self._kind = np.array([number[kind] for kind in kinds], np.int32)[order]
        return order

    def _contents(self) -> str:
        """What there is in the place of samples."""
        contents = [f"{shard} {problem}" for shard, problem in self.problems.items()][:1]
        contents += [f"{len(names)} {what}: {listed(names, 3)}" for what, names in self.left_out.items() if names]
        return f"; found: {', '.join(contents)}" if contents else ""

    def where(self, row: int) -> str:
        return visible(f"{self.shards[self._shard[row]]}:{self.keys[row]}.{self._kinds[self._kind[row]][0]}", LONGEST_NAME)

    def image_bytes(self, row: int) -> bytes:
        offset, size = self._image[row].tolist()
        if size > MAX_BYTES:
            raise ValueError(f"{self.where(row)} is too large: a picture of {size} bytes")
        return files.read_range(self._places[self._shard[row]], offset, size)

    def captions(self, row: int) -> list[str]:
        suffix = self._kinds[self._kind[row]][1]
        if not suffix or not self.captioned:
            return [""] if self.captioned else []
        name = visible(f"{self.shards[self._shard[row]]}:{self.keys[row]}.{suffix}", LONGEST_NAME)
        offset, size = self._text[row].tolist()
        if size > MAX_TEXT:
            raise ValueError(f"{name} is too large: captions of {size} bytes")
        data = files.read_range(self._places[self._shard[row]], offset, size)
        try:
            return read_captions(name, data, needed=self.labels is None) or [""]
        except ValueError as error:
            raise ValueError(f"{name} cannot be read: {error}") from None

    def digest(self) -> str:
        """Of keys and sizes of all members."""
        digest = hashlib.blake2b("\n".join(self.keys).encode(), digest_size=16)
        digest.update(self._image[:, 1].tobytes() + self._text[:, 1].tobytes())
        return digest.hexdigest()


def _each(do: Callable[[Item], Result], items: Sequence[Item], name: str) -> list[Result]:
    """In threads, with a bar where that takes long."""
    from tqdm import tqdm

    with ThreadPoolExecutor(THREADS) as pool, tqdm(total=len(items), desc=name, unit="shard", disable=None, delay=1) as bar:
        results = []
        for one in pool.map(do, items):
            results.append(one)
            bar.update()
        return results


def _open(shard: str) -> tuple[str, ShardIndex]:
    """Where the shard is read from, and its index."""
    now = files.stamp(shard)
    known = recall(ShardIndex, shard, "index", now)
    problem = None
    place = shard
    copied = known.copied if known else files.packing(shard) is not None or not files.has_ranges(shard)
    if copied:
        copy = files.copy_path(shard, now)
        if known is None or not copy.is_file():
            packed = files.packing(shard)
            reason = packed.reason if packed else "comes from a server without ranges"
            warnings.warn(f"{shard} {reason}: it is copied to {copy} once", stacklevel=1)
            copy, problem = files.copy_here(shard, now)
        place = str(copy)
    if known is None:
        size = files.stamp(place).size
        with files.open_file(place) as file:
            known = scan(file, size, now, copied, problem)
        keep(known, shard, "index")
    return place, known


def _labels(opened: tuple[str, tuple[str, ShardIndex]], field: str) -> Labels:
    shard, (place, index) = opened
    name = f"labels-{hashlib.blake2b(field.encode(), digest_size=6).hexdigest()}"
    known = recall(Labels, shard, name, files.Stamp(index.size, index.tag))
    if known is None:
        try:
            with files.open_file(place) as file:
                known = read_labels(file, index, field)
        except ValueError as error:
            raise ValueError(f"{shard}: {error}") from None
        if field != FOLDER:
            keep(known, shard, name)
    return known


def _once(shards: list[str]) -> list[str]:
    """Without links to others among them, which would draw their samples twice."""
    files_of: dict[str, str] = {}
    for shard in shards:
        first = files_of.setdefault(shard if files.is_url(shard) else os.path.realpath(shard), shard)
        if first != shard:
            warnings.warn(f"{shard} is {first} again and is left out", stacklevel=1)
    return list(files_of.values())


def _names(shards: list[str]) -> list[str]:
    """Their names without suffixes, with the folders in which they differ where they are called the same."""
    names = [_stem(shard) for shard in shards]
    if len(set(names)) == len(names):
        return names
    parents = [shard.partition("?")[0].rpartition("/")[0] + "/" for shard in shards]
    common = os.path.commonprefix(parents).rpartition("/")[0]
    return [f"{parent[len(common) + 1 :]}{name}" for parent, name in zip(parents, names)]


def _stem(shard: str) -> str:
    return re.sub(r"(\.tar.*|\.t[gbx]z2?|\.parquet)$", "", shard.partition("?")[0].rstrip("/").rpartition("/")[2], flags=re.I)


def _folder_name(shard: str) -> str:
    parent = shard.rpartition("/")[0] if files.is_url(shard) else str(Path(shard).resolve().parent)
    return parent.rpartition("/")[2] or "shards"

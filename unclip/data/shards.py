"""Tar shards in the webdataset convention, read through an index: in any order, from any row, here or behind a URL."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from . import files
from .files import Stamp
from .folder import caption_lines
from .pictures import MAX_BYTES
from .shard_index import Index, scan
from .source import say_left_out

THREADS = 16  # that look at shards when a source is opened: waiting for a file system is most of the work


class Shards:
    """Pictures with a .txt (one caption a line) or .json ("caption": text or list) of the same name, in tar files.

    `shards`: paths and URLs, globs, brace ranges.  A sample's key is its members' name up to the first dot of the last
    component, with %2E and %25 for a dot and a percent sign (which `unclip data pack` writes); where two shards have the
    same key, all keys get their shard's name in front.  Each shard is read once from begin to end for its index, kept
    beside it (`x.tar.index.json`) or in the cache folder and made anew when its size or its date (etag) has changed.
    A compressed shard, or one on a web server without ranges, is first copied to the cache.  So every source has an
    index and an exact order, however many processes read it.  Of a truncated shard the whole samples are used.
    """

    def __init__(self, shards: str | Sequence[str]):
        patterns = [shards] if isinstance(shards, str) else list(shards)
        self.shards = [place for pattern in patterns for place in files.expand(str(pattern))]
        if not self.shards:
            raise ValueError("no shards were given; give at least one tar file")
        if twice := [shard for shard, times in Counter(self.shards).items() if times > 1]:
            raise ValueError(f"the shard {twice[0]} is given twice")
        self.name = _stem(self.shards[0]) if len(self.shards) == 1 else _folder_name(self.shards[0])
        opened = _open_all(self.shards)
        self._places = [place for place, _ in opened]
        indexes = [index for _, index in opened]
        self.problems = {shard: index.problem for shard, index in zip(self.shards, indexes) if index.problem}
        for shard, problem in self.problems.items():
            n = len(indexes[self.shards.index(shard)].entries)
            warnings.warn(f"{shard} {problem}; its {n} whole samples are used", stacklevel=1)
        self.left_out = {
            "pictures have no caption": [key for index in indexes for key in index.captionless],
            "captions have no picture": [key for index in indexes for key in index.pictureless],
        }
        say_left_out(self.left_out)
        self._sort(indexes)

    def _sort(self, indexes: list[Index]) -> None:
        entries = [entry for index in indexes for entry in index.entries]
        if not entries:
            raise ValueError(
                f"there is no captioned picture in the {len(self.shards)} shards, the first is {self.shards[0]};"
                " expected members such as 0001.jpg and 0001.txt"
            )
        keys = [entry.key for entry in entries]
        shard = np.repeat(np.arange(len(indexes), dtype=np.int32), [len(index.entries) for index in indexes])
        if len(set(keys)) < len(keys):
            keys = [f"{_stem(self.shards[s])}/{key}" for s, key in zip(shard.tolist(), keys)]
            if len(set(keys)) < len(keys):
                raise ValueError(f"keys occur twice in shards of the same name, of {self.shards[0]} and others: rename shards")
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self.keys = [keys[i] for i in order]
        self._shard = shard[order]
        # Numbers in arrays: ten million samples are then a gigabyte of keys and half of one of places.
        self._picture = np.array([(e.offset, e.size) for e in entries], np.int64)[order]
        self._text = np.array([(e.text_offset, e.text_size) for e in entries], np.int64)[order]
        kinds = [f"{e.suffix} {e.text_suffix}" for e in entries]
        self._kinds = sorted(set(kinds))
        number = {kind: i for i, kind in enumerate(self._kinds)}
        self._kind = np.array([number[kind] for kind in kinds], np.int16)[order]

    def where(self, row: int) -> str:
        return f"{self.shards[self._shard[row]]}:{self.keys[row]}.{self._kinds[self._kind[row]].split()[0]}"

    def picture(self, row: int) -> bytes:
        offset, size = self._picture[row].tolist()
        if size > MAX_BYTES:
            raise ValueError(f"{self.where(row)} is too large: a picture of {size} bytes")
        return files.read_range(self._places[self._shard[row]], offset, size)

    def captions(self, row: int) -> list[str]:
        offset, size = self._text[row].tolist()
        data = files.read_range(self._places[self._shard[row]], offset, min(size, MAX_BYTES))
        suffix = self._kinds[self._kind[row]].split()[1]
        try:
            return caption_lines(data) or [""] if suffix == "txt" else _from_json(data)
        except ValueError as error:
            raise ValueError(f"{self.shards[self._shard[row]]}:{self.keys[row]}.{suffix} cannot be read: {error}") from None

    def digest(self) -> str:
        """Of keys and sizes of all members."""
        digest = hashlib.blake2b("\n".join(self.keys).encode(), digest_size=16)
        digest.update(self._picture[:, 1].tobytes() + self._text[:, 1].tobytes())
        return digest.hexdigest()


def _from_json(data: bytes) -> list[str]:
    record = json.loads(data)
    record = record if isinstance(record, dict) else {}
    captions: Any = next((record[name] for name in ("caption", "captions", "text") if record.get(name) is not None), None)
    captions = captions if isinstance(captions, list) else [captions]
    if not captions or not all(isinstance(caption, str) for caption in captions):
        raise ValueError('expected {"caption": text or list of texts}')
    return captions


def _open_all(shards: list[str]) -> list[tuple[str, Index]]:
    """Where each shard is read from, and its index."""
    from tqdm import tqdm

    with ThreadPoolExecutor(THREADS) as pool, tqdm(total=len(shards), desc="index", unit="shard", disable=None, delay=1) as bar:
        found = []
        for one in pool.map(_open, shards):
            found.append(one)
            bar.update()
        return found


def _open(shard: str) -> tuple[str, Index]:
    now = files.stamp(shard)
    known = _known_index(shard, now)
    copied = known.copied if known else files.is_compressed(shard) or not files.has_ranges(shard)
    place = shard
    if copied:
        if not files.copy_path(shard, now).is_file():
            reason = "is compressed" if files.is_compressed(shard) else "comes from a server without ranges"
            warnings.warn(f"{shard} {reason}: it is copied to {files.copy_path(shard, now)} once", stacklevel=1)
        place = str(files.copy_here(shard, now))
    if known is None:
        size = files.stamp(place).size
        with files.open_file(place) as file:
            known = scan(file, size, now, copied)
        _save_index(shard, known)
    return place, known


def _known_index(shard: str, now: Stamp) -> Index | None:
    for path in _index_paths(shard):
        try:
            index = Index.load(path)
        except ValueError:  # absent or damaged: made anew
            continue
        if (index.size, index.tag) == now:
            return index
    return None


def _save_index(shard: str, index: Index) -> None:
    """Beside the shard or, where that cannot be written, in the cache; a full disk only means to index again."""
    for path in _index_paths(shard):
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(index.compact())
            os.replace(aside, path)
            return
        except OSError:
            with suppress(OSError):
                aside.unlink(missing_ok=True)


def _index_paths(shard: str) -> list[Path]:
    digest = hashlib.blake2b((shard if files.is_url(shard) else str(Path(shard).resolve())).encode(), digest_size=12).hexdigest()
    cached = files.cache_folder() / "shards" / f"{digest}.index.json"
    return [cached] if files.is_url(shard) else [Path(f"{shard}.index.json"), cached]


def _stem(shard: str) -> str:
    return shard.partition("?")[0].rstrip("/").rpartition("/")[2].partition(".tar")[0]


def _folder_name(shard: str) -> str:
    parent = shard.rpartition("/")[0] if files.is_url(shard) else str(Path(shard).resolve().parent)
    return parent.rpartition("/")[2] or "shards"

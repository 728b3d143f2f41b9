"""What was found out about a shard, kept beside it or in the cache folder until the shard changes."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from unclip.files import write_files

from . import files
from .files import Stamp
from .shard_index import ShardIndex
from .shard_labels import Labels

Known = TypeVar("Known", ShardIndex, Labels)


def recall(kind: type[Known], shard: str, name: str, now: Stamp) -> Known | None:
    """What `keep` wrote under that name, when it is of the shard as it is now."""
    for path in _paths(shard, name):
        try:
            known = kind.load(path)
        except ValueError:  # absent or damaged: made anew
            continue
        if (known.size, known.tag) == now:
            return known
    return None


def keep(known: Known, shard: str, name: str) -> None:
    """Beside the shard or, where that cannot be written, in the cache; a full disk only means to find it out again."""
    for path in _paths(shard, name):
        with suppress(ValueError):
            write_files([(path, msgspec.json.encode(known))])
            return


def _paths(shard: str, name: str) -> list[Path]:
    digest = hashlib.blake2b((shard if files.is_url(shard) else str(Path(shard).resolve())).encode(), digest_size=12).hexdigest()
    cached = files.cache_folder() / "shards" / f"{digest}.{name}.json"
    return [cached] if files.is_url(shard) else [Path(f"{shard}.{name}.json"), cached]

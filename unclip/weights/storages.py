"""Where the numbers of torch's files lie: members of a zip archive, or behind the pickles of a file from before torch 1.6.

A storage is believed in so far as the file bears it out: what it says of lengths is compared with the file's own size, and a
compressed member is refused, since torch never compresses and a zip file can unpack to a thousand times itself.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unclip.config import visible

from .tensors import read_into

STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
LONGEST = 2**22  # bytes of a pickle without its numbers: some twenty thousand tensors


class Storage(NamedTuple):
    """A run of numbers in the file."""

    dtype: torch.dtype
    key: str
    length: int


def reason(error: Exception) -> str:
    """Why reading failed, in one line."""
    try:
        return visible((str(error).strip() or type(error).__name__).splitlines()[0])
    except Exception:  # a message may hold what the file has made
        return type(error).__name__


class Zip:
    """The storages of a zip archive, which torch never compresses."""

    def __init__(self, path: Path):
        self.path, self.size = path, path.stat().st_size
        if not zipfile.is_zipfile(path):
            raise ValueError("it begins as a zip archive and does not end as one")
        self.archive = zipfile.ZipFile(path)
        self.members = {info.filename: info for info in self.archive.infolist()}
        if len(self.members) < len(self.archive.infolist()):
            raise ValueError("it is a zip file that holds a name twice")
        roots = [name.removesuffix("data.pkl") for name in self.members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("it is a zip file, but torch did not make it")
        self.root = roots[0]

    def member(self, name: str) -> zipfile.ZipInfo | None:
        info = self.members.get(self.root + name)
        stored = info is None or (info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size <= self.size)
        if info is not None and not stored:
            raise ValueError(f"its {visible(info.filename)} is compressed, or larger than the file: torch did not make it")
        return info

    def whole(self, name: str) -> bytes:
        info = self.member(name)
        if info is None or info.file_size > LONGEST:
            raise ValueError(f"its {name} is missing, or of more than {LONGEST} bytes")
        return self.archive.read(info)

    def check(self, storage: Storage) -> None:
        info = self.member(f"data/{storage.key}")
        if info is None or info.file_size != storage.length * storage.dtype.itemsize:
            where = visible(f"{self.root}data/{storage.key}")
            raise ValueError(f"{where} is missing or has not the {storage.length} numbers that it should have")

    def fill(self, storage: Storage, into: memoryview) -> None:
        """Through the archive's own check sum."""
        info = self.members[f"{self.root}data/{storage.key}"]
        try:
            with self.archive.open(info) as file:
                read_into(file, self.path, into)  # type: ignore[arg-type]
                file.read(1)  # at the end the sum is compared
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            where = visible(info.filename)
            raise ValueError(f"{self.path} cannot be read at {where} ({reason(error)}): is it whole?") from None


class Tail:
    """The storages behind the pickles of a file from before torch 1.6: each its length, then its numbers."""

    def __init__(self, path: Path):
        self.path = path
        self.asked: dict[str, Storage] = {}
        self.places: dict[str, int] = {}

    def check(self, storage: Storage) -> None:
        if self.asked.setdefault(storage.key, storage) != storage:
            raise ValueError(f"its storage {visible(storage.key)} is described in two ways")

    def find(self, keys: Any, at: int) -> None:
        """Walk through the storages, which lie in the order of their keys from `at`."""
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(self.asked):
            raise ValueError("its list of storages is another than the storages that it speaks of")
        end = self.path.stat().st_size
        with open(self.path, "rb") as file:
            for key in keys:
                storage = self.asked[key]
                file.seek(at)
                length = int.from_bytes(file.read(8), "little")
                self.places[key], at = at + 8, at + 8 + length * storage.dtype.itemsize
                if length != storage.length or at > end:
                    raise ValueError(f"{visible(key)} is missing or has not the {storage.length} numbers that it should have")

    def fill(self, storage: Storage, into: memoryview) -> None:
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.places[storage.key])
            read_into(file, self.path, into)

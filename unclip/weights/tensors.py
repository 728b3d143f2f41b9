"""Safetensors: the header, checked before any of it is believed; tensors read one by one; files with their SHA-256.

    8 bytes: length of the header | JSON: {name: {dtype, shape, data_offsets}} | the numbers, without gaps, little-endian

Read here, and not by the library, for three reasons.  Its mapped pages are not aligned as torch aligns its own, and the last bit
of a product depends on that; they count as memory while a file is open; and the hash wants the bytes anyway, in one pass.
Written here because the library puts metadata in another order each time, and because a file is hashed while it is written.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unclip.config import visible
from unclip.files import refuse_pointer, regular_file

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in TYPES.items()}
LONGEST_HEADER = 2**25  # bytes: a hundred thousand tensors
See = Callable[[memoryview], object]  # is shown the bytes that are read, piece by piece
CHUNK = 2**20  # bytes, read and hashed while they are in the cache
READ: ContextVar[Callable[[int], object] | None] = ContextVar("READ", default=None)  # of this thread


@contextmanager
def reading(tell: Callable[[int], object]) -> Iterator[None]:
    """Inside the block `tell` is told of all numbers that are read, in bytes."""
    token = READ.set(tell)
    try:
        yield
    finally:
        READ.reset(token)


class Lazy(NamedTuple):
    """A tensor in a file.  `read(dtype)` gives a fresh, contiguous copy in that type."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[torch.dtype], Tensor]


class TensorEntry(NamedTuple):
    """A tensor's type and shape, and where its bytes lie in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class Header(NamedTuple):
    entries: dict[str, TensorEntry]  # in the order in which they lie in the file
    metadata: dict[str, str]
    end: int  # where the numbers begin


def header(path: str | Path) -> Header:
    """What a safetensors file says of itself; ValueError unless that is true of the whole file."""
    path = regular_file(path)
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            start = file.read(64)
            refuse_pointer(path, start)
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > min(size - 8, LONGEST_HEADER):
                raise _Broken(f"its header of {length} bytes is longer than it can be")
            file.seek(8)
            tree = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
        return _parsed(tree, 8 + length, size)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError, _Broken) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({visible(error)}): is it whole?") from None


class _Broken(Exception):
    """What is wrong with a file."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise _Broken("its header gives a name twice")
    return entries


def _parsed(tree: Any, start: int, size: int) -> Header:
    if not isinstance(tree, dict):
        raise _Broken("its header is no object")
    metadata = tree.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Broken("its metadata are no texts")
    entries = {name: _entry(name, one, start) for name, one in tree.items()}
    entries = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
    at = start
    for name, entry in entries.items():
        if entry.start != at:
            raise _Broken(f"{visible(name)} does not begin where the tensor before it ends")
        at = entry.end
    if at != size:
        raise _Broken(f"it has {size} bytes, and its header speaks of {at}")
    return Header(entries, metadata, start)


def _entry(name: str, one: Any, start: int) -> TensorEntry:
    if not isinstance(one, dict) or set(one) != {"dtype", "shape", "data_offsets"}:
        raise _Broken(f"its header does not tell dtype, shape and data_offsets of {visible(name)}")
    shape, offsets = one["shape"], one["data_offsets"]
    if not all(isinstance(x, list) and all(type(n) is int and 0 <= n < 2**63 for n in x) for x in (shape, offsets)):
        raise _Broken(f"shape and offsets of {visible(name)} are no lists of numbers")
    if one["dtype"] not in TYPES:
        raise _Broken(f"{visible(name)} is of type {visible(one['dtype'])}, known are {', '.join(TYPES)}")
    dtype = TYPES[one["dtype"]]
    if len(offsets) != 2 or len(shape) > 64 or math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise _Broken(f"{visible(name)} of shape {visible(shape, 60)} does not lie at {visible(offsets)}")
    return TensorEntry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def lazily(path: Path) -> dict[str, Lazy]:
    """The tensors of a safetensors file, each to be read when asked for."""

    def reader(entry: TensorEntry) -> Callable[[torch.dtype], Tensor]:
        def read(dtype: torch.dtype) -> Tensor:
            with _opened(path) as file:
                file.seek(entry.start)
                return _tensor(file, path, entry, dtype)

        return read

    return {name: Lazy(entry.shape, entry.dtype, reader(entry)) for name, entry in header(path).entries.items()}


def read_tensors(path: Path, types: Mapping[str, torch.dtype], sha256: str | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, floating ones in the type that `types` gives their name (else float32).

    sha256: what the file's has to be, ValueError when it is another.  Hashed in the same pass: 0.5 s for each GB, where
    processors have instructions for it, of 1.0 s that reading and hashing take together; the shipped pipeline's 95 MB, 0.05 s.
    """
    head = header(path)
    digest = hashlib.sha256() if sha256 else None
    tensors: dict[str, Tensor] = {}
    with _opened(path) as file:
        start = file.read(head.end)
        if digest:
            digest.update(start)
        for name, entry in head.entries.items():
            wanted = types.get(name, torch.float32)
            floating = wanted if wanted.is_floating_point else torch.float32
            dtype = floating if entry.dtype.is_floating_point else entry.dtype
            tensors[name] = _tensor(file, path, entry, dtype, digest.update if digest else None)
    if digest and digest.hexdigest() != sha256:
        problem = f"its SHA-256 is {digest.hexdigest()[:12]}..., and its maker's, in config.json, was {visible(sha256, 12)}"
        raise ValueError(
            f"{path} is not what was saved: {problem}.  Get it again; or, where it was changed on purpose, take its entry under "
            "sha256 out of that file"
        )
    return tensors


def _opened(path: Path) -> io.FileIO:
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None


def _tensor(file: io.RawIOBase, path: Path, entry: TensorEntry, dtype: torch.dtype, see: See | None = None) -> Tensor:
    """The tensor whose bytes come next in the file."""
    raw = torch.empty(entry.end - entry.start, dtype=torch.uint8)
    read_into(file, path, raw.numpy().data, see)
    flat = raw != 0 if entry.dtype == torch.bool else raw.view(entry.dtype)
    return flat.view(entry.shape).to(dtype)


def read_into(file: io.RawIOBase | io.BufferedIOBase, path: Path, into: memoryview, see: See | None = None) -> None:
    """Fill `into` with the next bytes of the file; ValueError where they end too early."""
    done = 0
    try:
        while done < len(into):
            got = file.readinto(into[done : done + CHUNK])
            if not got:
                raise EOFError(f"{len(into) - done} bytes are missing")
            if see is not None:
                see(into[done : done + got])
            if (tell := READ.get()) is not None:
                tell(got)
            done += got
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}): is it whole?") from None


def write_tensors(
    path: Path, entries: Mapping[str, Any], tensors: Iterable[Tensor] | None = None, metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file, sync it and return its SHA-256; the same tensors give the same bytes.  OSError: a full disk.

    entries: by name what has `shape` and `dtype`; without `tensors` the tensors themselves.  tensors: their data, one by one,
    in the order of `in_order`.
    """
    data = (entries[name] for name in in_order(entries)) if tensors is None else tensors
    digest = hashlib.sha256()
    with path.open("wb") as file:
        blocks: Iterable[bytes | memoryview] = itertools.chain([_head(entries, metadata)], map(_bytes, data))
        for block in blocks:
            file.write(block)
            digest.update(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """What `write_tensors` writes."""
    return b"".join([_head(tensors, metadata), *(_bytes(tensors[name]) for name in in_order(tensors))])


def _head(entries: Mapping[str, Any], metadata: Mapping[str, str] | None) -> bytes:
    head: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in in_order(entries):
        shape, dtype = entries[name].shape, entries[name].dtype
        start, end = end, end + shape.numel() * dtype.itemsize
        head[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)  # data start at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def in_order(entries: Mapping[str, Any]) -> list[str]:
    """Wide types first, so that each number lies at a multiple of its size."""
    return sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def sha256_of(path: Path) -> str:
    """A file's, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with _opened(path) as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()

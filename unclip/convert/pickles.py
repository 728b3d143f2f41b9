"""The tensors of torch's zip archives (torch.save, torch.jit.save), read without running anything that a file asks for.

A pickle is a program that calls what it names.  Here it can name ordered dictionaries and torch's two ways to describe a
tensor; any other name stands for an inert object that remembers it and does nothing, so nothing is ever imported.  What a
model has no use for, such as a trainer's settings, thereby does no harm, and where a tensor should be it is refused.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK = 2**24  # bytes
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class Lazy(NamedTuple):
    """A tensor in a file.  `read(dtype)` gives a fresh, contiguous copy in that type."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[torch.dtype], Tensor]


class Foreign:
    """Whatever a pickle makes of a name that it may not have: it remembers the name, and its state if it gets one."""

    module, name = "", ""
    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> Foreign:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        """Whatever it is called with."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *_: Any, **__: Any) -> Foreign:
        return self

    def append(self, _: Any) -> None:
        """Items of a list that is none."""

    def __setitem__(self, _: Any, __: Any) -> None:
        """Items of a dictionary that is none."""


class _Storage(NamedTuple):
    """A run of numbers in the archive."""

    dtype: torch.dtype
    entry: str
    length: int


def read_archive(path: Path) -> Any:
    """What was saved, with Lazy in place of tensors and Foreign in place of objects that are neither."""
    try:
        archive = zipfile.ZipFile(path)
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("it is a zip file, but torch did not make it")
        if f"{roots[0]}byteorder" in archive.namelist() and archive.read(f"{roots[0]}byteorder") != b"little":
            raise ValueError("its numbers have their bytes in the other order")
        with archive.open(f"{roots[0]}data.pkl") as file:
            return _Reader(file, archive, roots[0], path).load()
    except Exception as error:  # of as many kinds as a pickle's program has ways to go wrong
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as torch weights ({reason}): is it whole?") from None


class _Reader(pickle.Unpickler):
    """What it hands out is made for one file: a pickle may change the objects that it got, and must not reach the next."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str, path: Path):
        super().__init__(file)
        self.archive, self.root, self.path = archive, root, path
        self.sizes = {info.filename: info for info in archive.infolist()}
        self.foreign: dict[tuple[str, str], type[Foreign]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: self.tensor(storage, offset, shape, stride)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *_: tensor
        return self.foreign.setdefault((module, name), type("Foreign", (Foreign,), {"module": module, "name": name}))

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, count = pid
        if kind != "storage" or storage.module not in ("torch", "torch.storage") or storage.name not in STORAGES:
            raise ValueError(f"it holds {storage.name!r}, which is no known type of numbers")
        dtype, entry = STORAGES[storage.name], f"{self.root}data/{key}"
        if entry not in self.sizes or self.sizes[entry].file_size != count * dtype.itemsize:
            raise ValueError(f"{entry} is missing or has not the {count} numbers that it should have")
        return _Storage(dtype, entry, count)

    def tensor(self, storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Lazy:
        numbers = (offset, *shape, *stride)
        if not isinstance(storage, _Storage) or len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError("it describes a tensor that cannot be")
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride))
        if 0 not in shape and last >= storage.length:
            raise ValueError(f"a tensor ends behind its storage {storage.entry}")
        archive, path = self.archive, self.path

        def read(dtype: torch.dtype) -> Tensor:
            flat = torch.empty(storage.length, dtype=storage.dtype)
            try:
                _read_into(archive, storage.entry, memoryview(flat.view(torch.uint8).numpy()))  # type: ignore[arg-type]
            except (OSError, EOFError, zipfile.BadZipFile) as error:
                raise ValueError(f"{path} cannot be read at {storage.entry} ({error}): is it whole?") from None
            part = flat.as_strided(shape, stride, offset).to(dtype).contiguous()
            return part.clone() if part.numel() < flat.numel() and part.dtype == flat.dtype else part

        return Lazy(tuple(shape), storage.dtype, read)


def _read_into(archive: zipfile.ZipFile, entry: str, into: memoryview) -> None:
    """A stored entry's bytes, through the archive's own check sum."""
    done = 0
    with archive.open(entry) as file:
        while done < len(into):
            got = file.readinto(into[done : done + CHUNK])  # type: ignore[attr-defined]
            if not got:
                raise EOFError(f"{len(into) - done} bytes are missing")
            done += got
        if file.read(1):
            raise EOFError("there are more bytes than there should be")

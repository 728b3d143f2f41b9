"""The tensors of what torch.save and torch.jit.save write, read without running anything that a file asks for.

A pickle is a program that calls what it names.  Here it can name ordered dictionaries and torch's two ways to describe a
tensor; any other name stands for an inert object that remembers it and does nothing, so nothing is ever imported.  What a
model has no use for, such as a trainer's settings, thereby does no harm, and where a tensor should be it is refused.

torch.load is not asked, and every size is checked against the file that names it before memory is taken for it: a pickle of 500
bytes can ask for gigabytes, a tensor of a small storage can be larger than any memory by strides of zero, and a tuple in a tuple,
two million deep, ends Python when it is made a dictionary's key.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from unclip.config import visible
from unclip.files import refuse_pointer, regular_file

from .storages import LONGEST, STORAGES, Storage, Tail, Zip, reason
from .tensors import Lazy

DEEPEST = 100  # dictionaries, lists and modules in each other
STRANGERS = 10_000  # names that are not torch's
SHARED = 4  # times that tensors may cover the file's bytes, by sharing storages, and some for small files
MAGIC = 0x1950A86A20F9469CFC6C  # of torch's files before 1.6, which are five pickles and then numbers
KEYS = (str, int, float, bytes, type(None))


class Foreign:
    """Whatever a pickle makes of a name that it may not have: it remembers the name, and its state if it gets one."""

    module, name = "", ""
    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> Foreign:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        """Whatever it is called with."""

    def __call__(self, *_: Any, **__: Any) -> Foreign:
        return self

    def append(self, _: Any) -> None:
        """Items of a list that is none."""

    def __setitem__(self, _: Any, __: Any) -> None:
        """Items of a dictionary that is none."""


def tree(path: Path) -> Any:
    """What torch.save or torch.jit.save wrote, with Lazy in place of tensors and Foreign for objects that are neither."""
    path = regular_file(path)
    with open(path, "rb") as file:
        start = file.read(64)
    refuse_pointer(path, start)
    try:
        return _archive(path) if start.startswith(b"PK") else _legacy(path)
    except Exception as error:  # of as many kinds as a pickle's program has ways to go wrong
        raise ValueError(f"{path} cannot be read as torch weights ({reason(error)}): is it whole?") from None


def tensors_by_name(node: Any, source: str) -> dict[str, Lazy]:
    """The tensors of nested dictionaries, sequences and TorchScript modules by their dotted names."""
    tensors: dict[str, Lazy] = {}
    seen: set[int] = set()  # a pickle can hold itself
    levels: list[Iterator[tuple[str, Any]]] = [iter([("", node)])]
    while levels:
        name, node = next(levels[-1], (None, None))
        if name is None:
            levels.pop()
            continue
        if isinstance(node, Lazy):
            tensors[name] = node
        if isinstance(node, Foreign) and not node.module.startswith("torch.jit"):  # a typed list of TorchScript's: no weights
            if not node.module.startswith("__torch__"):
                what, where = visible(f"{node.module}.{node.name}"), visible(name) or "its root"
                raise ValueError(
                    f"{source} holds {what} at {where}, which is no tensor; "
                    "it was not run, and a file of weights has no use for it: get the file from its maker again"
                )
            node = node.state  # a TorchScript module: its attributes
        if isinstance(node, (dict, list, tuple)) and not isinstance(node, Lazy) and node and id(node) not in seen:
            if len(levels) > DEEPEST or len(name) > 10_000:
                raise ValueError(f"{source} holds dictionaries and lists more than {DEEPEST} deep in each other: no weights are")
            seen.add(id(node))
            levels.append(_inside(name, node))
    return tensors


def _inside(prefix: str, node: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    for name, child in node.items() if isinstance(node, dict) else enumerate(node):
        yield (f"{prefix}.{name}" if prefix else f"{name}"), child


class _Reader(pickle._Unpickler):
    """Python's own unpickler in Python, for the one in C takes memory for whatever length a file names.

    What it hands out is made for one file: a pickle may change the objects that it got, and must not reach the next.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BytesIO, numbers: Zip | Tail, path: Path):
        super().__init__(file)
        self.numbers, self.source = numbers, path
        self.room = SHARED * path.stat().st_size + LONGEST
        self.foreign: dict[tuple[str, str], type[Foreign]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return lambda *_: {}
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: self.tensor(storage, offset, shape, stride)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *_: tensor
        if len(self.foreign) > STRANGERS:
            raise ValueError(f"it names more than {STRANGERS} things that are no tensors")
        return self.foreign.setdefault((module, name), type("Foreign", (Foreign,), {"module": module, "name": name}))

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage, key, _, count = pid[:5]
        if kind != "storage" or storage.module not in ("torch", "torch.storage") or storage.name not in STORAGES:
            raise ValueError(f"it holds {visible(storage.name)!r}, which is no known type of numbers")
        if type(key) is not str or type(count) is not int or any(pid[5:]):
            raise ValueError("it describes numbers that cannot be")
        numbers = Storage(STORAGES[storage.name], key, count)
        self.numbers.check(numbers)
        return numbers

    def tensor(self, storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Lazy:
        numbers = (offset, *shape, *stride)
        fits = isinstance(storage, Storage) and len(shape) == len(stride) <= 64
        if not fits or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
            raise ValueError("it describes a tensor that cannot be")
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride))
        size = math.prod(shape)
        if size and last >= storage.length:
            raise ValueError(f"a tensor ends behind its storage {visible(storage.key)}")
        if size > storage.length:
            raise ValueError(f"a tensor of shape {visible(shape, 60)} is larger than its storage of {storage.length} numbers")
        self.room -= size * storage.dtype.itemsize
        if self.room < 0:
            raise ValueError("its tensors share storages and are together much larger than the file")

        def read(dtype: torch.dtype) -> Tensor:
            flat = torch.empty(storage.length, dtype=storage.dtype)
            self.numbers.fill(storage, flat.view(torch.uint8).numpy().data)
            view = flat.as_strided(shape, stride, offset).to(dtype).contiguous()
            return view.clone() if view.numel() < flat.numel() and view.dtype == flat.dtype else view

        return Lazy(tuple(shape), storage.dtype, read)

    # A state goes to what remembers it and to nothing else; whatever is hashed is a name or a number; sets are kept as lists.

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Foreign):
            self.stack[-1].state = state

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._set(self.stack[-1], items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(self.stack[-1], items)

    def _set(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2]):
                target[key if isinstance(key, KEYS) else f"({type(key).__name__})"] = value
        elif not isinstance(target, Foreign):
            raise ValueError("it sets items of what is no dictionary")

    def load_empty_set(self) -> None:
        self.append([])

    def load_additems(self) -> None:
        items = self.pop_mark()
        self.stack[-1].extend(items)

    def load_frozenset(self) -> None:
        self.append(self.pop_mark())

    def load_bytearray8(self) -> None:
        raise ValueError("it holds a bytearray, which torch does not write")

    dispatch.update({
        pickle.BUILD[0]: load_build, pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict, pickle.EMPTY_SET[0]: load_empty_set, pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset, pickle.BYTEARRAY8[0]: load_bytearray8,
    })  # fmt: skip


def _archive(path: Path) -> Any:
    numbers = Zip(path)
    if numbers.member("byteorder") is not None and numbers.whole("byteorder") != b"little":
        raise ValueError("its numbers have their bytes in the other order")
    return _Reader(io.BytesIO(numbers.whole("data.pkl")), numbers, path).load()


def _legacy(path: Path) -> Any:
    with open(path, "rb") as file:
        buffer = io.BytesIO(file.read(LONGEST))
    numbers = Tail(path)

    def load() -> Any:
        return _Reader(buffer, numbers, path).load()

    if load() != MAGIC:
        raise ValueError("it is neither a zip archive nor what torch wrote before 1.6")
    load()  # the format's version
    system = load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers have their bytes in the other order")
    root = load()
    numbers.find(load(), buffer.tell())
    return root

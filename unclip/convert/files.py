"""Tensors in files: what they are, at once; their numbers, one tensor at a time, when asked for.

So a file can be checked against a config before anything is read, and loading holds the weights once.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .pickles import Foreign, Lazy, read_archive

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def in_folder(folder: Path) -> dict[str, Lazy]:
    """The tensors of a Hugging Face folder: one file or shards, safetensors before pickles, full precision before half."""
    for kind in ("safetensors", "bin"):
        for variant in ("", ".fp16"):
            for stem in STEMS:
                if (path := folder / f"{stem}{variant}.{kind}").is_file():
                    return in_file(path)
                if (path := folder / f"{stem}.{kind}.index{variant}.json").is_file():
                    return _shards(path)
    raise ValueError(f"{folder} holds no weights: expected {STEMS[0]}.safetensors (or .bin), {STEMS[1]}.safetensors or shards")


def in_file(path: Path) -> dict[str, Lazy]:
    """The tensors of a safetensors file, or of what torch.save or torch.jit.save wrote, by their dotted names."""
    if path.suffix == ".safetensors":
        return _safetensors(path)
    return named(tree(path), str(path))


def tree(path: Path) -> Any:
    """What torch.save or torch.jit.save wrote, with Lazy in place of tensors; nothing in it is run (see pickles.py)."""
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    if zipfile.is_zipfile(path):
        return read_archive(path)
    try:  # before torch 1.6 it was a bare pickle, which torch reads safely itself
        return _lazy(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # of as many kinds as there are damages
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as torch weights ({reason}): is it whole?") from None


def named(node: Any, source: str) -> dict[str, Lazy]:
    """The tensors of nested dictionaries, sequences and TorchScript modules by their dotted names."""
    return dict(_walk(node, "", source, set()))


def _walk(node: Any, prefix: str, source: str, seen: set[int]) -> Iterator[tuple[str, Lazy]]:
    if isinstance(node, Lazy):
        yield prefix.removesuffix("."), node
        return
    if isinstance(node, Foreign):
        if node.module.startswith("torch.jit"):  # a typed list of TorchScript's: no weights
            return
        if not node.module.startswith("__torch__"):
            raise ValueError(
                f"{source} holds {node.module}.{node.name} at {prefix.removesuffix('.') or 'its root'}, which is no tensor; "
                "it was not run, and a file of weights has no use for it: get the file from its maker again"
            )
        node = node.state  # a TorchScript module: its attributes
    if not isinstance(node, (dict, list, tuple)):
        return
    if id(node) in seen:  # a pickle can hold itself
        return
    seen.add(id(node))
    for name, child in node.items() if isinstance(node, dict) else enumerate(node):
        yield from _walk(child, f"{prefix}{name}.", source, seen)


def _safetensors(path: Path) -> dict[str, Lazy]:
    def read(name: str) -> Callable[[torch.dtype], Tensor]:
        # Opened for each tensor, because mapped pages stay in memory while the file is open.
        def one(dtype: torch.dtype) -> Tensor:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name).to(dtype, copy=True)

        return one

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return {n: Lazy(tuple(s.get_shape()), _type(s.get_dtype(), path), read(n)) for n, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): is it whole?") from None


def _type(name: str, path: Path) -> torch.dtype:
    if name not in TYPES:
        raise ValueError(f"{path} holds tensors of type {name}; known are {', '.join(TYPES)}")
    return TYPES[name]


def _shards(index: Path) -> dict[str, Lazy]:
    try:
        places: dict[str, str] = json.loads(index.read_text())["weight_map"]
        files = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is no index of shards: expected an object with 'weight_map', tensor names to files") from None
    if any(not isinstance(name, str) or Path(name).name != name for name in files):
        raise ValueError(f"{index} names files outside its folder")
    shards = {name: in_file(index.parent / name) for name in files}
    for name, file in places.items():
        if name not in shards[file]:
            raise ValueError(f"{index} says that {name} is in {file}, which does not hold it")
    return {name: lazy for shard in shards.values() for name, lazy in shard.items()}


def _lazy(node: Any) -> Any:
    if isinstance(node, Tensor):
        return Lazy(tuple(node.shape), node.dtype, lambda dtype: node.detach().to(dtype, copy=True))
    if isinstance(node, dict):
        return {name: _lazy(child) for name, child in node.items()}
    return [_lazy(child) for child in node] if isinstance(node, (list, tuple)) else node

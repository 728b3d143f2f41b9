"""The weights in a folder: one file or shards, in one of several variants.  Which is meant is never guessed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from unclip.files import read_json

from .pickles import tensors_by_name, tree
from .tensors import Lazy, lazily

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # as diffusers and transformers call them, and this package
PLAIN = "plain"  # the variant whose files name none
_SHARD = re.compile(r"-\d+-of-\d+")
_COMPILED = re.compile(r"(^|\.)_orig_mod\.")
_LIKE_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".th", ".msgpack", ".h5", ".onnx", ".gguf", ".index.json")


class Weights(NamedTuple):
    """One set of weights in a folder."""

    path: Path  # its file, or the index of its shards
    variant: str  # "fp16", "bf16", "non_ema", ... or PLAIN
    kind: str  # safetensors or bin


def find_weights(
    folder: Path, variant: str | None = None, stems: Sequence[str] = STEMS, kinds: Sequence[str] = ("safetensors", "bin")
) -> Path:
    """The file of a folder's weights, or the index of their shards; ValueError where there are none, or several.

    variant: which of several, by its word ("fp16"; "plain" for the one without) or by the name of its file.  A folder that has
    one set only is taken with that, and a warning where it is another variant.  Safetensors go before pickles of the same.
    """
    candidates = _candidates(folder, stems, kinds)
    chosen = [one for one in candidates if variant in (one.variant, one.path.name)] if variant else []
    if variant and not chosen and candidates:
        file_names = ", ".join(sorted({one.path.name for one in candidates}))
        if len(candidates) > 1:
            raise ValueError(f"{folder} has no weights {variant!r}; it has {file_names}")
        warnings.warn(f"{folder} has no weights {variant!r}: taking {file_names}, the only ones there", stacklevel=2)
    chosen = chosen or candidates
    for kind in kinds:
        same = [one for one in chosen if one.kind == kind]
        if len(same) > 1:
            several = ", ".join(one.path.name for one in same)
            words = sorted({one.variant for one in same})
            choices = f"--variant {' or '.join(words)}" if len(words) == len(same) else "--variant NAME-OF-THE-FILE"
            choices += "; in Python variant=..."
            raise ValueError(f"{folder} holds several weights, {several}: say which ({choices}), or leave one there")
        if same:
            return same[0].path
    lies_there = sorted(path.name for path in folder.glob("*") if path.name.endswith(_LIKE_WEIGHTS))
    there = f"; there are {', '.join(lies_there[:8])}" if lies_there else ""
    names = [f"{stem}.{kind}" for kind in kinds for stem in stems[:2]]
    wrong = f"expected {', '.join(names)}, or" if len(names) > 1 else f"{folder / names[0]} is missing, and so are"
    raise ValueError(f"{folder} holds no weights: {wrong} shards with their index{there}")


def _candidates(folder: Path, stems: Sequence[str], kinds: Sequence[str]) -> list[Weights]:
    pattern = re.compile(
        rf"(?:{'|'.join(stems)})(?:\.(?P<variant>[\w-]+))?\.(?P<kind>{'|'.join(kinds)})"
        r"(?P<index>\.index(?:\.(?P<late>[\w-]+))?\.json)?"
    )
    candidates = []
    for path in sorted(folder.glob("*")):
        match = pattern.fullmatch(path.name)
        if match and not _SHARD.search(path.name):
            candidates.append(Weights(path, match["variant"] or match["late"] or PLAIN, match["kind"]))
    return candidates


def files_of(path: Path) -> list[Path]:
    """The file itself, or the shards that an index lists, which lie beside it."""
    return [path] if path.suffix != ".json" else [path.with_name(name) for name in sorted(set(_places(path).values()))]


def in_folder(folder: Path, variant: str | None = None) -> dict[str, Lazy]:
    """The tensors of a folder's weights, without the prefixes that compiling and training in parallel put before names."""
    path = find_weights(folder, variant)
    return plain_names(in_file(path) if path.suffix != ".json" else _shards(path), str(path))


def in_file(path: Path) -> dict[str, Lazy]:
    """The tensors of a safetensors file, or of what torch.save or torch.jit.save wrote, by their dotted names."""
    return lazily(path) if path.suffix == ".safetensors" else tensors_by_name(tree(path), str(path))


def plain_names(tensors: Mapping[str, Lazy], source: str) -> dict[str, Lazy]:
    """Without `_orig_mod.` of torch.compile wherever it stands, and `module.` of data-parallel training where all have it."""
    return {new: tensors[old] for old, new in renamed(tensors, source).items()}


def renamed(names: Mapping[str, object], source: str) -> dict[str, str]:
    """As they are called -> without prefixes; ValueError where two become one."""
    new = {name: _COMPILED.sub(r"\1", name) for name in names}
    while new and all(name.startswith("module.") for name in new.values()):
        new = {name: plain.removeprefix("module.") for name, plain in new.items()}
    if len(set(new.values())) < len(new):
        raise ValueError(f"{source} holds tensors that are called the same without the prefixes _orig_mod. and module.")
    return new


def _places(index: Path) -> dict[str, str]:
    try:
        places = read_json(index)["weight_map"]
        if not places or not all(isinstance(name, str) for name in places.values()):
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is no index of shards: expected an object with 'weight_map', tensor names to files") from None
    if any(Path(name).name != name for name in places.values()):
        raise ValueError(f"{index} names files outside its folder")
    return places


def _shards(index: Path) -> dict[str, Lazy]:
    places = _places(index)
    shards = {path.name: in_file(path) for path in files_of(index)}
    for name, file in places.items():
        if name not in shards[file]:
            raise ValueError(f"{index} says that {name} is in {file}, which does not hold it")
    return {name: lazy for shard in shards.values() for name, lazy in shard.items()}

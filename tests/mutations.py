"""Seeded damage to a folder of a model: what people, tools, disks and attackers do to JSON and safetensors."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from unclip.checkpoint import seal

NUMBERS = (0, -1, 1, 2, 3, 7, 32, 1000, 10**9, 2**31, 2**40, 2**63, 2**70, -(10**9), 0.5, 1e300)
VALUES = (*NUMBERS, None, True, False, "", "x", "\x1b[2J\x1b[31mred", "n" * 5000, [], {}, [1, 2], {"a": 1}, "../../etc", "💥")


def mutate(folder: Path, seed: int) -> str:
    """One mutation; says which."""
    rng = random.Random(seed)
    how = rng.choice([_value, _value, _value, _value, _key, _text, _bits, _bits, _header, _header, _file, _folders, _statistics])
    return f"{seed}: {how(folder, rng)}"


def _json(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(folder.rglob("*.json")))


def _weights(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(folder.rglob("*.safetensors")))


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree; long lists of numbers count once."""
    keys = list(tree) if isinstance(tree, dict) else range(min(len(tree), 3)) if isinstance(tree, list) else []
    return [place for key in keys for place in [(tree, key), *_places(tree[key])]]


def _changed(path: Path, rng: random.Random, change: Callable[[Any, Any], Any]) -> str:
    tree = json.loads(path.read_text())
    container, key = rng.choice(_places(tree))
    told = change(container, key)
    path.write_text(json.dumps(tree))
    return f"{path.parent.name}/{path.name} {key}: {str(told)[:60]}"


def _value(folder: Path, rng: random.Random) -> str:
    def change(container: Any, key: Any) -> Any:
        old = container[key]
        near = [old * 2, old + 1, old - 1, -old, old * 1000] if type(old) in (int, float) else []
        container[key] = rng.choice([*near, *NUMBERS] if type(old) in (int, float) and rng.random() < 0.7 else VALUES)
        return container[key]

    return _changed(_json(folder, rng), rng, change)


def _key(folder: Path, rng: random.Random) -> str:
    def change(container: Any, key: Any) -> Any:
        how = rng.choice(["remove", "add", "rename"])
        old = container[key] if how == "add" else container.pop(key)
        if how != "remove" and isinstance(container, dict):
            container[rng.choice(["x", "\x1b[2J", f"{key}s", "__class__", "n" * 5000])] = old
        return how

    return _changed(_json(folder, rng), rng, change)


def _text(folder: Path, rng: random.Random) -> str:
    path = _json(folder, rng)
    data = path.read_bytes()
    at = rng.randrange(len(data))
    changes = {
        "cut": data[:at],
        "empty": b"",
        "byte order mark": b"\xef\xbb\xbf" + data,
        "utf-16": data.decode().encode("utf-16"),
        "a byte": data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
        "deep": b"[" * 200_000,
        "deep inside": data.replace(b": {", b": " + b"[" * 100_000, 1),
        "digits": data.replace(b": 1", b": 1" + b"0" * 5000, 1),
        "twice": data[:-2] + b"," + data[1:],
        "nan": data.replace(b": 0.", b": NaN, ", 1),
        "zeros": b"\0" * len(data),
    }
    how = rng.choice(list(changes))
    path.write_bytes(changes[how])
    return f"{path.parent.name}/{path.name} {how}"


def _bits(folder: Path, rng: random.Random) -> str:
    path = _weights(folder, rng)
    data = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    start, stop = rng.choice([(0, 8), (8, end), (end, len(data)), (end, len(data))])
    at = rng.randrange(start, stop)
    data[at] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"{path.parent.name} bit at {at} of {len(data)}, header to {end}"


def _header(folder: Path, rng: random.Random) -> str:
    path = _weights(folder, rng)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    tree = json.loads(data[8:end])
    names = [name for name in tree if name != "__metadata__"]
    one, other = rng.choice(names), rng.choice(names)
    how = rng.choice(["dtype", "shape", "exchange", "rename", "turn", "offsets", "remove", "metadata", "pickle"])
    if how == "dtype":
        tree[one]["dtype"] = rng.choice(["BF16", "F16", "F32", "F64", "I32", "I64", "F8_E4M3", "x"])
    elif how == "shape":
        tree[one]["shape"] = rng.choice([[], [0], [2**62, 4], [-1], [10**12], [1.5], "x", tree[one]["shape"] + [1]])
    elif how == "exchange":
        tree[one], tree[other] = tree[other], tree[one]
    elif how == "rename":
        tree[rng.choice(["x", "\x1b[2J", f"module.{one}", "n" * 5000])] = tree.pop(one)
    elif how == "turn":
        tree[one]["shape"].reverse()
    elif how == "offsets":
        tree[one]["data_offsets"] = rng.choice([[0, 4], [2**62, 2**62 + 4], [4, 0], [-4, 0], []])
    elif how == "remove":
        tree.pop(one)
    else:
        tree["__metadata__"] = rng.choice([{}, {"format": "pt", "class": "os.system"}, [], {"a": 1}])
    text = json.dumps(tree).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    return f"{path.parent.name} header {how} {one}"


def _file(folder: Path, rng: random.Random) -> str:
    path = rng.choice([_weights(folder, rng), _json(folder, rng)])
    data = path.read_bytes()
    how = rng.choice(["missing", "empty", "cut", "longer", "zeros", "pointer", "pipe", "folder", "loop", "huge", "another"])
    path.unlink()
    if how in ("empty", "cut", "longer", "zeros", "pointer", "huge"):
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        cut = data[: rng.randrange(len(data))]
        huge = (2**40).to_bytes(8, "little") + data
        longer, zeros = data + b"\0" * 64, b"\0" * len(data)
        path.write_bytes({"cut": cut, "longer": longer, "zeros": zeros, "pointer": pointer, "huge": huge}.get(how, b""))
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "another":
        others = [other for other in sorted(folder.rglob(f"*{path.suffix}")) if other != path]
        shutil.copyfile(rng.choice(others), path)
    return f"{path.parent.name}/{path.name} {how}"


def _folders(folder: Path, rng: random.Random) -> str:
    parts = sorted(path for path in folder.iterdir() if path.is_dir())
    one, other = rng.sample(parts, 2)
    how = rng.choice(["exchange", "upsamplers", "weights", "missing", "variant"])
    if how == "missing":
        shutil.rmtree(one)
    elif how == "variant":
        other_weights = {n: x.half() for n, x in load_file(one / "model.safetensors").items() if x.is_floating_point()}
        save_file(other_weights, one / "model.fp16.safetensors")
    else:
        if how != "exchange":
            one, other = parts[-2:]  # the upsamplers, built alike
        if how == "weights":
            one, other = one / "model.safetensors", other / "model.safetensors"
        aside = folder / "aside"
        one.rename(aside)
        other.rename(one)
        aside.rename(other)
    return f"folders {how} {one.name} {other.name}"


def _statistics(folder: Path, rng: random.Random) -> str:
    """Weights and statistics that are broken, in a file that is whole."""
    path = _weights(folder, rng)
    tensors = {name: x.clone() for name, x in load_file(path).items()}
    name = rng.choice(sorted(tensors))
    if "x0_" in name or not tensors[name].is_floating_point():  # the analytic variance is NaN where it was not measured
        name = next(n for n, x in tensors.items() if n.endswith("weight"))
    tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = rng.choice([float("nan"), float("inf"), -float("inf")])
    save_file(tensors, path)
    seal(path.parent)
    return f"{path.parent.name} {name} not finite"


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)))

"""Safetensors: what is written and read, hashes, and headers that are not true of their file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensors import STATE, random, read, same

from unclip.weights import header, lazily, read_tensors, sha256_of, to_bytes, write_tensors
from unclip.weights.tensors import TYPES

KINDS = {f"{dtype}": random(6, 5).to(dtype) for dtype in TYPES.values()}
EVERYTHING = {**STATE, **KINDS, "scalar": torch.tensor(2.5), "many dimensions": torch.zeros((1,) * 60)}


def types(tensors: dict[str, torch.Tensor]) -> dict[str, torch.dtype]:
    return {name: x.dtype for name, x in tensors.items()}


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    digest = write_tensors(path, EVERYTHING, metadata={"b": "1", "a": "Löwe"})
    assert same(load_file(path), EVERYTHING)  # the library takes it for its own
    assert same(read_tensors(path, types(EVERYTHING), digest), EVERYTHING) and same(read(lazily(path)), EVERYTHING)
    assert digest == sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert header(path).metadata == {"b": "1", "a": "Löwe"} and to_bytes(EVERYTHING, {"b": "1", "a": "Löwe"}) == path.read_bytes()
    save_file(EVERYTHING, path)
    assert same(read_tensors(path, types(EVERYTHING)), EVERYTHING)
    write_tensors(path, {})
    assert read_tensors(path, {}) == {} and load_file(path) == {}


def test_the_same_tensors_give_the_same_bytes() -> None:
    """Whatever their order; the library puts metadata in another one each time."""
    metadata = {name: name for name in "abcdefgh"}
    turned = to_bytes(dict(reversed(EVERYTHING.items())), dict(reversed(metadata.items())))
    assert turned == to_bytes(EVERYTHING, metadata) == to_bytes({n: x.clone() for n, x in EVERYTHING.items()}, metadata)


def test_types_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": random(3).half(), "b": random(3), "n": torch.tensor([1, 2])})
    found = read_tensors(path, {"a": torch.bfloat16, "b": torch.int64, "n": torch.float16})
    assert types(found) == {"a": torch.bfloat16, "b": torch.float32, "n": torch.int64}
    assert types(read_tensors(path, {})) == {"a": torch.float32, "b": torch.float32, "n": torch.int64}
    assert all(x.data_ptr() % 64 == 0 for x in found.values())  # as torch aligns its own: sums depend on it in the last bit


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    digest = write_tensors(path, STATE)
    whole = path.read_bytes()
    start = header(path).end
    for at in range(0, len(whole), 7):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        told = f"{path} is not what was saved: its SHA-256 is " if at >= start else "x.safetensors "
        with pytest.raises(ValueError, match=told) as error:
            read_tensors(path, {}, digest)
        assert "\n" not in str(error.value)


def relabelled(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The header changed, the numbers as they are."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    tree = json.loads(data[8:end])
    text = json.dumps(change(tree) or tree).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def test_relabelled_tensors_are_found(tmp_path: Path) -> None:
    """Which the format allows: another type of the same size, two names exchanged, another shape."""
    path = tmp_path / "x.safetensors"

    def half(tree: dict[str, Any]) -> None:
        tree["a"]["dtype"] = "BF16"

    def exchanged(tree: dict[str, Any]) -> None:
        tree["a"], tree["b"] = tree["b"], tree["a"]

    def turned(tree: dict[str, Any]) -> None:
        tree["a"]["shape"].reverse()

    for change in (half, exchanged, turned):
        digest = write_tensors(path, {"a": random(4, 3).half(), "b": random(4, 3, seed=1).half()})
        relabelled(path, change)
        assert len(read_tensors(path, {})) == 2
        with pytest.raises(ValueError, match="is not what was saved"):
            read_tensors(path, {}, digest)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t["a"].update(dtype="F4"), "a is of type F4, known are F64"),
        (lambda t: t["a"].update(dtype=3), "a is of type 3"),
        (lambda t: t["a"].update(dtype="F64"), "a of shape .* does not lie at"),
        (lambda t: t["a"].update(shape=[4, -3]), "no lists of numbers"),
        (lambda t: t["a"].update(shape=[2**62, 2**62]), "does not lie at"),
        (lambda t: t["a"].update(shape=[10**400]), "no lists of numbers"),
        (lambda t: t["a"].update(shape=[4, 3.0]), "no lists of numbers"),
        (lambda t: t["a"].update(shape=[4, True]), "no lists of numbers"),
        (lambda t: t["a"].update(shape=[1] * 70 + [12]), "does not lie at"),
        (lambda t: t["a"].update(data_offsets=[0, 24, 48]), "does not lie at"),
        (lambda t: t["a"].update(data_offsets=[24, 72]), "does not begin where|bytes, and its header"),
        (lambda t: t["b"].update(data_offsets=[0, 24]), "does not begin where"),  # both the same bytes
        (lambda t: t["a"].update(more=1), "does not tell dtype, shape and data_offsets of a"),
        (lambda t: t["a"].pop("shape") and None, "does not tell dtype"),
        (lambda t: t.update(a=[1]), "does not tell dtype"),
        (lambda t: t.pop("b") and None, "bytes, and its header speaks of"),
        (lambda t: t.update({"\x1b[31m" + "n" * 999: 3}), r"of \\x1b\[31mnn"),
        (lambda t: t.update(__metadata__={"a": 1}), "metadata are no texts"),
        (lambda t: t.update(__metadata__=[]), "metadata are no texts"),
        (lambda t: [t], "its header is no object"),
    ],
)
def test_headers_that_are_not_true(tmp_path: Path, change: Callable[[dict[str, Any]], Any], told: str) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": random(4, 3), "b": random(6)})
    relabelled(path, change)
    for reader in (header, lazily, lambda path: read_tensors(path, {})):
        with pytest.raises(ValueError, match=rf"x.safetensors cannot be read as safetensors \(.*{told}.*is it whole\?") as error:
            reader(path)
        assert str(error.value).isprintable() and len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "its header of 0 bytes is longer"),
        (b"\x02\0\0\0", "longer than it can be"),
        (b"\xff" * 64, "longer than it can be"),
        ((2**31).to_bytes(8, "little") + b"{}", "longer than it can be"),
        ((2).to_bytes(8, "little") + b"{}xxxx", "it has 14 bytes, and its header speaks of 10"),
        ((2).to_bytes(8, "little") + b"{\xff", "decode byte"),
        ((60_000).to_bytes(8, "little") + b"[" * 60_000, "maximum recursion depth"),
        ((14).to_bytes(8, "little") + b'{"a":1, "a":1}', "gives a name twice"),
    ],
)
def test_files_that_are_none(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=rf"x.safetensors cannot be read as safetensors \(.*{told}.*\): is it whole\?"):
        lazily(tmp_path / "x.safetensors")


def test_pointers_and_special_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3459\n")
    with pytest.raises(ValueError, match="x.safetensors is a git-lfs pointer of 66 bytes, not the file itself: fetch that with"):
        header(path)
    path.unlink()
    with pytest.raises(ValueError, match="x.safetensors is missing"):
        header(path)
    os.mkfifo(path)
    with pytest.raises(ValueError, match="x.safetensors cannot be read: it is a pipe"):
        header(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, STATE)
    lazies = lazily(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="x.safetensors cannot be read .*bytes are missing.*is it whole"):
        read(lazies)
    path.unlink()
    with pytest.raises(ValueError, match="x.safetensors cannot be read: No such file"):
        read(lazies)

"""Files of tensors: shards and pickles, damaged and malicious ones, and how much memory reading takes."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import karlo
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unclip.convert.files import in_file, in_folder, named, tree
from unclip.convert.pickles import Foreign
from unclip.convert.table import gather, row


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


STATE = {"a.weight": random(4, 3), "a.bias": random(4, seed=1), "n": torch.tensor(7), "none": torch.zeros(0, 2)}


def read(lazies: dict[str, Any]) -> dict[str, Tensor]:
    return {name: lazy.read(lazy.dtype) for name, lazy in lazies.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


# What is read


def test_every_kind_of_file(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    torch.save(STATE, tmp_path / "x.bin")
    torch.save(OrderedDict(STATE), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("x.safetensors", "x.bin", "old.bin"):
        lazies = in_file(tmp_path / name)
        assert {n: (lazy.shape, lazy.dtype) for n, lazy in lazies.items()} == {
            n: (tuple(x.shape), x.dtype) for n, x in STATE.items()
        }
        assert same(read(lazies), STATE)
        assert lazies["a.bias"].read(torch.bfloat16).equal(STATE["a.bias"].bfloat16())
        weight = lazies["a.weight"].read(torch.float32)
        weight.zero_()
        assert lazies["a.weight"].read(torch.float32).equal(STATE["a.weight"])  # every read is a copy


def test_views_parameters_and_types(tmp_path: Path) -> None:
    base = random(6, 5)
    kinds = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
    state: dict[str, Any] = {str(kind): base.to(kind) for kind in kinds}
    state |= {"part": base[2:4, 1:3], "turned": base.t(), "row": base[3], "number": base[1, 1]}
    torch.save(
        {**state, "parameter": nn.Parameter(base), "nested": {"list": [base[0], (base[1], None, "word", 3)]}}, tmp_path / "x"
    )
    found = read(in_file(tmp_path / "x"))
    expected = {**state, "parameter": base, "nested.list.0": base[0], "nested.list.1.0": base[1]}
    assert same(found, expected) and all(x.is_contiguous() for x in found.values())
    assert found["row"].untyped_storage().nbytes() == 5 * 4  # not the whole that it was a view of


def test_torchscript_is_read_and_not_run(tmp_path: Path) -> None:
    state = {"visual.conv.weight": random(3, 2), "blocks.0.bias": random(3), "blocks.10.bias": random(2), "size": torch.tensor(3)}
    karlo.save_openai(state, tmp_path / "x.pt")
    assert same(read(in_file(tmp_path / "x.pt")), state)
    karlo.save_openai({name: x.half() if x.is_floating_point() else x for name, x in state.items()}, tmp_path / "half.pt")
    assert in_file(tmp_path / "half.pt")["visual.conv.weight"].dtype == torch.float16


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_folders(tmp_path: Path, kind: str, variant: str) -> None:
    def write(name: str, state: dict[str, Tensor]) -> None:
        save_file(state, tmp_path / name) if kind == "safetensors" else torch.save(state, tmp_path / name)

    with pytest.raises(ValueError, match="holds no weights: expected diffusion_pytorch_model.safetensors"):
        in_folder(tmp_path)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    parts = [{"a.weight": STATE["a.weight"]}, {"a.bias": STATE["a.bias"]}]
    names = [f"{stem}{variant}-0000{i}-of-00002.{kind}" for i in (1, 2)]
    for name, part in zip(names, parts):
        write(name, part)
    index = tmp_path / f"{stem}.{kind}.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a.weight": names[0], "a.bias": names[1]}}))
    assert same(read(in_folder(tmp_path)), {**parts[0], **parts[1]})
    for wrong, message in (
        ({"weight_map": {"a.weight": names[1]}}, "says that a.weight is in .*, which does not hold it"),
        ({"weight_map": {"a.weight": "../x"}}, "names files outside its folder"),
        ({"weight_map": {"a.weight": 3}}, "is no index|names files outside"),
        ({"weights": {}}, "is no index of shards"),
        ([1], "is no index of shards"),
        ({"weight_map": {"a.weight": f"lost.{kind}"}}, f"lost.{kind} (is missing|cannot be read)"),
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            in_folder(tmp_path)
    write(f"{stem}{variant}.{kind}", {"single": STATE["a.bias"]})
    assert list(in_folder(tmp_path)) == ["single"]
    save_file({"full": STATE["a.bias"]}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert list(in_folder(tmp_path)) == ["full"]  # safetensors before pickles, full precision before half


# Malicious files


class Bomb:
    """An object whose pickle asks for a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def zipped(pickled: bytes, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3")
    return path


def bombs(mark: Path) -> dict[str, Any]:
    return {
        "os": Bomb(os.system, f"touch {mark}"),
        "exec": Bomb(exec, f"open({str(mark)!r}, 'w')"),
        "open": Bomb(open, str(mark), "w"),
        "popen": Bomb(subprocess.Popen, ["touch", str(mark)]),
        "loads": Bomb(pickle.loads, pickle.dumps(Bomb(os.system, f"touch {mark}"))),
        "getattr": Bomb(getattr, "x", "upper"),
    }


@pytest.mark.parametrize("kind", list(bombs(Path("x"))))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_in_a_pickle_runs(tmp_path: Path, kind: str, protocol: int) -> None:
    mark = tmp_path / "ran"
    bomb = bombs(mark)[kind]
    for place, content in (
        ("root", bomb),
        ("value", {"state_dict": {"a": bomb}}),
        ("key", {"state_dict": {("b", "a"): [bomb]}}),
    ):
        path = zipped(pickle.dumps(content, protocol), tmp_path / f"{place}.ckpt")
        with pytest.raises(ValueError, match="which is no tensor; it was not run|cannot be read as torch weights"):
            in_file(path)
        path.write_bytes(pickle.dumps(content, protocol))  # bare, as before torch 1.6
        with pytest.raises(ValueError, match="cannot be read as torch weights"):
            in_file(path)
    assert not mark.exists()


def test_what_a_trainer_left_beside_the_weights_does_no_harm(tmp_path: Path) -> None:
    """Settings of libraries that are not installed, and worse: read as names, and nobody looks at them."""
    mark = tmp_path / "ran"
    torch.save({"state_dict": STATE, "hyper_parameters": Bomb(os.system, f"touch {mark}")}, tmp_path / "x.ckpt")
    saved = tree(tmp_path / "x.ckpt")
    assert same(read(named(saved["state_dict"], "x")), STATE)
    assert isinstance(saved["hyper_parameters"], Foreign) and saved["hyper_parameters"].name == "system"
    assert not mark.exists()


def test_pickles_cannot_change_what_others_get(tmp_path: Path) -> None:
    """BUILD writes into what a pickle got hold of: here, torch's rebuilding function and OrderedDict."""
    for module, name in (("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"), ("os", "system")):
        build = b"c" + module.encode() + b"\n" + name.encode() + b"\n}(S'__defaults__'\nNS'marked'\nI1\nub."
        path = zipped(build, tmp_path / "x.ckpt")
        try:
            named(tree(path), str(path))
        except ValueError as error:
            assert "no tensor" in str(error) or "cannot be read" in str(error)
    assert not hasattr(OrderedDict, "marked") and not hasattr(Foreign, "marked") and not hasattr(os.system, "marked")
    torch.save(STATE, tmp_path / "x.bin")
    assert same(read(in_file(tmp_path / "x.bin")), STATE)


def test_pickles_that_hold_themselves(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"a": 1}
    loop["self"] = loop
    deep: list[Any] = []
    for _ in range(40):  # 2^40 paths
        deep = [deep, deep]
    for tangle in (loop, deep):
        assert in_file(zipped(pickle.dumps(tangle), tmp_path / "x.ckpt")) == {}


def edited(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of a zip archive with some entries changed or left out."""
    out = path.with_suffix(".edited")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            data = change(name, source.read(name))
            if data is not None:
                target.writestr(name, data)
    return out


def test_damaged_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"a": random(100)}, path)
    whole = path.read_bytes()
    for data in (whole[:-30], whole[: len(whole) // 2], whole[:10], b"", b"PK\x03\x04" + b"x" * 50):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"x.ckpt cannot be read as torch weights .*is it whole\?") as error:
            in_file(path)
        assert "\n" not in str(error.value)
    path.write_bytes(whole)
    for change, message in (
        (lambda n, d: None if n.endswith("data/0") else d, "data/0 is missing or has not the 100 numbers"),
        (lambda n, d: d[:-4] if n.endswith("data/0") else d, "has not the 100 numbers"),
        (lambda n, d: None if n.endswith("data.pkl") else d, "torch did not make it"),
        (lambda n, d: b"big" if n.endswith("byteorder") else d, "in the other order"),
        (lambda n, d: d[:40] if n.endswith("data.pkl") else d, "cannot be read"),
        (lambda n, d: d.replace(b"FloatStorage", b"FloatStorags") if n.endswith("data.pkl") else d, "'FloatStorags'"),
    ):
        with pytest.raises(ValueError, match=message):
            in_file(edited(path, change))
    flipped = bytearray(whole)
    at = whole.index(random(100).numpy().tobytes()) + 8
    flipped[at] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match="cannot be read at .*data/0 .*is it whole"):  # the archive's check sum
        in_file(path)["a"].read(torch.float32)
    with pytest.raises(ValueError, match="lost.bin is missing"):
        in_file(tmp_path / "lost.bin")


def test_tensors_that_reach_out_of_their_storage(tmp_path: Path) -> None:
    class Wide:
        def __reduce__(self) -> Any:
            base = random(4).untyped_storage()
            return torch._utils._rebuild_tensor_v2, (
                torch.storage.TypedStorage(wrap_storage=base, dtype=torch.float32),
                *self.how,
            )

    for how, message in (
        ((0, (5,), (1,), False, OrderedDict()), "ends behind its storage"),
        ((2, (1, 2), (1, 2), False, OrderedDict()), "ends behind its storage"),
        ((-1, (2,), (1,), False, OrderedDict()), "that cannot be"),
        ((0, (2,), (-1,), False, OrderedDict()), "that cannot be"),
        ((0, (2,), (1, 1), False, OrderedDict()), "that cannot be"),
    ):
        wide = Wide()
        wide.how = how  # type: ignore[attr-defined]
        torch.save({"a": wide}, tmp_path / "x.bin")
        with pytest.raises(ValueError, match=message):
            in_file(tmp_path / "x.bin")


# Tables


def test_a_table_lists_all_that_is_wrong(tmp_path: Path) -> None:
    torch.save(
        {"x.0.w": random(4, 3), "x.0.b": random(5), "x.1.w": random(4, 3), "old": random(2), "c": torch.ones(2).long()},
        tmp_path / "x",
    )
    source = in_file(tmp_path / "x")
    table = {"layer.#.weight": row("x.#.w"), "layer.#.bias": row("x.#.b"), "both.*": row("x.0.*", "x.1.*"), "c": row("c")}
    wanted = {"layer.0.weight": random(4, 3), "layer.1.weight": random(4, 3), "both.w": random(8, 3)}
    good = gather(table, wanted, source, "x", ignored=("old", ".b", "c"))
    assert good["both.w"].equal(torch.cat([good["layer.0.weight"], good["layer.1.weight"]]))
    wanted |= {"layer.0.bias": random(4), "layer.1.bias": random(4), "c": random(2), "layer.2.weight": random(4, 3)}
    with pytest.raises(ValueError) as error:
        gather(table, wanted, source, "x")
    assert str(error.value) == (
        "x does not fit its config: 2 missing: x.1.b, x.2.w; 1 unexpected: old; "
        "1 of another shape: x.0.b (5,) (config (4,)); 1 of another type: c (2,) (torch.int64)"
    )


# Memory

MEASURE = """
import gc, sys, torch
from unclip.checkpoint import open_pipeline

def memory(field):
    return int(open("/proc/self/status").read().split(field + ":")[1].split()[0]) * 1024

stored = open_pipeline(sys.argv[1])
stored.parts["decoder"]()  # small, with the imports that any loading brings
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = memory("VmRSS")
part = stored.parts["upsampler_64"]()
weights = sum(x.nbytes for x in part.state_dict().values())
print(weights, memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of memory")
@pytest.mark.parametrize("layout", ["safetensors", "pickles"])
def test_loading_holds_the_weights_once(tmp_path: Path, layout: str) -> None:
    """Peak memory at most 1.15 times the weights, mapped files counted: for 270 MB of an upsampler."""
    folder = karlo.save_diffusers(tmp_path / "x")
    for i, name in enumerate(("super_res_first", "super_res_last")):
        (path,) = (folder / name).glob("*.safetensors")
        path.unlink()
        model = karlo.super_res(i, levels=(96, 192, 384), depth=2)
        model.save_pretrained(folder / name, safe_serialization=layout == "safetensors")
        del model
    command = [sys.executable, "-c", MEASURE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    weights, peak = map(int, done.stdout.split())
    assert weights > 150e6 and 0.9 * weights < peak < 1.15 * weights, (weights, peak)


def test_legacy_pickles_are_read_by_torch(tmp_path: Path) -> None:
    """Before torch 1.6: refused or read by torch's own safe reader, never by pickle."""
    buffer = io.BytesIO()
    torch.save({"state_dict": STATE}, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "x.ckpt").write_bytes(buffer.getvalue())
    assert same(read(named(tree(tmp_path / "x.ckpt")["state_dict"], "x")), STATE)

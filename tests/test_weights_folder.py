"""The weights in a folder: files and shards, variants of which none is guessed, prefixes, and how much memory reading takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import karlo
import pytest
import torch
from safetensors.torch import save_file
from tensors import STATE, random, read, same
from torch import Tensor

from unclip.weights import find_weights, in_file, in_folder


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
        ([1], "index.*must hold an object, not a list"),
        ({"weight_map": {}}, "is no index of shards"),
        ({"weight_map": {"a.weight": f"lost.{kind}"}}, f"lost.{kind} (is missing|cannot be read)"),
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            in_folder(tmp_path)
    index.unlink()
    with pytest.raises(ValueError, match=f"holds no weights: .*their index; there are {names[0]}, {names[1]}"):
        in_folder(tmp_path)
    write(f"{stem}{variant}.{kind}", {"single": STATE["a.bias"]})
    assert list(in_folder(tmp_path)) == ["single"]


SAFE, HALF, SHARDED = "model.safetensors", "model.fp16.safetensors", "model.safetensors.index.json"


def weights(folder: Path, *names: str) -> Path:
    """Files of weights, of which each holds a tensor that has the file's name."""
    folder.mkdir(exist_ok=True)
    for name in names:
        if name.endswith(".bin"):
            torch.save({name: random(2)}, folder / name)
        elif name.endswith(".json"):
            shard = f"{name.partition('.')[0]}-00001-of-00001.safetensors"
            save_file({name: random(2)}, folder / shard)
            (folder / name).write_text(json.dumps({"weight_map": {name: shard}}))
        else:
            save_file({name: random(2)}, folder / name)
    return folder


@pytest.mark.parametrize(
    ("names", "variant", "taken"),
    [
        ([SAFE], None, SAFE),
        (["model.bf16.safetensors"], None, "model.bf16.safetensors"),
        (["diffusion_pytorch_model.non_ema.safetensors"], None, "diffusion_pytorch_model.non_ema.safetensors"),
        (["pytorch_model.non_ema.bin"], None, "pytorch_model.non_ema.bin"),
        ([SAFE, "pytorch_model.bin", "flax_model.msgpack"], None, SAFE),  # the same weights, safer
        ([SAFE, HALF], "fp16", HALF),
        ([SAFE, HALF], "plain", SAFE),
        ([SAFE, HALF], SAFE, SAFE),
        ([SAFE, SHARDED], SHARDED, SHARDED),
        ([SAFE, "pytorch_model.fp16.bin"], "fp16", "pytorch_model.fp16.bin"),
        (["model.safetensors.index.fp16.json", SAFE], "fp16", "model.safetensors.index.fp16.json"),
        (["model.fp16.safetensors.index.json", SAFE], "fp16", "model.fp16.safetensors.index.json"),
    ],
)
def test_the_weights_that_are_meant(tmp_path: Path, names: list[str], variant: str | None, taken: str) -> None:
    assert list(in_folder(weights(tmp_path, *names), variant)) == [taken]


@pytest.mark.parametrize(
    ("names", "variant", "told"),
    [
        ([SAFE, HALF], None, r"several weights, model.fp16.safetensors, model.safetensors: say which \(--variant fp16 or plain;"),
        ([SAFE, SHARDED], None, rf"several weights, {SAFE}, {SHARDED}: say which \(--variant NAME-OF-THE-FILE; in Python"),
        ([SAFE, SHARDED], "plain", f"several weights, {SAFE}, {SHARDED}"),
        ([SAFE, "diffusion_pytorch_model.safetensors"], None, f"several weights, diffusion_pytorch_model.safetensors, {SAFE}"),
        (["pytorch_model.bin", "pytorch_model.non_ema.bin"], None, "several weights, pytorch_model.bin, pytorch_model.non_em"),
        ([SAFE, HALF], "bf16", f"has no weights 'bf16'; it has {HALF}, {SAFE}"),
        (["other.safetensors"], None, "holds no weights: .*; there are other.safetensors"),
    ],
)
def test_weights_are_not_guessed(tmp_path: Path, names: list[str], variant: str | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        in_folder(weights(tmp_path, *names), variant)


def test_the_only_weights_are_taken_with_a_warning_where_others_were_asked_for(tmp_path: Path) -> None:
    """As with a text encoder, which has no averaged weights, in a pipeline whose decoder has both."""
    with pytest.warns(UserWarning, match=f"has no weights 'fp16': taking {SAFE}, the only ones there"):
        assert find_weights(weights(tmp_path, SAFE), "fp16").name == SAFE


@pytest.mark.parametrize("before", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_prefixes_of_compiling_and_parallel_training(tmp_path: Path, before: str) -> None:
    inner = {f"{before}{name}".replace("a.", "a._orig_mod."): x for name, x in STATE.items()}
    save_file(inner, tmp_path / SAFE)
    assert same(read(in_folder(tmp_path)), STATE)


def test_prefixes_that_are_names_stay(tmp_path: Path) -> None:
    state = {"module.a": random(2), "b.module.c": random(2), "x_orig_mod.d": random(2)}
    save_file(state, tmp_path / SAFE)
    assert same(read(in_folder(tmp_path)), state)
    save_file({"a._orig_mod.b": random(2), "a.b": random(2)}, tmp_path / SAFE)
    with pytest.raises(ValueError, match="are called the same without the prefixes"):
        in_folder(tmp_path)


# Memory

MEASURE = """
import gc, sys, torch
from unclip.checkpoint import open_pipeline

def memory(field):
    return int(open("/proc/self/status").read().split(field + ":")[1].split()[0]) * 1024

stored = open_pipeline(sys.argv[1])
stored.components["decoder"]()  # small, with the imports that any loading brings
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = memory("VmRSS")
part = stored.components["upsampler_64"]()
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

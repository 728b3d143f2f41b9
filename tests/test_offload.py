"""One stage's weights in memory at a time: the same pictures to the last bit, whatever the weights came from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import karlo
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from unclip import Inversion, Sampling, UnCLIP
from unclip.checkpoint import Component, load_component
from unclip.cli import app
from unclip.convert import convert
from unclip.offload import Offload
from unclip.randomness import Noise

CAPTION = "two dogs"
WAY = Inversion(steps=4, refine=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("offload")
    tiny.pipeline().save_pretrained(place / "tiny")
    karlo.save_diffusers(place / "karlo", "both")
    convert(place / "karlo", place / "converted")
    return place


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def short(pipe: UnCLIP) -> dict[str, Any]:
    return {
        "prior": Sampling(sampler="ddpm", steps=2, guidance=2.0),
        "decoder": Sampling(sampler="ddim", steps=2, guidance=2.0),
        "upsamplers": [Sampling(sampler="ddpm", steps=2)] * len(pipe.upsamplers),
    }


def held(pipe: UnCLIP) -> list[str]:
    """The parts that have weights; none has some of them, but for networks that take turns: one of those is there."""
    found = []
    for name, part in pipe.components.items():
        there = {key for key, p in part.named_parameters() if not p.is_meta}
        found += [name] if there else []
        if there and pipe.offload is not None:
            missing = {turn for turn in part.offload_groups if not any(key.startswith(turn) for key in there)}
            assert len(missing) == max(0, len(part.offload_groups) - 1)
            expected = {key for key, _ in part.named_parameters() if not key.startswith(tuple(missing))}
            assert there == expected
    return found


def picture() -> Tensor:
    return Noise.of(3).uniform((3, 24, 24)) * 1.6 - 0.8


@pytest.mark.parametrize("source", ["tiny", "karlo", "converted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_pictures(source: str, dtype: torch.dtype) -> None:
    whole, pipe = UnCLIP.from_pretrained(source).to(dtype=dtype), UnCLIP.from_pretrained(source, offload=True).to(dtype=dtype)
    assert (pipe.device, pipe.sizes, pipe.clip_identity) == (whole.device, whole.sizes, whole.clip_identity)
    assert pipe.models() == whole.models()
    seen: list[list[str]] = []
    for part in pipe.components.values():
        part.network.register_forward_hook(lambda *_: seen.append(held(pipe)))
    for seed in (0, 1):  # once more, after all has been let go of
        made, expected = (p.generate([CAPTION, ""], seed=seed, **short(p)) for p in (pipe, whole))
        assert torch.equal(made.images, expected.images) and torch.equal(made.latent.image_embed, expected.latent.image_embed)
    stages = ["prior", "decoder", *(f"upsampler_{size}" for size in pipe.sizes[1:])]
    assert [names for i, names in enumerate(seen) if i == 0 or names != seen[i - 1]] == [[stage] for stage in stages * 2]
    assert held(pipe) == stages[-1:] and held(whole) == list(whole.components)


@pytest.mark.parametrize("source", ["tiny", "karlo"])
def test_the_same_edits(source: str) -> None:
    whole, pipe = UnCLIP.from_pretrained(source), UnCLIP.from_pretrained(source, offload=True)
    latent = whole.invert(picture(), WAY)
    again = pipe.invert(picture(), WAY)
    assert torch.equal(latent.x_t, again.x_t) and latent.models == again.models
    edits: list[Callable[[UnCLIP], Tensor]] = [
        lambda p: p.vary(latent, n=2, size=16).images,
        lambda p: p.reconstruct(picture(), size=16, inversion=WAY).images,
        lambda p: p.interpolate([picture(), CAPTION], steps=2, size=16, inversion=WAY).images,
        lambda p: p.text_diff(again, "a cat", steps=2).images,
    ]
    for edit in edits:
        assert torch.equal(edit(pipe), edit(whole)) and len(held(pipe)) == 1


def test_one_reading_for_all_chunks(place: Path) -> None:
    read: list[str] = []
    keeper = Offload()

    def loader(name: str, kind: str) -> Callable[[], Component[Any]]:
        def load() -> Component[Any]:
            assert keeper.resident is None  # what was there is gone before the next is read
            read.append(name)
            return load_component(place / "tiny" / name, kind)

        return load

    kinds = {"clip": "CLIP", "prior": "DiffusionPrior", "decoder": "Decoder", "upsampler_64": "Upsampler"}
    parts: dict[str, Any] = {name: keeper.add(loader(name, kind)) for name, kind in kinds.items()}
    pipe = UnCLIP(parts["clip"], parts["prior"], parts["decoder"], [parts["upsampler_64"]])
    assert pipe.offload is keeper and read == [*kinds, "clip"]
    read.clear()
    pipe.generate([CAPTION], n=130, size=16, **short(pipe))  # three chunks of the prior
    assert read == ["prior", "decoder"]  # CLIP was there
    pipe.generate([CAPTION], n=70, size=64, **short(pipe))  # two of the upsampler
    assert read == ["prior", "decoder", "clip", "prior", "decoder", "upsampler_64"]
    keeper.release()
    assert held(pipe) == [] and keeper.resident is None
    keeper.release()


def test_what_was_measured_stays() -> None:
    pipe = UnCLIP.from_pretrained("tiny", offload=True)
    prior: Any = pipe.prior
    text = pipe.clip.encode_text([CAPTION, "", "x"])
    prior.measure_variance(Noise.of(1, range(3)).normal((tiny.EMBED,)), text, 3, Noise.of(0, range(3)))
    analytic = Sampling(sampler="ddpm", steps=3, variance="analytic")
    first = pipe.generate(CAPTION, size=16, prior=analytic)
    assert torch.equal(pipe.generate(CAPTION, size=16, prior=analytic).images, first.images)


def test_other_priors_saving_and_moving(tmp_path: Path) -> None:
    whole, pipe = UnCLIP.from_pretrained("karlo"), UnCLIP.from_pretrained("karlo", offload=True)
    other = pipe.with_prior("converted")
    expected = whole.generate(CAPTION, size=16, **short(whole))
    assert torch.equal(other.generate(CAPTION, size=16, **short(other)).images, expected.images)
    assert len(held(other)) == 1 and other.prior.offload is pipe.offload
    pipe.save_pretrained(tmp_path / "saved")
    saved = UnCLIP.from_pretrained(tmp_path / "saved")
    for name, part in saved.components.items():
        state = whole.components[name].state_dict()
        assert all(torch.equal(x.nan_to_num(), state[key].nan_to_num()) for key, x in part.state_dict().items())
    assert len(held(pipe)) == 1
    pipe.offload.to(torch.device("meta"))  # any other device
    assert held(pipe) == [] and pipe.offload.device.type == "meta"
    pipe.to("cpu")
    assert pipe.offload.device.type == "cpu"
    assert torch.equal(pipe.generate(CAPTION, size=16, **short(pipe)).images, expected.images)


def test_a_file_that_is_gone_or_broken(tmp_path: Path) -> None:
    tiny.pipeline().save_pretrained(tmp_path / "model")
    pipe = UnCLIP.from_pretrained(tmp_path / "model", offload=True)
    (tmp_path / "model" / "decoder" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="decoder.model.safetensors is missing"):
        pipe.generate(CAPTION, size=16)
    assert held(pipe) == []
    with pytest.raises(ValueError, match="decoder.model.safetensors is missing"):  # before anything is drawn
        UnCLIP.from_pretrained(tmp_path / "model", offload=True)


def test_the_commands(tmp_path: Path) -> None:
    def call(*arguments: str, model: str = "karlo") -> bytes:
        done = CliRunner().invoke(app, [*arguments, "--model", model])
        assert done.exit_code == 0 and done.stderr == "", done.output + str(done.exception)
        with Image.open(done.stdout.splitlines()[0]) as made:
            return made.tobytes()

    few = ("generate", CAPTION, "--steps", "prior=2,decoder=2,upsampler_64=2", "-o", "x.png", "--overwrite")
    assert call(*few, "--offload") == call(*few)
    rough = ("--inversion-steps", "4", "--refine", "0", "--size", "16", "-o", "y.png", "--overwrite")
    for words in ("vary x.png --n 2", "interpolate x.png x.png --steps 2", "diff x.png --to cat", "reconstruct x.png"):
        assert call(*words.split(), *rough, "--offload") == call(*words.split(), *rough)
    done = CliRunner().invoke(app, ["invert", "x.png", "-o", "z.safetensors", "--model", "karlo", *rough[:4], "--offload"])
    assert done.exit_code == 0, done.output
    for verb in ("generate", "vary", "interpolate", "diff", "reconstruct", "invert"):
        assert "--offload" in CliRunner().invoke(app, [verb, "--help"]).stdout


# Memory

MEASURE = """
import sys, torch
from unclip import Sampling, UnCLIP

def memory(field):
    return int(open("/proc/self/status").read().split(field + ":")[1].split()[0]) * 1024

one = Sampling(sampler="ddim", steps=1)
warm = UnCLIP.from_pretrained(sys.argv[1]).generate("x", prior=one, decoder=one, upsamplers=[one])  # imports and buffers
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = memory("VmRSS")
pipe = UnCLIP.from_pretrained(sys.argv[2], offload=sys.argv[3] == "offload")
for _ in range(2):
    pipe.generate("x", prior=one, decoder=one, upsamplers=[one])
sizes = [sum(p.numel() * 4 for p in part.parameters()) for part in pipe.components.values()]
print(sum(sizes), max(sizes), memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of memory")
def test_peak_memory(tmp_path: Path) -> None:
    """About the largest part with it, about all parts without, for 4 parts of 60 to 150 MB."""
    folder = karlo.save_diffusers(tmp_path / "large", "both")
    karlo.prior(layers=12, heads=8).save_pretrained(folder / "prior")
    unet, projections = karlo.decoder(levels=(128, 256), depth=2)
    unet.register_to_config(sample_size=karlo.SIZE)
    unet.save_pretrained(folder / "decoder")
    projections.save_pretrained(folder / "text_proj")
    for i, name in enumerate(("super_res_first", "super_res_last")):
        karlo.super_res(i, levels=(96, 192), depth=2).save_pretrained(folder / name)
    peaks: dict[str, int] = {}
    for kind in ("whole", "offload"):
        command = [sys.executable, "-c", MEASURE, "karlo", str(folder), kind]
        root = str(Path(__file__).parents[1])
        done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": root, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        total, largest, peaks[kind] = map(int, done.stdout.split())
    assert largest < 0.55 * total, (largest, total)
    assert peaks["offload"] < 1.15 * largest + 40e6 and peaks["whole"] > total, (largest, total, peaks)

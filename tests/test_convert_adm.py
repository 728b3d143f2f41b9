"""ADM's public files: names, sizes and counts of all fifteen, parity with networks written anew, and cascades of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import adm
import pytest
import torch
from torch import Tensor

import unclip
from unclip import Cascade
from unclip.building import sketch
from unclip.checkpoint import open_pipeline
from unclip.convert import adm as converter
from unclip.convert import convert
from unclip.convert.recipe import Recipe
from unclip.convert.table import gather
from unclip.types import Cond
from unclip.weights import Lazy

DIFFUSION, CLASSIFIERS = [n for n in adm.FILES if not adm.FILES[n].pool], [n for n in adm.FILES if adm.FILES[n].pool]
WHOLE = ("64x64_diffusion.pt", "64_256_upsampler.pt", "64x64_classifier.pt")


def lazies(tensors: Mapping[str, Tensor]) -> dict[str, Lazy]:
    return {name: Lazy(tuple(x.shape), x.dtype, lambda dtype, x=x: x.detach().clone().to(dtype)) for name, x in tensors.items()}


def recipe(name: str, tensors: Mapping[str, Tensor]) -> Recipe:
    make: Any = next(
        make
        for table, make in (
            (converter.DECODERS, converter.decoder_recipe),
            (converter.UPSAMPLERS, converter.upsampler_recipe),
            (converter.CLASSIFIERS, converter.classifier_recipe),
        )
        if name in table
    )
    return make(name, lazies(tensors), name)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, theirs: Tensor) -> None:
    scale = float(theirs.double().square().mean().sqrt())
    assert ours.shape == theirs.shape and scale > 0.05
    assert float((ours - theirs).abs().max()) <= 1e-5 * scale


def test_the_table_has_every_public_file() -> None:
    assert sorted(adm.FILES) == sorted([*converter.DECODERS, *converter.UPSAMPLERS, *converter.CLASSIFIERS])


@pytest.mark.parametrize("name", adm.FILES)
def test_full_size_has_the_published_tensors_and_parameters(name: str) -> None:
    """On the meta device: every name and shape of the file, and as many parameters to the unit."""
    theirs = adm.full_size(adm.FILES[name])
    assert (len(theirs), sum(x.numel() for x in theirs.values())) == adm.FILES[name].counts
    entry = recipe(name, theirs)
    ours = sketch(entry.part, entry.config)
    assert sum(p.numel() for p in ours.parameters()) == adm.FILES[name].counts[1]
    made = gather(entry.table, ours.state_dict(), entry.source, name)  # strict: nothing is missing or left over
    assert {key: x.shape for key, x in made.items()} == {key: x.shape for key, x in ours.state_dict().items()}


@torch.no_grad()
@pytest.mark.parametrize("name", sorted({adm.tiny(n): n for n in DIFFUSION}.values()))
def test_diffusion_models_are_the_originals(name: str) -> None:
    flags, theirs = adm.tiny(name), adm.network(name)
    network = recipe(name, theirs.state_dict()).make().network
    size, t = 32, torch.tensor([1, 250, 1000])  # convolutions and attention go with any size
    x, labels = random(3, 3, size, size), None if flags.classes is None else torch.tensor([0, 9, 4])
    if flags.in_channels == 3:
        close(network(x, t, network.encode(Cond(label=labels), 3)), theirs(x, t - 1, labels))
        return
    low = random(3, 3, size // 4, size // 4, seed=1).clamp(-1, 1)
    resized = torch.nn.functional.interpolate(low, size=(size, size), mode="bilinear", align_corners=False)
    close(network(x, t, network.encode(low, Cond(label=labels))), theirs(torch.cat([x, resized], 1), t - 1, labels))


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSIFIERS[:2])
def test_classifiers_are_the_originals(name: str) -> None:
    theirs, size = adm.network(name), adm.FILES[name].size
    classifier = recipe(name, theirs.state_dict()).make()
    assert (classifier.image_size, classifier.config.classes) == (size, 10)
    x, t = random(2, 3, size, size), torch.tensor([1, 700])
    close(classifier(x, t), theirs(x, t - 1))
    expected = theirs(x, t - 1).log_softmax(1)[torch.arange(2), torch.tensor([3, 7])]
    assert torch.allclose(classifier.log_probability(torch.tensor([3, 7]))(x, t), expected, atol=1e-5)


def test_order_and_heads_matter() -> None:
    """What no tensor tells: under another file's name the same tensors are another network."""
    state = adm.network("64x64_diffusion.pt").state_dict()
    x, t, cond = random(1, 3, 16, 16), torch.tensor([500]), Cond(label=torch.tensor([2]))
    outputs = []
    for name in ("64x64_diffusion.pt", "128x128_diffusion.pt", "256x256_diffusion.pt"):
        network = recipe(name, state).make().network
        with torch.no_grad():
            outputs.append(network(x, t, network.encode(cond, 1)))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert float((outputs[a] - outputs[b]).abs().max()) > 1e-3


def test_settings_are_the_published_ones() -> None:
    configs = {name: recipe(name, adm.full_size(adm.FILES[name])).config for name in adm.FILES}
    assert {name for name, config in configs.items() if config.schedule.name == "cosine"} == {WHOLE[0], WHOLE[2]}
    assert {config.first_timestep for config in configs.values()} == {0}
    assert {configs[n].image_size for n in configs if hasattr(configs[n], "image_size")} == {64, 128, 256, 512}
    large = configs["512x512_diffusion.pt"].unet
    assert (large.channels, large.multiple, large.emb, large.sinusoid) == (128, (1, 2, 2, 4, 4, 8, 8), 1024, 256)
    for name in DIFFUSION:
        sampling = configs[name].sampling
        assert (sampling.sampler, sampling.steps, sampling.variance, sampling.threshold) == ("ddpm", 250, "learned", "static")


def test_files_in_a_folder_are_a_cascade(tmp_path: Path) -> None:
    folder = adm.save(tmp_path / "adm", *WHOLE)
    pipe = unclip.from_pretrained(folder, dtype="bfloat16")
    assert isinstance(pipe, Cascade) and pipe.sizes == (64, 256) and pipe.decoder.takes == ("label",)
    types = {name: next(c.parameters()).dtype for name, c in pipe.components.items()}
    assert types == {"decoder": torch.bfloat16, "upsampler_256": torch.bfloat16, "guide": torch.float32}
    convert(folder, tmp_path / "ours")
    again = open_pipeline(tmp_path / "ours", dtype="bfloat16")
    assert again.kind == "Cascade" and again.provenance["files"] == ", ".join((WHOLE[0], WHOLE[2], WHOLE[1]))
    for name, load in again.components.items():
        state, expected = load().state_dict(), pipe.components[name].state_dict()
        assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


def test_one_file_alone_is_a_cascade_and_others_of_its_kind_are_told_apart(tmp_path: Path) -> None:
    folder = adm.save(tmp_path / "alone", "256x256_diffusion_uncond.pt", "256x256_classifier.pt")
    stored = open_pipeline(folder)
    assert list(stored.components) == ["decoder", "guide"]
    assert stored.components["guide"]().scale == 10.0  # an unconditional model wants more of it
    adm.save(folder, "lsun_cat.pt")
    with pytest.raises(ValueError, match=r"holds 256x256_diffusion_uncond.pt, lsun_cat.pt \(variant=FILE takes one\)"):
        open_pipeline(folder)
    assert list(open_pipeline(folder, variant="lsun_cat.pt").components) == ["decoder"]  # ImageNet's classifier knows no cats


def test_what_is_no_whole_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has no diffusion model; one of 64x64_diffusion.pt, "):
        open_pipeline(adm.save(tmp_path / "half", "64_256_upsampler.pt"))
    for wrong, named, problem in (
        ("64_256_upsampler.pt", "64x64_diffusion.pt", "6 channels come in and 6 go out, where 3 and 6 are expected"),
        ("64x64_classifier.pt", "64x64_diffusion.pt", "input_blocks and 0 output_blocks"),
    ):
        folder = adm.save(tmp_path / wrong, wrong)
        (folder / wrong).rename(folder / named)
        with pytest.raises(ValueError, match=problem):
            open_pipeline(folder)
    folder = adm.save(tmp_path / "cut", "64x64_diffusion.pt", "64x64_classifier.pt")
    state = torch.load(folder / "64x64_classifier.pt")
    torch.save({key: x for key, x in state.items() if "out.2.c_proj" not in key}, folder / "64x64_classifier.pt")
    with pytest.raises(ValueError, match="has no attention pool"):
        open_pipeline(folder)
    state.pop("middle_block.0.in_layers.2.bias")
    torch.save(state, folder / "64x64_classifier.pt")
    with pytest.raises(ValueError, match="1 missing: middle_block.0.in_layers.2.bias"):
        open_pipeline(folder).components["guide"]()

"""Checkpoints: there and back bit by bit, strict on the way in, whole or not at all on the way out."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from test_pipelines_generation import full_disk

from decoder import Decoder
from prior import (
    ARNetworkConfig,
    ARPrior,
    ARPriorConfig,
    ContrastivePrior,
    ContrastivePriorConfig,
    DiffusionPrior,
    LinearPrior,
    LinearPriorConfig,
    QuantizerConfig,
)
from unclip import checkpoint
from unclip.checkpoint import Component, Index, fingerprint, load_component, seal
from unclip.clip import CLIP
from unclip.pipelines.unclip import UnCLIP
from upsamplers import Upsampler


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    tiny.pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the tree in place, or return another one."""
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(change(tree) or tree))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    seal(path.parent)


# There and back


@pytest.mark.parametrize(
    ("kind", "build"), [(CLIP, tiny.clip), (DiffusionPrior, tiny.prior), (Decoder, tiny.decoder), (Upsampler, tiny.upsampler)]
)
def test_a_part_comes_back_as_it_was(kind: Any, build: Callable[[], Any], tmp_path: Path) -> None:
    part = build()
    part.save_pretrained(tmp_path / "a" / "part")
    assert files(tmp_path) == ["a/part/config.json", "a/part/model.safetensors"]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = kind.from_pretrained(tmp_path / "a" / "part")
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.config == part.record() and loaded.device == part.device and not loaded.training
    state = part.state_dict()
    assert {name: tensor.dtype for name, tensor in loaded.state_dict().items()} == {n: t.dtype for n, t in state.items()}
    assert all(torch.equal(tensor, state[name]) or tensor.isnan().all() for name, tensor in loaded.state_dict().items())
    assert all(p.requires_grad for p in loaded.parameters()) and not any(b.is_meta for b in loaded.buffers())
    assert fingerprint(loaded) == fingerprint(part)


def test_a_pipeline_comes_back_as_it_was(saved: Path, copy: Path) -> None:
    names = ["clip", "decoder", "prior", "upsampler_256", "upsampler_64"]
    expected = [f"{name}/{file}" for name in names for file in ("config.json", "model.safetensors")]
    assert files(saved) == sorted([*expected, "provenance.json", "unclip.json"])
    pipe, loaded = tiny.pipeline(), UnCLIP.from_pretrained(copy)
    assert (loaded.name, loaded.candidates, loaded.provenance) == ("tiny", 2, pipe.provenance)
    assert loaded.clip_identity == pipe.clip_identity and list(loaded.components) == list(pipe.components)
    a = pipe.generate("a red heart", size=64)
    shutil.rmtree(copy)  # nothing is read later
    b = loaded.generate("a red heart", size=64)
    assert torch.equal(a.images, b.images) and a.latent.models == b.latent.models


def test_half_precision(saved: Path, tmp_path: Path) -> None:
    pipe = UnCLIP.from_pretrained(saved)
    pipe.save_pretrained(tmp_path / "half", torch.float16)
    weights = tmp_path / "half" / "decoder" / "model.safetensors"
    assert os.path.getsize(weights) < 0.6 * os.path.getsize(saved / "decoder" / "model.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}
    assert load_file(tmp_path / "half" / "prior" / "model.safetensors")["scaling.norm"].dtype == torch.float32  # a statistic
    half = UnCLIP.from_pretrained(tmp_path / "half")
    for name, tensor in half.decoder.state_dict().items():
        assert torch.equal(tensor, pipe.decoder.state_dict()[name].half().float())
    assert half.decoder.state_dict()[name].dtype == torch.float32
    assert half.generate("", size=16).latent.models == pipe.generate("", size=16).latent.models  # still the same model
    half.save_pretrained(tmp_path / "again")
    again = UnCLIP.from_pretrained(tmp_path / "again")
    assert torch.equal(again.generate("two dogs", size=16).images, half.generate("two dogs", size=16).images)


def test_loaded_parts_remember_their_clip(saved: Path) -> None:
    pipe = UnCLIP.from_pretrained(saved)
    UnCLIP(tiny.clip(), pipe.prior, tiny.decoder())
    for changes in ({"prior": pipe.prior}, {"decoder": pipe.decoder}):
        with pytest.raises(ValueError, match="another CLIP"):
            UnCLIP(**{**tiny.parts(), "clip": tiny.clip(seed=9), **changes})


def test_fingerprints_tell_models_apart() -> None:
    decoder = tiny.decoder()
    mark = fingerprint(decoder)
    assert mark == fingerprint(tiny.decoder()) and len({mark, fingerprint(tiny.decoder(text=False)), fingerprint(object())}) == 3
    assert mark == fingerprint(tiny.decoder(sampling=decoder.config.sampling.replace(steps=9)))  # how it is used
    assert mark != fingerprint(tiny.decoder(predicts="eps"))
    with torch.no_grad():
        decoder.network.unet.output.bias[0] += 0.1
    assert mark != fingerprint(decoder)


class MyPrior(DiffusionPrior):
    """A class from outside."""


def test_classes_from_outside_are_passed(tmp_path: Path) -> None:
    mine = MyPrior(tiny.prior().config).eval()
    tiny.pipeline(prior=mine).save_pretrained(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"knows no component 'MyPrior': .* classes=\{'MyPrior': ...\}"):
        UnCLIP.from_pretrained(tmp_path / "mine")
    loaded = UnCLIP.from_pretrained(tmp_path / "mine", classes={"MyPrior": MyPrior})
    assert type(loaded.prior) is MyPrior and type(MyPrior.from_pretrained(tmp_path / "mine" / "prior")) is MyPrior
    foreign = tiny.pipeline(prior=tiny.ForeignPrior())
    with pytest.raises(ValueError, match="the prior, a ForeignPrior, cannot be saved"):
        foreign.save_pretrained(tmp_path / "foreign")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


# On the way in

WEIGHTS, CONFIG = "decoder/model.safetensors", "decoder/config.json"
SOME = "network.unet.output.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(SOME), rf"{WEIGHTS} does not fit its config: 1 missing: {SOME}$"),
        (lambda t: t.update(extra=torch.zeros(2)), "1 unexpected: extra$"),
        (lambda t: t.update({f"x{i}": torch.zeros(1) for i in range(11)}), "11 unexpected: x0, .* and 3 more$"),
        (lambda t: t.update({SOME: torch.zeros(7)}), rf"1 of another shape: {SOME} \(file \(7,\), config \(48,\)\)$"),
        (lambda t: t.update({SOME: t[SOME].long()}), r"1 of another type: .*\(file torch.int64, config torch.float32\)$"),
        (lambda t: t[SOME].fill_(float("nan")), f"holds NaN or infinite weights in {SOME}"),
        (lambda t: t[SOME].fill_(float("-inf")), "holds NaN or infinite weights"),
        (lambda t: t.clear(), "does not fit its config: .* missing"),
    ],
)
def test_tensors_must_fit(copy: Path, change: Callable[[Any], Any], message: str) -> None:
    edit_tensors(copy / WEIGHTS, change)
    with pytest.raises(ValueError, match=message) as error:
        UnCLIP.from_pretrained(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            CONFIG,
            lambda c: c["config"].update(imagesize=3),
            r"decoder/config.json .*`imagesize`.*DecoderConfig has image_size, unet",
        ),
        (CONFIG, lambda c: c["config"]["unet"].update(width=3), r"`width`.*\$\.unet.*UNetConfig has channels"),
        (CONFIG, lambda c: c["config"].pop("unet") and None, "missing required field `unet`"),
        (CONFIG, lambda c: c["config"].update(image_size="16"), r"int.*str.*\$\.image_size"),
        (CONFIG, lambda c: c["config"]["unet"].update(channels=33), "channels is 33"),
        (CONFIG, lambda c: c["config"]["unet"].update(channels=64), "does not fit its config: .* of another shape"),
        (CONFIG, lambda c: c.update({"class": "Encoder"}), "describes the class 'Encoder'; expected 'Decoder'"),
        (CONFIG, lambda c: c.pop("class") and None, "missing required field `class`"),
        (CONFIG, lambda c: c.update(more=1), "unknown field `more`"),
        (CONFIG, lambda c: [c], "Expected `object`"),
        ("unclip.json", lambda i: i["parts"].update(decoder="Sampling"), "knows no component 'Sampling'"),
        ("unclip.json", lambda i: i["parts"].update(decoder="os.system"), "knows no component 'os.system'"),
        ("unclip.json", lambda i: i["parts"].update(decoder="Upsampler"), "describes the class 'Decoder'; expected 'Upsampler'"),
        ("unclip.json", lambda i: i["parts"].pop("decoder") and None, "this one has no decoder"),
        ("unclip.json", lambda i: i["parts"].update({"../x": "Decoder"}), "unknown component '../x'"),
        (
            "unclip.json",
            lambda i: i["parts"].update(upsampler_99="Upsampler"),
            "upsampler_99 holds no component: config.json is missing",
        ),
        ("unclip.json", lambda i: i.update(candidates=0), "at least one embedding"),
        ("unclip.json", lambda i: i.pop("clip_identity") and None, "clip_identity"),
        ("unclip.json", lambda i: i["clip_identity"].update(captions="x"), r"\$\.clip_identity"),
        ("unclip.json", lambda i: i["clip_identity"].pop("captions") and None, "has no field 'captions'"),
        ("unclip.json", lambda i: i["clip_identity"]["captions"][0].reverse(), "another CLIP"),
        ("unclip.json", lambda i: i["clip_identity"].update(embed_dim=99), "another CLIP: expected embed_dim 99, given 12"),
        ("provenance.json", lambda p: ["x"], "must hold an object, not a list"),
    ],
)
def test_json_must_fit(copy: Path, file: str, change: Callable[[Any], Any], message: str) -> None:
    edit(copy / file, change)
    with pytest.raises(ValueError, match=message) as error:
        UnCLIP.from_pretrained(copy)
    assert "\n" not in str(error.value)


def test_files_that_are_damaged_or_missing(copy: Path) -> None:
    whole = (copy / WEIGHTS).read_bytes()

    def check(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            UnCLIP.from_pretrained(copy)

    for data in (whole[:-4], whole[:100], b"", b"\xff" * 64):
        (copy / WEIGHTS).write_bytes(data)
        check(rf"{WEIGHTS} cannot be read as safetensors .*: is it whole\?")
    (copy / WEIGHTS).write_bytes(pickle.dumps({SOME: torch.zeros(48)}))
    check("cannot be read as safetensors")
    (copy / WEIGHTS).rename(copy / "decoder" / "pytorch_model.bin")
    check(f"{WEIGHTS} is missing")
    for name in (CONFIG, "unclip.json", "provenance.json"):
        text = (copy / name).read_text()
        for damage in (text[:-9], "", '{"class": "\\ud8'):
            (copy / name).write_text(damage)
            check(name)
        (copy / name).write_text(text)
    shutil.rmtree(copy / "prior")
    check("prior holds no component: config.json is missing")
    (copy / "unclip.json").unlink()
    check("copy holds no pipeline: unclip.json is missing")
    shutil.rmtree(copy)
    check("is no folder here|no model")


def test_zero_statistics_are_refused(tmp_path: Path) -> None:
    tiny.pipeline(prior=tiny.prior(scaling="statistics")).save_pretrained(tmp_path / "x")
    with pytest.raises(ValueError, match="embedding statistics are missing .*is zero or not finite"):
        UnCLIP.from_pretrained(tmp_path / "x").generate("two dogs")


def test_upsamplers_keep_their_order_when_a_tool_sorts_the_index(copy: Path) -> None:
    edit(copy / "unclip.json", lambda i: {**i, "parts": dict(sorted(i["parts"].items()))})
    assert list(Index.load(copy / "unclip.json").components)[-2:] == ["upsampler_256", "upsampler_64"]
    loaded, pipe = UnCLIP.from_pretrained(copy), tiny.pipeline()
    for a, b in zip(loaded.upsamplers, pipe.upsamplers):
        assert torch.equal(a.state_dict()["network.unet.output.bias"], b.state_dict()["network.unet.output.bias"])


# Whose weights are they?


def test_weights_that_have_changed_since_they_were_saved(copy: Path) -> None:
    whole = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"{WEIGHTS} is not what was saved: its SHA-256 is .*Get it again; or") as error:
        UnCLIP.from_pretrained(copy)
    assert "\n" not in str(error.value)
    edit(copy / CONFIG, lambda c: c.update(sha256={}))  # as the message says
    assert UnCLIP.from_pretrained(copy).name == "tiny"
    seal(copy / "decoder", "decoder")
    assert UnCLIP.from_pretrained(copy).name == "tiny"
    (copy / WEIGHTS).write_bytes(whole)
    with pytest.raises(ValueError, match="is not what was saved"):
        UnCLIP.from_pretrained(copy)


def test_folders_of_earlier_versions_have_no_checksum(copy: Path) -> None:
    for name in ("clip", "prior", "decoder", "upsampler_64", "upsampler_256"):
        edit(copy / name / "config.json", lambda c: {key: c[key] for key in ("class", "format", "config")})
    assert UnCLIP.from_pretrained(copy).name == "tiny"


def test_seal_keeps_what_else_the_config_says(copy: Path) -> None:
    before = (copy / CONFIG).read_text()
    edit(copy / CONFIG, lambda c: {key: c[key] for key in ("class", "format", "config")})
    seal(copy / "decoder", "decoder")
    assert (copy / CONFIG).read_text() == before
    seal(copy / "decoder")
    assert (copy / CONFIG).read_text() == before


def test_the_same_part_is_written_in_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        tiny.prior().save_pretrained(tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("what", ["", "/model.safetensors", "/config.json"])
def test_upsamplers_that_were_exchanged(copy: Path, what: str) -> None:
    """Both are built alike, so nothing else tells."""
    one, other, aside = (copy / f"{name}{what}" for name in ("upsampler_64", "upsampler_256", "decoder"))
    aside = aside.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    with pytest.raises(ValueError, match="upsampler_64.* (was saved as the upsampler_256 of its pipeline|is not what was saved)"):
        UnCLIP.from_pretrained(copy)


def test_a_part_of_its_own_goes_into_any_place(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "upsampler_64")
    tiny.upsampler(5).save_pretrained(copy / "upsampler_64")
    loaded = UnCLIP.from_pretrained(copy)
    loaded.upsamplers[0].save_pretrained(tmp_path / "alone")  # and one of a pipeline knows nothing of it when it is saved alone
    assert json.loads((tmp_path / "alone" / "config.json").read_text())["component"] is None
    assert torch.equal(loaded.upsamplers[0].network.unet.output.bias, tiny.upsampler(5).network.unet.output.bias)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (CONFIG, lambda c: c["config"].update(image_size=32)),
        ("upsampler_64/config.json", lambda c: c["config"].update(scale=2)),
    ],
)
def test_sizes_are_those_of_the_folders(copy: Path, file: str, change: Callable[[Any], Any]) -> None:
    edit(copy / file, change)
    with pytest.raises(ValueError, match=r"holds upsampler_64, upsampler_256, but its configs make upsampler_(128|32), up"):
        UnCLIP.from_pretrained(copy)


def test_one_of_several_weights(copy: Path, saved: Path) -> None:
    other = tiny.decoder()
    with torch.no_grad():
        other.network.unet.output.bias.fill_(0.5)
    save_file(other.state_dict(), copy / "decoder" / "model.fp16.safetensors")
    with pytest.raises(ValueError, match=r"decoder holds several weights, model.fp16.safetensors, model.safetensors: say which"):
        UnCLIP.from_pretrained(copy)
    with pytest.warns(UserWarning, match="has no weights 'fp16'"):
        half = UnCLIP.from_pretrained(copy, variant="fp16")
    assert half.decoder.network.unet.output.bias.eq(0.5).all()
    plain = UnCLIP.from_pretrained(copy, variant="plain")
    assert fingerprint(plain.decoder) == fingerprint(UnCLIP.from_pretrained(saved).decoder)


def test_shards_with_an_index(copy: Path, saved: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    names = sorted(tensors)
    shards = {f"model-0000{k}-of-00002.safetensors": names[k - 1 :: 2] for k in (1, 2)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, copy / "decoder" / shard)
    places = {name: shard for shard, held in shards.items() for name in held}
    (copy / "decoder" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ValueError, match=r"several weights, model.safetensors, model.safetensors.index.json: say which"):
        UnCLIP.from_pretrained(copy)
    (copy / WEIGHTS).unlink()
    seal(copy / "decoder")
    assert fingerprint(UnCLIP.from_pretrained(copy).decoder) == fingerprint(UnCLIP.from_pretrained(saved).decoder)
    shard = copy / "decoder" / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors is not what was saved"):
        UnCLIP.from_pretrained(copy)
    shard.unlink()
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors is missing"):
        UnCLIP.from_pretrained(copy)


def test_weights_of_compiled_and_parallel_modules(copy: Path, saved: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor], how: Callable[[str], str]) -> None:
        for name in list(tensors):
            tensors[how(name)] = tensors.pop(name)

    edit_tensors(copy / WEIGHTS, lambda t: rename(t, lambda name: f"module._orig_mod.{name}"))
    edit_tensors(copy / "prior/model.safetensors", lambda t: rename(t, lambda name: name.replace(".", "._orig_mod.", 1)))
    loaded, expected = UnCLIP.from_pretrained(copy), UnCLIP.from_pretrained(saved)
    assert all(fingerprint(a) == fingerprint(b) for a, b in zip(loaded.components.values(), expected.components.values()))


# Statistics


def fitted(prior: Any, scaling: str = "std") -> Any:
    embeds = torch.randn(400, tiny.EMBED, generator=torch.Generator().manual_seed(0))
    prior.fit(embeds, embeds + 0.1) if isinstance(prior, (ARPrior, LinearPrior)) else prior.fit(embeds)
    return prior


PRIORS: dict[str, Callable[[], Any]] = {
    "diffusion": lambda: fitted(tiny.prior(scaling="statistics")),
    "linear": lambda: fitted(LinearPrior(LinearPriorConfig(embed_dim=tiny.EMBED))),
    "contrastive": lambda: fitted(ContrastivePrior(ContrastivePriorConfig(network=tiny.prior().config.network))),
    "ar": lambda: fitted(
        ARPrior(
            ARPriorConfig(
                network=ARNetworkConfig(
                    transformer=tiny.prior().config.network.transformer, embed_dim=tiny.EMBED, context=10, states_width=tiny.WIDTH
                ),
                quantizer=QuantizerConfig(dims=4, buckets=16),
            )
        )
    ),
}


@pytest.mark.parametrize(
    ("prior", "name", "change"),
    [
        ("diffusion", "scaling.norm", lambda x: -x),
        ("diffusion", "scaling.std", lambda x: -x),
        ("diffusion", "scaling.std", lambda x: x * float("inf")),
        ("diffusion", "scaling.mean", lambda x: x * float("nan")),
        ("diffusion", "x0_variance", lambda x: torch.full_like(x, -1.0)),
        ("diffusion", "x0_variance", lambda x: torch.full_like(x, float("inf"))),
        ("diffusion", "x0_bound", lambda x: torch.full_like(x, -1.0)),
        ("linear", "scaling.norm", lambda x: -x),
        ("linear", "text_mean", lambda x: x * float("nan")),
        ("contrastive", "scaling.norm", lambda x: -x),
        ("ar", "scaling.norm", lambda x: x * float("nan")),
        ("ar", "quantizer.mean", lambda x: x * float("nan")),
        ("ar", "quantizer.components", lambda x: 2 * x),
        ("ar", "quantizer.components", lambda x: x * float("nan")),
        ("ar", "quantizer.variances", lambda x: -x),
        ("ar", "quantizer.variances", lambda x: x * float("nan")),
        ("ar", "quantizer.buckets.edges", lambda x: x.flip(1)),
        ("ar", "quantizer.buckets.edges", lambda x: x * float("nan")),
        ("ar", "quantizer.buckets.centres", lambda x: x * float("inf")),
        ("ar", "dot.edges", lambda x: x.flip(1)),
        ("ar", "network.frequencies", lambda x: -x),
    ],
)
def test_statistics_that_cannot_be(tmp_path: Path, prior: str, name: str, change: Callable[[Any], Any]) -> None:
    part = PRIORS[prior]()
    part.save_pretrained(tmp_path / "good")
    load_component(tmp_path / "good", type(part))
    edit_tensors(tmp_path / "good" / "model.safetensors", lambda t: t.update({name: change(t[name]).contiguous()}))
    with pytest.raises(ValueError, match=r"good/model.safetensors.*(cannot be: |NaN or infinite weights in )") as error:
        load_component(tmp_path / "good", type(part))
    assert "\n" not in str(error.value)
    value = dict(part.named_buffers())[name]
    value.copy_(change(value))
    if not value.isnan().any():  # which is how statistics that were not measured are saved
        with pytest.raises(ValueError, match="cannot be"):
            part.save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_priors_that_were_not_fitted_are_kept(tmp_path: Path) -> None:
    for name, make in PRIORS.items():
        part = make()
        fresh = type(part)(part.config)
        fresh.save_pretrained(tmp_path / name)
        load_component(tmp_path / name, type(part))


# Sizes that a config names


@pytest.mark.parametrize("size", [10**5, 10**9, 2**40, 2**63, 10**30])
@pytest.mark.parametrize(
    ("file", "path"),
    [
        (CONFIG, "unet.channels"),
        (CONFIG, "unet.depth"),
        (CONFIG, "unet.patch"),
        (CONFIG, "unet.multiple.0"),
        (CONFIG, "unet.embed_channels"),
        (CONFIG, "unet.time_channels"),
        (CONFIG, "schedule.steps"),
        (CONFIG, "sampling.steps"),
        (CONFIG, "inversion.steps"),
        (CONFIG, "inversion.refine"),
        (CONFIG, "image_size"),
        (CONFIG, "conditions.width"),
        (CONFIG, "conditions.image_embed.tokens"),
        (CONFIG, "conditions.image_embed.embed_dim"),
        (CONFIG, "conditions.text.context"),
        (CONFIG, "conditions.text.states_width"),
        ("prior/config.json", "network.transformer.layers"),
        ("prior/config.json", "network.transformer.width"),
        ("prior/config.json", "network.transformer.mlp"),
        ("prior/config.json", "network.context"),
        ("prior/config.json", "network.embed_dim"),
        ("upsampler_64/config.json", "scale"),
        ("upsampler_64/config.json", "corruption.kernel"),
        ("clip/config.json", "architecture.vision.image_size"),
        ("clip/config.json", "architecture.vision.patch_size"),
        ("clip/config.json", "architecture.vision.layers"),
        ("clip/config.json", "architecture.vision.width"),
        ("clip/config.json", "architecture.text.layers"),
        ("clip/config.json", "architecture.text.context_length"),
        ("clip/config.json", "architecture.embed_dim"),
    ],
)
def test_sizes_are_not_believed(copy: Path, file: str, path: str, size: int) -> None:
    """Refused before anything is built, in no time and no memory."""

    def change(tree: Any) -> None:
        node = tree["config"]
        *above, last = path.split(".")
        for name in above:
            node = node[name]
        node[int(last) if last.isdecimal() else last] = size + (1 if path.endswith("kernel") else 0)

    edit(copy / file, change)
    with pytest.raises(ValueError, match=file.partition("/")[0]) as error:
        load_component(copy / file.partition("/")[0], json.loads((copy / file).read_text())["class"])
    assert "\n" not in str(error.value)


def test_candidates_are_not_believed(copy: Path) -> None:
    edit(copy / "unclip.json", lambda i: i.update(candidates=10**9))
    with pytest.raises(ValueError, match=r"unclip.json is no Index: Expected `int` <= 1000 - at `\$.candidates`"):
        UnCLIP.from_pretrained(copy)


# On the way out


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    part = tiny.upsampler()
    for name in ("full", "file"):
        with pytest.raises(ValueError, match=f"{name} exists already and is not an empty folder"):
            part.save_pretrained(tmp_path / name)
    part.save_pretrained(tmp_path / "empty")
    assert files(tmp_path) == ["empty/config.json", "empty/model.safetensors", "file", "full/notes"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "full"]
    for name in ("file/x", "file/x/y"):
        with pytest.raises(ValueError, match="cannot write .*: "):
            part.save_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match="cannot write"):
        part.save_pretrained("/proc/unclip/x")


def test_relative_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.upsampler().save_pretrained("part")
    assert load_component(Path("part"), "Upsampler").config == tiny.upsampler().config


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    pipe = tiny.pipeline()
    with full_disk(50_000), pytest.raises(ValueError, match="could not write .*new: .*; nothing was left there"):
        pipe.save_pretrained(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SafetensorError("IoError: no space"), RuntimeError("a fault")]
)
def test_any_fault_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(path: Path, tensors: Any, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "write_tensors", broken)
    kind = RuntimeError if isinstance(error, RuntimeError) else ValueError
    with pytest.raises(kind, match="a fault|could not write .*(No|no) space"):
        tiny.upsampler().save_pretrained(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_broken_weights_are_not_written(tmp_path: Path) -> None:
    part = tiny.upsampler()
    with torch.no_grad():
        part.network.unet.output.bias[3] = 1e5
    with pytest.raises(
        ValueError, match="Upsampler cannot be saved in torch.float16: it holds NaN or infinite weights in .*output.bias"
    ):
        part.save_pretrained(tmp_path / "new", torch.float16)
    assert list(tmp_path.iterdir()) == []
    part.save_pretrained(tmp_path / "new")
    assert isinstance(Upsampler.from_pretrained(tmp_path / "new"), Component)

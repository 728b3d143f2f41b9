"""Karlo, number for number: every network, every sampler step and the whole run against diffusers, at a small size."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import karlo
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from unclip import checkpoint
from unclip.checkpoint import open_pipeline
from unclip.convert import convert
from unclip.diffusion.denoiser import Denoiser
from unclip.diffusion.guidance import threshold
from unclip.diffusion.samplers import ddpm
from unclip.diffusion.schedule import spaced
from unclip.pipelines.unclip import UnCLIP
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.trees import tree_map
from unclip.types import Cond, Text

FLOAT = 1e-4  # of the output's root mean square
CAPTION = "a woman with a red hat, 3 dogs and a horse"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return karlo.save_diffusers(tmp_path_factory.mktemp("karlo") / "both", "both")


@pytest.fixture(scope="module")
def parts(folder: Path) -> dict[str, Any]:
    return {name: load() for name, load in open_pipeline(folder).components.items()}


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return karlo.components()


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def load(folder: Path | str, dtype: torch.dtype | None = None) -> dict[str, Any]:
    return {name: load() for name, load in open_pipeline(folder, dtype=dtype).components.items()}


def pipeline(parts: dict[str, Any]) -> UnCLIP:
    return UnCLIP(parts["clip"], parts["prior"], parts["decoder"], [parts["upsampler_64"]], candidates=1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def texts(lengths: tuple[int, ...] = (4, 77, 9)) -> Text:
    b = len(lengths)
    mask = torch.arange(77) < torch.tensor(lengths)[:, None]
    states, embed = random(b, 77, karlo.EMBED, seed=1), random(b, karlo.EMBED, seed=2)
    return Text([f"caption {i}" for i in range(b)], mask.long(), embed, states, mask)


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def close(ours: Tensor, theirs: Tensor, bound: float = FLOAT) -> None:
    assert ours.shape == theirs.shape and rms(theirs) > 0.05
    assert float((ours - theirs).abs().max()) <= bound * rms(theirs)


# Networks


def their_prior(model: Any, x: Tensor, t: Tensor, text: Text) -> Tensor:
    inputs = dict(proj_embedding=text.embed, encoder_hidden_states=text.states, attention_mask=text.mask)
    return model(x, timestep=t - 1, **inputs).predicted_image_embedding


@torch.no_grad()
def test_the_prior_is_diffusers(parts: dict[str, Any], reference: dict[str, Any]) -> None:
    network, text, x = parts["prior"].network, texts(), random(3, karlo.EMBED)
    prompt = network.prompt(text)
    for t in ([1, 500, 1000], [42, 43, 44]):
        theirs = their_prior(reference["prior"], x, torch.tensor(t), text)
        close(network(x, torch.tensor(t), prompt), theirs)
        close(network(x, torch.tensor(t), network.encode(prompt)), theirs)  # what sampling does
    shifted = their_prior(reference["prior"], x, torch.tensor([43, 44, 45]), text)
    assert rms(shifted - theirs) > 10 * FLOAT * rms(theirs)  # so a timestep off by one would show


def their_decoder(model: dict[str, Any], x: Tensor, t: Tensor, image: Tensor, text: Text) -> Tensor:
    context, added = model["text_proj"](
        image_embeddings=image,
        prompt_embeds=text.embed,
        text_encoder_hidden_states=text.states,
        do_classifier_free_guidance=False,
    )
    mask = pad(text.mask, (4, 0), value=True)
    return model["decoder"](x, t - 1, encoder_hidden_states=context, class_labels=added, attention_mask=mask).sample


@torch.no_grad()
def test_the_decoder_is_diffusers(parts: dict[str, Any], reference: dict[str, Any]) -> None:
    network, text, image = parts["decoder"].network, texts(), 3 * random(3, karlo.EMBED, seed=3)
    x, t = random(3, 3, karlo.SIZE, karlo.SIZE, seed=4), torch.tensor([1, 300, 1000])
    theirs = their_decoder(reference, x, t, image, text)
    close(network(x, t, network.encode(Cond(image, text), 3)), theirs)
    # Without picture and caption: the learned embedding, and the empty caption with its own mask.
    empty = parts["clip"].encode_text([""]).repeat(3)
    null = reference["text_proj"].learned_classifier_free_guidance_embeddings.expand(3, -1)
    close(network(x, t, network.encode(Cond(), 3)), their_decoder(reference, x, t, null, empty))
    close(network(x, t, network.encode(Cond(image), 3)), their_decoder(reference, x, t, image, empty))
    # A dropped or blank caption is the empty one; the others stay.
    mixed = text._replace(strings=["caption", " ", "caption"])
    rows = tree_map(lambda a, b: torch.cat([a[:1], b[1:2], a[2:]]), text._replace(strings=[]), empty._replace(strings=[]))
    close(network(x, t, network.encode(Cond(image, mixed), 3)), their_decoder(reference, x, t, image, rows))


@torch.no_grad()
def test_the_upsampler_is_diffusers_with_another_network_in_the_last_step(
    parts: dict[str, Any], reference: dict[str, Any]
) -> None:
    network, low = parts["upsampler_64"].network, random(3, 3, 16, 16).clamp(-1, 1)
    x, encoded = random(3, 3, 64, 64, seed=1), network.encode(low)
    resized = torch.nn.functional.interpolate(low, size=[64, 64], mode="bicubic", align_corners=False, antialias=True)
    assert torch.equal(encoded.resized, resized)
    both = torch.cat([x, resized], dim=1)
    for t in ([1000, 500, 2], [1, 1, 1], [7, 1, 999]):
        t = torch.tensor(t)
        first, last = (reference[name](both, t - 1).sample for name in ("super_res_first", "super_res_last"))
        expected = torch.where((t == 1)[:, None, None, None], last, first)
        assert rms(first - last) > 0.1
        close(network(x, t, encoded), expected)


@torch.no_grad()
def test_bfloat16_is_no_further_off_than_diffusers(folder: Path, parts: dict[str, Any], reference: dict[str, Any]) -> None:
    kind = torch.bfloat16
    half = load(folder, kind)
    theirs = {name: part.to(kind) for name, part in load_reference(folder).items()}
    text, image = texts((4, 77, 9, 20)), random(4, karlo.EMBED, seed=3)
    low = text._replace(embed=text.embed.to(kind), states=text.states.to(kind))
    x, picture, t = random(4, karlo.EMBED), random(4, 3, karlo.SIZE, karlo.SIZE, seed=4), torch.tensor([3, 300, 700, 1000])
    large = random(4, 3, 64, 64, seed=5)

    def ours(part: dict[str, Any]) -> list[Tensor]:
        prior, decoder, upsampler = (part[name].network for name in ("prior", "decoder", "upsampler_64"))
        return [
            prior(x, t, prior.prompt(text)),
            decoder(picture, t, decoder.encode(Cond(image, text), 4)),
            upsampler(large, t, upsampler.encode(picture)),
        ]

    exact, given = ours(parts), ours(half)
    both = torch.cat([large, parts["upsampler_64"].network.encode(picture).resized], dim=1)
    other = [
        their_prior(theirs["prior"], x.to(kind), t, low),
        their_decoder(theirs, picture.to(kind), t, image.to(kind), low),
        theirs["super_res_first"](both.to(kind), t - 1).sample,
    ]
    for a, b, c in zip(exact, given, other):
        assert b.dtype == c.dtype == kind
        assert 0 < rms(b - a) <= 1.1 * rms(c - a), (rms(b - a), rms(c - a))


def load_reference(folder: Path) -> dict[str, Any]:
    """diffusers' own reading of the same folder."""
    from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    kinds = {"prior": PriorTransformer, "decoder": UNet2DConditionModel, "text_proj": UnCLIPTextProjModel}
    kinds |= {"super_res_first": UNet2DModel, "super_res_last": UNet2DModel}
    return {name: kind.from_pretrained(folder / name, low_cpu_mem_usage=False).eval() for name, kind in kinds.items()}


# Sampler steps


@pytest.mark.parametrize("steps", [7, 25, 50])
def test_timesteps(steps: int) -> None:
    scheduler = karlo.scheduler()
    scheduler.set_timesteps(steps)
    assert spaced(1000, steps) == (*(int(t) + 1 for t in scheduler.timesteps), 0)


@pytest.mark.parametrize(
    ("stage", "settings", "steps"),
    [
        ("prior", {"prediction_type": "sample", "clip_sample_range": 5.0}, 25),
        ("prior", {"prediction_type": "sample", "clip_sample_range": 10.0}, 25),
        ("decoder", {"variance_type": "learned_range"}, 25),
        ("upsampler_64", {}, 7),
    ],
)
def test_every_step_is_unclip_schedulers(
    parts: dict[str, Any], stage: str, settings: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random answers of a network, the same to both, large enough to be clipped."""
    from diffusers.schedulers import scheduling_unclip

    part, scheduler = parts[stage], karlo.exact(karlo.scheduler(**settings))
    scheduler.set_timesteps(steps)
    learned = stage == "decoder"
    shape = (2, 6) if stage == "prior" else (2, 3, 4, 4)
    outputs = {int(t): random(2, (2 if learned else 1) * shape[1], *shape[2:], seed=int(t)) for t in scheduler.timesteps}
    for output in outputs.values():
        if stage == "prior":
            output.mul_(6)  # some beyond either clamp
        elif learned:
            output[:, 3:].clamp_(-1, 1)
    x, noise, twin = random(*shape, seed=2000), Noise.of(0, range(2)), Noise.of(0, range(2))
    monkeypatch.setattr(scheduling_unclip, "randn_tensor", lambda *_, **__: twin.normal(shape[1:]))
    denoiser = Denoiser(lambda x, t, cond: outputs[int(t[0]) - 1], part.schedule, part.denoiser.predicts, learned)
    bound = settings.get("clip_sample_range", 1.0)
    denoise = threshold(lambda x, t: denoiser(x, t), part.schedule, "static", bound)
    visited = spaced(part.schedule.T, part.config.sampling.steps)
    assert len(visited) == steps + 1
    for t, s, step in zip(visited, visited[1:], scheduler.timesteps):
        theirs = scheduler.step(outputs[int(step)], step, x, prev_timestep=s - 1 if s else None).prev_sample
        ours = ddpm(denoise, x, part.schedule, (t, s), noise=noise, variance=part.config.sampling.variance)
        assert (ours - theirs).abs().max() < 1e-6 * bound * (100 if t == 1000 else 10), (t, s)  # at T, alpha is 5e-5
        x = theirs
    clipped = sum(float((output[:, : shape[1]].abs() > bound).float().mean()) for output in outputs.values()) / len(outputs)
    assert stage != "prior" or 0.05 < clipped < 0.5


def test_settings(parts: dict[str, Any]) -> None:
    prior, decoder, upsampler = (parts[name].config for name in ("prior", "decoder", "upsampler_64"))
    assert (prior.clamp, prior.sampling) == (5.0, Sampling(sampler="ddpm", steps=25, guidance=4.0, variance="small"))
    expected = Sampling(sampler="ddpm", steps=25, guidance=8.0, variance="learned", threshold="static")
    assert (decoder.sampling, decoder.conditions.image_embed.scale, decoder.conditions.text.null) == (expected, "raw", "empty")
    assert upsampler.sampling == Sampling(sampler="ddpm", steps=7, variance="small", threshold="static")
    assert (upsampler.scale, upsampler.last_step, upsampler.unet.modulation) == (4, "own", "add")
    assert {prior.network.first_timestep, decoder.first_timestep, upsampler.first_timestep} == {0}


# Traps


def test_statistics(parts: dict[str, Any], reference: dict[str, Any]) -> None:
    x, scaling = random(3, karlo.EMBED), parts["prior"].scaling
    assert torch.allclose(scaling.unscale(x), reference["prior"].post_process_latents(x), atol=1e-6)
    mean, std = (reference["prior"].get_parameter(name) for name in ("clip_mean", "clip_std"))
    assert float(scaling.norm) == pytest.approx(float((mean**2 + std**2).sum().sqrt()), rel=1e-5)


@torch.no_grad()
def test_image_tokens_are_stored_by_channel(parts: dict[str, Any], reference: dict[str, Any]) -> None:
    theirs = reference["text_proj"].clip_extra_context_tokens_proj
    ours, image = parts["decoder"].network.conditions.image_embed.to_tokens, random(1, karlo.EMBED)
    tokens = theirs(image).reshape(1, -1, 4).permute(0, 2, 1)
    assert torch.allclose(ours(image).unflatten(-1, (4, -1)), tokens, atol=1e-6)
    assert torch.equal(ours.weight, karlo.token_rows(theirs.weight)) and not torch.equal(ours.weight, theirs.weight)


@torch.no_grad()
def test_the_masks(parts: dict[str, Any]) -> None:
    """Padding is seen by nobody, the image's tokens, the pooled caption and what follows by all."""
    prior, decoder, text = parts["prior"].network, parts["decoder"].network, texts((5, 9, 1))
    t, x, picture, image = torch.tensor([7] * 3), random(3, karlo.EMBED), random(3, 3, 16, 16), random(3, karlo.EMBED)
    rubbish = text._replace(states=torch.where(text.mask[..., None], text.states, 50.0))
    assert torch.allclose(prior(x, t, prior.prompt(text)), prior(x, t, prior.prompt(rubbish)), atol=1e-6)
    a, b = (decoder(picture, t, decoder.encode(Cond(image, some), 3)) for some in (text, rubbish))
    assert torch.equal(a, b)
    other = decoder(picture, t, decoder.encode(Cond(image + 1, text), 3))
    pooled = prior(x, t, prior.prompt(text._replace(embed=text.embed + 1)))
    assert rms(other - a) > 0.01 and rms(pooled - prior(x, t, prior.prompt(text))) > 0.01


def test_the_null_is_clips_empty_caption(parts: dict[str, Any]) -> None:
    empty = parts["clip"].encode_text([""])
    for part in (parts["prior"].network.reader, parts["decoder"].network.conditions.text.reader):
        assert torch.equal(part.empty_mask, empty.mask[0]) and int(part.empty_mask.sum()) == 2  # start and end
        assert torch.allclose(part.empty_embed, empty.embed[0]) and torch.allclose(part.empty_raw, empty.states[0])


# The whole


@torch.no_grad()
@pytest.mark.parametrize(("tables", "bound"), [("float32", 1.0), ("float64", 0.1)])
def test_the_whole_run_is_diffusers(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tables: str, bound: float
) -> None:
    """25 + 25 + 7 steps, from a caption, with the noise of ours given to diffusers; `bound` in 255ths."""
    from diffusers import UnCLIPPipeline
    from diffusers.schedulers import scheduling_unclip

    noise, decoder = Noise.of(3, range(2)), Noise.of(3, range(2)).at("decoder")
    prior, upsampler = noise.at("prior").repeat(1), noise.at("upsampler_64")
    streams = {
        (karlo.EMBED,): prior.at("steps"),
        (3, 16, 16): decoder.at("steps"),
        (3, 64, 64): upsampler.at("steps"),
    }
    monkeypatch.setattr(scheduling_unclip, "randn_tensor", lambda shape, **_: streams[tuple(shape[1:])].normal(shape[1:]))
    kept = {name: part for name, part in karlo.components().items() if name != "image_encoder"}
    if tables == "float64":
        kept |= {name: karlo.exact(part) for name, part in kept.items() if name.endswith("scheduler")}
    pipe = UnCLIPPipeline(tokenizer=karlo.tokenizer(tmp_path / "tokenizer"), **kept)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        [CAPTION, "blue"],
        prior_latents=prior.at("x_T").normal((karlo.EMBED,)),
        decoder_latents=decoder.at("x_T").normal((3, 16, 16)),
        super_res_latents=upsampler.at("x_T").normal((3, 64, 64)),
        output_type="np",
    ).images
    ours = pipeline(parts).generate([CAPTION, "blue"], seed=3)
    assert ours.images.shape == (2, 3, 64, 64) and theirs.std() > 0.1
    difference = np.abs(ours.images.permute(0, 2, 3, 1).numpy() / 2 + 0.5 - theirs)
    assert difference.mean() < bound / 255, difference.mean()
    assert np.abs(theirs[0] - theirs[1]).mean() > 0.05  # and the captions matter


@torch.no_grad()
def test_variations_are_diffusers(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from diffusers import UnCLIPImageVariationPipeline
    from diffusers.schedulers import scheduling_unclip

    decoder, upsampler = (Noise.of(5, range(1)).at(name) for name in ("decoder", "upsampler"))
    streams = {(3, 16, 16): decoder.at("steps"), (3, 64, 64): upsampler.at("steps")}
    monkeypatch.setattr(scheduling_unclip, "randn_tensor", lambda shape, **_: streams[tuple(shape[1:])].normal(shape[1:]))
    kept = {name: part for name, part in karlo.components().items() if not name.startswith("prior")}
    pipe = UnCLIPImageVariationPipeline(tokenizer=karlo.tokenizer(tmp_path / "tokenizer"), feature_extractor=None, **kept)
    pipe.set_progress_bar_config(disable=True)
    clip, picture = parts["clip"], random(1, 3, 32, 32).clamp(-1, 1)
    theirs = pipe(
        (picture / 2 + 0.5 - clip.mean) / clip.std,
        decoder_latents=decoder.at("x_T").normal((3, 16, 16)),
        super_res_latents=upsampler.at("x_T").normal((3, 64, 64)),
        output_type="np",
    ).images
    small = parts["decoder"].sample(Cond(clip.encode_image(picture)), noise=decoder)
    large = parts["upsampler_64"].sample(small, noise=upsampler)
    assert np.abs(large.permute(0, 2, 3, 1).numpy() / 2 + 0.5 - theirs).mean() < 1 / 255


# Layouts and halves


def test_the_original_files_hold_the_same(parts: dict[str, Any], tmp_path: Path) -> None:
    """Another naming, heads interleaved, convolutions over one axis, TorchScript: the same weights, bit by bit."""
    stored = open_pipeline(karlo.save_original(tmp_path / "original"))
    assert stored.provenance["layout"] == "original" and stored.name == "original"
    original = {name.replace("256", "64"): load() for name, load in stored.components.items()}
    assert list(original) == list(parts)
    for name, part in original.items():
        state, expected = part.state_dict(), parts[name].state_dict()
        assert list(state) == list(expected)
        assert [key for key in state if not torch.equal(state[key].nan_to_num(), expected[key].nan_to_num())] == []
    changes = {"prior": {"clamp": 5.0}, "decoder": {"image_size": 16, "sampling": parts["decoder"].config.sampling}}
    for name, part in original.items():
        assert part.config.replace(**changes.get(name, {})) == parts[name].config
    assert original["prior"].config.clamp == 10.0 and original["decoder"].config.sampling.steps == 50


def test_captions_alone(tmp_path: Path, parts: dict[str, Any]) -> None:
    """karlo-v1-alpha has no image encoder."""
    alone = load(karlo.save_diffusers(tmp_path / "captions"))
    assert alone["clip"].config.architecture.vision is None and alone["clip"].image_size == 0
    pipe, whole = pipeline(alone), pipeline(parts)
    short = dict(prior=Sampling(sampler="ddpm", steps=3), decoder=Sampling(sampler="ddpm", steps=2), size=16)
    assert torch.equal(pipe.generate(CAPTION, **short).images, whole.generate(CAPTION, **short).images)
    for call in (alone["clip"].encode_image, alone["clip"].preprocess):
        with pytest.raises(ValueError, match="without an image tower.*image_encoder"):
            call(random(1, 3, 32, 32))
    pipe.save_pretrained(tmp_path / "saved")
    again = UnCLIP.from_pretrained(tmp_path / "saved")
    UnCLIP(parts["clip"], again.prior, again.decoder)  # the same CLIP, with its eyes open
    assert torch.equal(again.generate(CAPTION, **short).images, whole.generate(CAPTION, **short).images)


def test_pictures_alone(tmp_path: Path, parts: dict[str, Any]) -> None:
    """karlo-v1-alpha-image-variations has no prior."""
    folder = karlo.save_diffusers(tmp_path / "pictures", "pictures")
    alone = load(folder)
    assert "prior" not in alone
    picture = random(1, 3, 32, 32).clamp(-1, 1)
    assert torch.equal(alone["clip"].encode_image(picture), parts["clip"].encode_image(picture))
    pipe = UnCLIP.from_pretrained(folder)
    assert pipe.prior is None and "prior" not in pipe.components
    with pytest.raises(ValueError, match="no prior, so it cannot draw pictures for captions: .*kakaobrain/karlo-v1-alpha"):
        pipe.generate(CAPTION)
    pipe.save_pretrained(tmp_path / "saved")
    saved = UnCLIP.from_pretrained(tmp_path / "saved")
    assert saved.prior is None and torch.equal(
        saved.vary(picture, n=1, x_t="fresh", size=16).images, pipe.vary(picture, n=1, x_t="fresh", size=16).images
    )
    with pytest.raises(ValueError, match="kakaobrain/karlo-v1-alpha"):
        saved.generate(CAPTION)


def test_the_hub_brings_both_halves(tmp_path: Path, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    names = ("kakaobrain/karlo-v1-alpha", "kakaobrain/karlo-v1-alpha-image-variations")
    folders = {name: karlo.save_diffusers(tmp_path / half, half) for name, half in zip(names, ("captions", "pictures"))}
    asked: list[tuple[str, list[str]]] = []

    def give(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name not in folders:
            raise ConnectionError("no network")
        return str(folders[name])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)
    for name in names:
        whole = open_pipeline(name).components
        assert whole["clip"]().image_size == 32 and type(whole["prior"]()) is type(parts["prior"])
    assert asked[1] == (
        names[1],
        [f"{x}/*{end}" for x in ("image_encoder", "feature_extractor") for end in (".json", ".safetensors")],
    )
    assert all(pattern.startswith("prior") for pattern in asked[3][1])
    del folders[names[1]]  # half of the network is down
    with pytest.warns(UserWarning, match="goes without image_encoder.*no network"):
        assert open_pipeline(names[0]).components["clip"]().image_size == 0
    with pytest.raises(ValueError, match="hub did not give it: no network .*give the path of a folder"):
        open_pipeline("kakaobrain/karlo-v2")


def test_old_repositories_hold_pickles_only(tmp_path: Path, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = karlo.save_diffusers(tmp_path / "bin", weights="bin")
    asked: list[list[str]] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: asked.append(allow_patterns) or folder)
    stored = open_pipeline("owner/karlo")
    assert asked[1] == [f"{x}/*.bin" for x in ("decoder", "prior", "super_res_first", "super_res_last", "text_proj")]
    for name in ("decoder", "upsampler_64"):
        expected = parts[name].state_dict()
        assert all(torch.equal(x, expected[key]) for key, x in stored.components[name]().state_dict().items())


# Our format


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precisions(folder: Path, parts: dict[str, Any], dtype: torch.dtype) -> None:
    assert {x.dtype for part in parts.values() for x in part.parameters()} == {torch.float32}
    for name, part in load(folder, dtype).items():
        assert {x.dtype for x in part.parameters()} == {dtype}
        assert {x.dtype for x in part.buffers()} <= {torch.float32, torch.bool}  # statistics keep their precision
        expected = dict(parts[name].named_parameters())
        assert all(torch.equal(x, expected[key].to(dtype)) for key, x in part.named_parameters())


def test_half_precision_runs(folder: Path, parts: dict[str, Any]) -> None:
    short = dict(prior=Sampling(sampler="ddpm", steps=5), decoder=Sampling(sampler="ddim", steps=3), size=16)
    expected = pipeline(parts).generate(CAPTION, **short)
    given = pipeline(load(folder, torch.bfloat16)).generate(CAPTION, **short)
    assert given.images.dtype == torch.float32 and given.images.isfinite().all()
    assert torch.cosine_similarity(given.latent.image_embed, expected.latent.image_embed).item() > 0.95


def test_convert(folder: Path, parts: dict[str, Any], tmp_path: Path) -> None:
    convert(folder, tmp_path / "ours")
    expected = ["clip", "decoder", "prior", "provenance.json", "unclip.json", "upsampler_64"]
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == expected
    pipe = UnCLIP.from_pretrained(tmp_path / "ours")
    assert pipe.name == "both" and pipe.candidates == 1 and pipe.provenance["license"] == "CreativeML OpenRAIL-M"
    for name, part in pipe.components.items():
        state = parts[name].state_dict()
        assert part.config == parts[name].record() if name == "clip" else part.config == parts[name].config
        assert all(torch.equal(x.nan_to_num(), state[key].nan_to_num()) for key, x in part.state_dict().items())
    convert(folder, tmp_path / "half", "float16")
    size = {name: sum(f.stat().st_size for f in (tmp_path / name).rglob("*.safetensors")) for name in ("ours", "half")}
    assert size["half"] < 0.52 * size["ours"]
    for dtype in (torch.float32, torch.float16):
        half = open_pipeline(tmp_path / "half", dtype=dtype).components["decoder"]()
        assert {x.dtype for x in half.parameters()} == {dtype}
        assert torch.equal(half.network.unet.output.weight.half(), pipe.decoder.network.unet.output.weight.half())
    for source, target, message in (
        (folder, tmp_path / "ours", "exists already"),
        (tmp_path / "ours", tmp_path / "new", "has this package's format already"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(source, target)
    with pytest.raises(ValueError, match="no dtype 'int8'; there are float32, bfloat16, float16"):
        convert(folder, tmp_path / "new", "int8")


def test_from_pretrained(folder: Path, parts: dict[str, Any]) -> None:
    pipe = UnCLIP.from_pretrained(folder, dtype=torch.bfloat16)
    assert (pipe.sizes, pipe.candidates, pipe.name) == ((16, 64), 1, "both")
    assert pipe.provenance == {
        "family": "Karlo v1 alpha (KakaoBrain)", "license": "CreativeML OpenRAIL-M", "source": str(folder), "layout": "diffusers"
    }  # fmt: skip
    assert next(pipe.decoder.parameters()).dtype == torch.bfloat16


# Bad input


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_half_a_folder(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "super_res_last")
    shutil.rmtree(copy / "text_proj")
    with pytest.raises(ValueError, match="copy is half of a Karlo: it has no text_proj, super_res_last; a whole one has"):
        open_pipeline(copy)
    original = karlo.save_original(tmp_path / "original")
    (original / "ViT-L-14_stats.th").unlink()
    with pytest.raises(ValueError, match=r"no whole Karlo: it has no ViT-L-14_stats.th; a whole one has one each of ViT-L-14.pt"):
        open_pipeline(original)
    shutil.copy(next(original.glob("prior*")), original / "prior-ckpt-step=2.ckpt")
    (original / "ViT-L-14_stats.th").touch()
    with pytest.raises(ValueError, match="it has several prior-ckpt"):
        open_pipeline(original)


def test_another_family(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(ValueError, match="holds no pipeline: unclip.json is missing; other formats that can be read: Karlo"):
        open_pipeline(tmp_path)
    change_json(copy / "model_index.json", _class_name="KandinskyPipeline")
    with pytest.raises(ValueError, match="model_index.json describes a KandinskyPipeline"):
        open_pipeline(copy)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("prior/config.json", {"added_emb_type": None}, "prior/config.json .*added_emb_type is None, not 'prd'"),
        ("prior/config.json", {"num_layers": 3}, "16 missing: transformer_blocks.2.attn1.to_k.bias"),
        ("prior/config.json", {"num_layers": 1}, "16 unexpected: transformer_blocks.1.attn1"),
        ("prior/config.json", {"num_layers": "20"}, "num_layers is '20'; it must be a whole number"),
        ("prior/config.json", {"embedding_dim": 32}, r"of another shape: .*proj_in.weight \(128, 64\) \(config \(128, 32\)\)"),
        ("prior_scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "prediction_type is 'epsilon'"),
        ("decoder_scheduler/scheduler_config.json", {"num_train_timesteps": 100}, "num_train_timesteps is 100"),
        ("decoder/config.json", {"up_block_types": ["UpBlock2D"] * 2}, "describes no UNet of Karlo's"),
        ("decoder/config.json", {"class_embed_type": None}, "class_embed_type is None, not 'identity'"),
        ("decoder/config.json", {"resnet_time_scale_shift": "spatial"}, "'spatial'; known are 'default' and 'scale_shift'"),
        ("super_res_first/config.json", {"sample_size": 65}, "sample_size is 65, no multiple of the decoder's 16"),
        ("super_res_last/config.json", {"layers_per_block": 2}, "built otherwise than the first's"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act is quick_gelu, relu; known are"),
        ("text_encoder/config.json", {"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06"),
    ],
)
def test_configs_that_do_not_fit(copy: Path, file: str, changes: dict[str, Any], message: str) -> None:
    change_json(copy / file, **changes)
    with pytest.raises(ValueError, match=message) as error:
        open_pipeline(copy).components["prior"]()
    assert "\n" not in str(error.value)


def test_zero_statistics(tmp_path: Path, copy: Path) -> None:
    """What diffusers' model is created with, and so what a partial file leaves behind."""
    from safetensors.torch import load_file, save_file

    path = copy / "prior" / "diffusion_pytorch_model.safetensors"
    for name, told in (("clip_std", "std"), ("clip_mean", "mean")):
        tensors = load_file(path)
        save_file({**tensors, name: torch.zeros_like(tensors[name])}, path)
        with pytest.raises(ValueError, match=f"prior: the embeddings' {told} is zero or not finite; the file is not whole"):
            open_pipeline(copy).components["prior"]()
        save_file(tensors, path)


def test_mixed_precisions_are_read(copy: Path, parts: dict[str, Any]) -> None:
    from safetensors.torch import load_file, save_file

    path = copy / "decoder" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    save_file({name: x.to(kinds[i % 4]) for i, (name, x) in enumerate(tensors.items())}, path)
    decoder = open_pipeline(copy).components["decoder"]()
    assert {x.dtype for x in decoder.parameters()} == {torch.float32}
    for name, x in parts["decoder"].state_dict().items():
        assert torch.allclose(decoder.state_dict()[name], x, rtol=1e-2, atol=1e-3)
    save_file({**tensors, "conv_in.bias": tensors["conv_in.bias"].long()}, path)
    with pytest.raises(ValueError, match=r"1 of another type: decoder.conv_in.bias \(64,\) \(torch.int64\)"):
        open_pipeline(copy).components["decoder"]()


def test_truncated_and_swapped_files(copy: Path) -> None:
    path = copy / "prior" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    for data in (whole[:-4], whole[:100], b""):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="prior/diffusion_pytorch_model.safetensors cannot be read .*is it whole"):
            open_pipeline(copy)
    shutil.copy(copy / "text_proj" / "diffusion_pytorch_model.safetensors", path)  # of another component
    with pytest.raises(
        ValueError, match=r"copy/prior does not fit .*: 46 missing: .*; 7 unexpected: clip_ex.*; 4 of another shape"
    ):
        open_pipeline(copy).components["prior"]()


def test_original_files_of_something_else(tmp_path: Path) -> None:
    original = karlo.save_original(tmp_path / "original")
    prior, decoder = (next(original.glob(f"{name}-ckpt*")) for name in ("prior", "decoder"))
    whole = {path: path.read_bytes() for path in (prior, decoder)}
    decoder.write_bytes(whole[prior])
    with pytest.raises(ValueError, match="decoder-ckpt.*has no tensor model.input_blocks.0.0.weight: is it the file"):
        open_pipeline(original)
    decoder.write_bytes(whole[decoder])
    prior.write_bytes(whole[decoder])
    with pytest.raises(ValueError, match="prior-ckpt.*has no tensor model.positional_embedding of 3 dimensions"):
        open_pipeline(original)
    prior.write_bytes(whole[prior][: len(whole[prior]) // 2])
    with pytest.raises(ValueError, match="prior-ckpt.*cannot be read as torch weights .*is it whole"):
        open_pipeline(original)
    torch.save([torch.zeros(2)], prior)
    with pytest.raises(ValueError, match="expected a dictionary with 'state_dict'"):
        open_pipeline(original)


def test_nothing_is_warned_about(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(folder)
    assert checkpoint.find(folder) == folder

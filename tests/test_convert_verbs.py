"""Every command and method on a Karlo of small random weights, as diffusers stores it and as its five files; training it on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import karlo
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from unclip import PCA, Inversion, Latent, Sampling, UnCLIP
from unclip.checkpoint import Component, load_component
from unclip.cli import app
from unclip.images import metadata, to_pil
from unclip.randomness import Noise
from upsamplers.filters import resize

CAPTION = "two dogs and a hat"
FEW = ("--steps", "prior=3,decoder=2,upsampler_64=2")
SHORT = {
    "prior": Sampling(sampler="ddpm", steps=3, guidance=4.0),
    "decoder": Sampling(sampler="ddpm", steps=2, guidance=8.0, variance="learned", threshold="static"),
    "upsamplers": [Sampling(sampler="ddpm", steps=2, threshold="static")],
}
ROUGH = ("--inversion-steps", "4", "--refine", "0")
INVERSION = Inversion(steps=4, refine=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in both layouts, a file each, and captioned pictures."""
    place = tmp_path_factory.mktemp("verbs")
    karlo.save_diffusers(place / "karlo", "both")
    karlo.save_original(place / "original")
    (place / "pictures").mkdir()
    pictures = resize(Noise.of(1, range(8)).uniform((3, 4, 4)) * 1.6 - 0.8, (40, 40), "bilinear")
    for i, picture in enumerate(pictures):
        to_pil(picture).save(place / "pictures" / f"{i}.png")
        (place / "pictures" / f"{i}.txt").write_text(CAPTION)
    for name, picture in zip("xy", pictures):
        to_pil(picture).save(place / f"{name}.png")
    return place


@pytest.fixture(scope="module")
def pipe(place: Path) -> UnCLIP:
    return UnCLIP.from_pretrained(place / "karlo")


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def call(*arguments: Any) -> list[str]:
    """What a command says, of one that works and warns of nothing."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0 and done.stderr == "", done.output + str(done.exception)
    return done.stdout.splitlines()


def fails(*arguments: Any) -> str:
    """The one line of a command that cannot work."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output + str(done.exception)
    return done.stderr


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as opened:
        return opened.convert("RGB").tobytes()


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


# Captions


def test_info() -> None:
    for model, sizes, steps in (("karlo", "16, 64", 25), ("original", "64, 256", 50)):
        lines = call("info", model)
        assert lines[0].startswith(f"{model} (unclip") and lines[0].endswith(f"pictures of {sizes} pixels")
        assert [line.split()[1] for line in lines[1:5]] == ["CLIP", "DiffusionPrior", "Decoder", "Upsampler"]
        assert lines[2].endswith("ddpm, steps 25, guidance 4") and lines[3].endswith(f"ddpm, steps {steps}, guidance 8")
        assert "  family: Karlo v1 alpha (KakaoBrain)" in lines and "  license: CreativeML OpenRAIL-M" in lines


def test_generate(pipe: UnCLIP) -> None:
    assert call("generate", CAPTION, "", "-o", "out", "--model", "karlo", "--n", 2, "--seed", 3, *FEW) == [
        f"out/0000{k}.png" for k in range(4)
    ]
    made = pipe.generate([CAPTION, ""], n=2, seed=3, **SHORT)
    assert made.images.shape == (4, 3, 64, 64) and len({pixels(f"out/0000{k}.png") for k in range(4)}) == 4
    assert [pixels(f"out/0000{k}.png") for k in range(4)] == [picture.tobytes() for picture in made.pil()]
    assert {"caption": CAPTION, "model": "karlo", "index": "1"}.items() <= metadata("out/00001.png").items()
    call("generate", CAPTION, "-o", "alone.png", "--model", "karlo", "--seed", 3, "--first", 1, *FEW)
    alone, again = (torch.tensor(list(pixels(path))) for path in ("alone.png", "out/00001.png"))
    assert (alone - again).abs().max() <= 5
    whole = pipe.generate(CAPTION)  # 25 + 25 + 7 steps, as it was published
    assert whole.latent.sampling.steps[0] == 1000 and len(whole.latent.timesteps) == 26 and whole.images.isfinite().all()


def test_options_change_the_picture(pipe: UnCLIP) -> None:
    base = ("generate", CAPTION, "--model", "karlo", "--size", 16)
    kinds: dict[str, tuple[Any, ...]] = {
        "plain": FEW,
        "guided": (*FEW, "--guidance", 2),
        "prior": (*FEW, "--prior-guidance", 1),
        "steps": ("--steps", "prior=3,decoder=4"),
        "half": (*FEW, "--dtype", "bfloat16"),
    }
    for name, options in kinds.items():
        call(*base, "-o", f"{name}.png", *options)
    assert len({pixels(f"{name}.png") for name in kinds}) == len(kinds)
    plain, half = (torch.tensor(list(pixels(f"{name}.png"))).float() for name in ("plain", "half"))
    assert (plain - half).abs().mean() < 8 < plain.std()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_samplers_that_it_never_had(pipe: UnCLIP, sampler: Any) -> None:
    decoder = Sampling(sampler=sampler, steps=4, guidance=3.0, threshold="static", variance="small")
    made = pipe.generate(CAPTION, size=16, prior=Sampling(sampler=sampler, steps=4, guidance=4.0), decoder=decoder)
    assert made.images.isfinite().all() and made.images.std() > 0.1
    assert made.latent.image_embed.isfinite().all()


def test_the_papers_preset_once_its_variance_is_measured(pipe: UnCLIP) -> None:
    ask = ("generate", CAPTION, "--preset", "paper", "-o", "paper.png", "--size", 16, "--model")
    assert "analytic variance was not measured at 64 of the 64 timesteps" in fails(*ask, "karlo")
    own = UnCLIP.from_pretrained("karlo")
    prior: Any = own.prior
    text, noise = own.clip.encode_text([CAPTION, "", "a cat"]), Noise.of(0, range(3))
    prior.measure_variance(prior.scaling.mean + prior.scaling.std * noise.normal((karlo.EMBED,)), text, 3, noise)
    own.save_pretrained("measured")
    assert call(*ask, "measured", "--steps", "prior=3,decoder=2") == ["paper.png"]


def test_a_second_prior_of_another_kind(pipe: UnCLIP) -> None:
    ask = ("generate", CAPTION, "--prior", "ar", "-o", "ar.png", "--size", 16, "--steps", "decoder=2", "--model")
    assert "karlo has no component 'ar_prior'; its priors: prior" in fails(*ask, "karlo")
    network = {"transformer": {"width": 32, "layers": 1, "heads": 2}, "embed_dim": karlo.EMBED, "context": 77}
    model = {"network": network | {"states_width": karlo.EMBED}, "quantizer": {"dims": 4, "buckets": 8}}
    given = {"stage": "ar_prior", "clip": "karlo", "data": {"source": "pictures"}, "model": model}
    Path("ar.json").write_text(json.dumps(given | {"train": {"steps": 1, "batch": 4, "lr": 1e-3}}))
    CliRunner().invoke(app, ["train", "ar.json"])
    parts = ("--prior", "karlo", "--decoder", "karlo", "--upsampler", "karlo:upsampler_64", "--ar-prior", "runs/ar")
    call("assemble", "two", "--clip", "karlo", *parts)
    call(*ask, "two")
    call("generate", CAPTION, "-o", "diffusion.png", "--size", 16, "--model", "two", *FEW)
    best_of_two = pipe.with_prior(pipe.prior, candidates=2)  # which an assembled pipeline draws, Karlo one
    assert pixels("diffusion.png") == best_of_two.generate(CAPTION, size=16, **SHORT).pil()[0].tobytes() != pixels("ar.png")
    expected = pipe.generate(CAPTION, size=16, **SHORT)
    assert torch.equal(expected.images, pipe.with_prior("karlo").generate(CAPTION, size=16, **SHORT).images)


# Pictures


def test_an_inversion_is_exact(pipe: UnCLIP) -> None:
    """Up to t = 500 and back, refined until it is; beyond, random weights (no denoiser) are divided by alpha."""
    way = Inversion(steps=tuple(range(500, 20, -40)), refine=5)
    picture = resize(Noise.of(5).uniform((3, 4, 4)) * 1.6 - 0.8, (16, 16), "bilinear")
    latent = pipe.invert(picture, way)
    assert latent.timesteps == (*range(500, 20, -40), 20) and rms(latent.x_t - picture) > 0.2
    again = pipe.reconstruct(latent, size=16)
    assert (again.images - picture).abs().max() < 1e-3  # what the decoder's own tests ask
    assert torch.equal(again.images, pipe.reconstruct(picture, size=16, inversion=way).images)
    other = Latent(-latent.image_embed, latent.x_t, latent.sampling, latent.captions, latent.models)
    assert (pipe.reconstruct(other, size=16).images - picture).abs().max() > 0.05
    rough = pipe.reconstruct(pipe.invert(picture, way.replace(refine=0)), size=16)
    assert (rough.images - picture).abs().max() > 10 * (again.images - picture).abs().max()
    assert torch.equal(pipe.vary(latent, n=1, eta=0.0, size=16).images, again.images)
    ends = pipe.interpolate([latent, other], steps=3, size=16)
    assert (ends.images[0] - picture).abs().max() < 1e-3 and len(ends) == 3
    turned = pipe.text_diff(latent, "a cat", source=CAPTION, steps=2, size=16)
    assert (turned.images[0] - picture).abs().max() < 1e-3 < rms(turned.images[1] - picture)


VERBS: list[tuple[str, str, dict[str, Any]]] = [
    ("vary x.png --n 2", "vary", {"n": 2}),
    ("vary x.png --n 2 --eta 0.5 --guidance 2 --seed 4", "vary", {"n": 2, "eta": 0.5, "guidance": 2.0, "seed": 4}),
    ("vary x.png --n 1 --fresh", "vary", {"n": 1, "x_t": "fresh"}),
    ("interpolate x.png y.png --steps 3", "interpolate", {"steps": 3}),
    ("interpolate x.png y.png --steps 2 --x-t fixed", "interpolate", {"steps": 2, "x_t": "fixed"}),
    ("diff x.png --to cat --from dogs --steps 2", "text_diff", {"target": "cat", "source": "dogs", "steps": 2}),
    ("diff x.png --to cat --steps 2", "text_diff", {"target": "cat", "steps": 2}),
    ("reconstruct x.png", "reconstruct", {}),
]


@pytest.mark.parametrize(("words", "verb", "settings"), VERBS)
def test_edits(pipe: UnCLIP, words: str, verb: str, settings: dict[str, Any]) -> None:
    inverts = "fresh" not in words and "fixed" not in words
    given = ["x.png", "y.png"] if verb == "interpolate" else "x.png"
    made = getattr(pipe, verb)(given, **settings, size=16, **({"inversion": INVERSION} if inverts else {}))
    assert made.images.isfinite().all() and made.images.std() > 0.05
    call(*words.split(), "-o", "sheet.png", "--overwrite", "--model", "karlo", "--size", 16, *(ROUGH if inverts else ()))
    expected = made.pil()[0] if len(made) == 1 else made.sheet()
    assert pixels("sheet.png") == expected.tobytes() and metadata("sheet.png")["model"] == "karlo"


def test_from_caption_to_caption(pipe: UnCLIP) -> None:
    call("interpolate", "a cat", "two dogs", "--steps", 2, "--model", "karlo", "--size", 16, "-o", "captions.png")
    assert pixels("captions.png") == pipe.interpolate(["a cat", "two dogs"], steps=2, size=16).sheet().tobytes()


def test_latents_animations_and_full_size(pipe: UnCLIP) -> None:
    call("invert", "x.png", "-o", "x.safetensors", "--model", "karlo", *ROUGH)
    latent = Latent.load("x.safetensors")
    assert torch.equal(latent.x_t, pipe.invert("x.png", INVERSION).x_t)
    for name, frames in (("x.gif", 2), ("x.webp", 3)):
        call("vary", "x.safetensors", "-o", name, "--n", frames, "--model", "karlo")  # from 16 to 64, by 7 steps
        with Image.open(name) as animation:
            assert animation.n_frames == frames and animation.size == (64, 64)
    call("vary", "x.safetensors", "-o", "half", "--n", 2, "--model", "karlo", "--dtype", "bfloat16")
    whole, half = pixels("x.webp"), pixels("half/00000.png")
    near = torch.tensor(list(whole)).float() - torch.tensor(list(half)).float()
    assert 0 < near.abs().mean() < 8  # upsamplers alone compute in bfloat16
    assert "made with another decoder" in fails("vary", "x.safetensors", "-o", "no.png", "--model", "original")


def test_principal_components(pipe: UnCLIP) -> None:
    ask = ("reconstruct", "x.png", "--pca", "2,8", "-o", "pca.png", "--size", 16, "--model")
    assert "came without principal components" in fails(*ask, "karlo")
    with pytest.raises(ValueError, match=r"give pca=PCA.fit\(image embeddings of a data set\)"):
        pipe.reconstruct_pca("x.png", [2])
    own = UnCLIP.from_pretrained("karlo")
    own.pca = PCA.fit(Noise.of(0, range(100)).normal((karlo.EMBED,)))
    own.save_pretrained("with_pca")
    call(*ask, "with_pca")
    again = UnCLIP.from_pretrained("with_pca")
    expected = again.reconstruct_pca("x.png", [2, 8], size=16)
    assert pixels("pca.png") == expected.sheet().tobytes()
    given = pipe.reconstruct_pca("x.png", [2, 8], pca=again.pca, size=16)
    assert torch.equal(given.images, expected.images)


def test_the_five_files(pipe: UnCLIP) -> None:
    """64 and 256 pixels; the weights are the same, so a step at another size and another clamp is what differs."""
    few = ("--steps", "prior=2,decoder=1,upsampler_256=1")
    call("generate", CAPTION, "-o", "original.png", "--model", "original", "--dtype", "bfloat16", *few)
    with Image.open("original.png") as picture:
        assert picture.size == (256, 256)
    call("reconstruct", "x.png", "-o", "small.png", "--model", "original", "--size", 64, *ROUGH)
    own = UnCLIP.from_pretrained("original")
    expected = own.reconstruct("x.png", size=64, inversion=INVERSION)
    assert pixels("small.png") == expected.pil()[0].tobytes()
    assert torch.equal(own.invert("x.png", INVERSION).image_embed, pipe.invert("x.png", INVERSION).image_embed)


def test_either_half_says_what_it_cannot() -> None:
    for half in ("captions", "pictures"):
        karlo.save_diffusers(Path(half), half)
    assert "without an image tower" in fails("vary", "x.png", "-o", "no.png", "--model", "captions")
    call("generate", CAPTION, "-o", "either.png", "--model", "captions", "--size", 16, *FEW)
    assert "has no prior" in fails("generate", CAPTION, "-o", "no.png", "--model", "pictures")
    call("vary", "x.png", "-o", "varied.png", "--model", "pictures", "--size", 16, "--n", 1, *ROUGH)
    assert not Path("no.png").exists()
    for stage in ("prior", "decoder"):
        call("config", stage, "pictures", "--clip", "captions", "--start", "captions", "-o", f"half-{stage}.json")
        assert "has no image tower" in fails("train", f"half-{stage}.json", "train.steps=1", "--run", f"runs/half-{stage}")
    given = ["--clip", "pictures", "--start", "pictures"]
    assert "has no component 'prior'" in fails("config", "prior", "pictures", *given, "-o", "none.json")


# Our format


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_convert(pipe: UnCLIP, dtype: str) -> None:
    assert call("convert", "karlo", f"ours-{dtype}", "--dtype", dtype) == [f"ours-{dtype}"]
    assert "exists already" in fails("convert", "karlo", f"ours-{dtype}")
    call("generate", CAPTION, "-o", f"{dtype}.png", "--model", f"ours-{dtype}", *FEW)
    made = torch.tensor(list(pixels(f"{dtype}.png"))).float()
    expected = torch.tensor(list(pipe.generate(CAPTION, **SHORT).pil()[0].tobytes())).float()
    assert torch.equal(made, expected) if dtype == "float32" else 0 < (made - expected).abs().mean() < 3
    call("invert", "x.png", "-o", f"{dtype}.safetensors", "--model", f"ours-{dtype}", *ROUGH)


# Training on


@pytest.mark.parametrize("stage", ["prior", "decoder", "upsampler"])
@pytest.mark.parametrize("model", ["karlo", "original"])
def test_training_on(stage: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"karlo": 64, "original": 256}[model]
    run, name = f"runs/{model}-{stage}", f"{model}-{stage}.json"
    given = ["--start", model, "--clip", model]
    if stage == "upsampler":
        given = ["--size", "40", "--start", f"{model}:upsampler_{size}"]
    call("config", stage, "pictures", *given, "-o", name)
    settings = ["train.steps=1", "train.batch=2", "train.lr=1e-4", "train.warmup=0", "train.ema=0"]
    settings += ["train.precision=float32", "train.validate_every=1", "train.log_every=1"]
    done = CliRunner().invoke(app, ["train", name, *settings, "--run", run])
    assert done.exit_code == 0, done.output + str(done.exception)
    assert "missing" not in done.output and "step 1/1" in done.output and done.stdout.splitlines()[-1] == f"{run}/model"
    kind = {"prior": "DiffusionPrior", "decoder": "Decoder", "upsampler": "Upsampler"}[stage]
    trained = load_component(Path(run) / "model", kind)
    before = part_of(model, f"upsampler_{size}" if stage == "upsampler" else stage)
    assert trained.config == before.config
    told, new = before.state_dict(), trained.state_dict()
    parameters = {key for key, _ in before.named_parameters()}
    moved = {key for key in parameters if not torch.equal(told[key], new[key])}
    # A step at t = 1 is one of a thousand, and a picture's embedding is dropped in a tenth.
    spared = {key for key in parameters if "last_" in key or key == "network.conditions.image_embed.null"}
    assert parameters - spared <= moved and all((new[key] - told[key]).abs().max() < 2e-4 for key in moved)
    kept = {"x0_variance", "x0_bound"} | parameters  # statistics and CLIP's empty caption stay
    assert all(torch.equal(told[key], new[key]) for key in told.keys() - kept)


def test_from_trained_parts_to_a_pipeline(pipe: UnCLIP) -> None:
    for stage in ("prior", "decoder"):
        call("config", stage, "pictures", "--start", "karlo", "--clip", "karlo", "-o", f"part-{stage}.json")
        done = CliRunner().invoke(app, ["train", f"part-{stage}.json", "train.steps=1", "train.batch=2"])
        assert done.exit_code == 0, done.output + str(done.exception)
    parts = ("--prior", "runs/part-prior", "--decoder", "runs/part-decoder", "--upsampler", "karlo:upsampler_64")
    call("assemble", "mine", "--clip", "karlo", *parts)
    call("generate", CAPTION, "-o", "mine.png", "--model", "mine", *FEW)
    call("vary", "x.png", "-o", "mine.gif", "--model", "mine", "--n", 2, "--size", 16, *ROUGH)
    made = torch.tensor(list(pixels("mine.png"))).float()
    best_of_two = pipe.with_prior(pipe.prior, candidates=2)
    expected = torch.tensor(list(best_of_two.generate(CAPTION, **SHORT).pil()[0].tobytes())).float()
    assert 0 < (made - expected).abs().mean() < 30  # one step does not change it beyond knowing


def part_of(model: str, name: str) -> Component[Any]:
    from unclip.checkpoint import open_pipeline

    return open_pipeline(model).components[name]()

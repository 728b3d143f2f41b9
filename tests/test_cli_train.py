"""`unclip config`, `train` and `assemble`: every stage from a folder of pictures, trained on, frozen, put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from typer.testing import CliRunner

from prior import ARNetworkConfig, ARPriorConfig, ContrastivePriorConfig, QuantizerConfig
from unclip import DiffusionPrior, UnCLIP
from unclip.cli import app
from unclip.cli.starters import starter
from unclip.cli.training import CLASSES, Training, build, config_of
from unclip.config import Config
from unclip.randomness import Noise
from unclip.results import to_pil
from unclip.training import load_ema
from upsamplers.filters import resize

pytestmark = pytest.mark.filterwarnings("ignore:.*cut to.*", "ignore:.*buckets.*")
TRAIN = {"steps": 2, "batch": 4, "lr": 1e-3, "warmup": 0, "log_every": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, and twenty captioned pictures of 64 pixels."""
    place = tmp_path_factory.mktemp("train")
    tiny.pipeline().save_pretrained(place / "model")
    (place / "pictures").mkdir()
    pictures = resize(Noise.of(1, range(20)).uniform((3, 4, 4)) * 1.6 - 0.8, (64, 64), "bilinear")
    for i, picture in enumerate(pictures):
        to_pil(picture).save(place / "pictures" / f"{i:02}.png")
        (place / "pictures" / f"{i:02}.txt").write_text(tiny.CAPTIONS[i % len(tiny.CAPTIONS)])
    return place


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output + str(result.exception)
    return result.output


def models() -> dict[str, Config]:
    prior, network = tiny.prior().config, tiny.prior().config.network
    ar = ARNetworkConfig(transformer=network.transformer, embed_dim=tiny.EMBED, context=tiny.CONTEXT, states_width=tiny.WIDTH)
    return {
        "clip": tiny.clip().config,
        "prior": prior.replace(sampling=prior.sampling.replace(variance="analytic")),
        "ar_prior": ARPriorConfig(network=ar, quantizer=QuantizerConfig(dims=0.9, buckets=8)),
        "contrastive_prior": ContrastivePriorConfig(network=network),
        "decoder": tiny.decoder().config,
        "upsampler": tiny.upsampler().config,
    }


def file(name: str, stage: str, **changes: Any) -> str:
    given: dict[str, Any] = {"stage": stage, "data": {"source": "pictures"}, "train": TRAIN}
    if stage in ("prior", "ar_prior", "contrastive_prior", "decoder"):
        given["clip"] = "model"
    if stage == "upsampler":
        given["data"]["size"] = 64
    if "start" not in changes:
        given["model"] = json.loads(models()[stage].to_json())
    path = Path(f"{name}.json")
    path.write_text(json.dumps(given | changes))
    return str(path)


def test_every_stage_from_pictures_to_a_pipeline() -> None:
    for stage in models():
        out = call("train", file(stage, stage, held_out={"source": "pictures"}))
        assert "step 2/2" in out and "examined" in out and out.splitlines()[-1] == f"runs/{stage}/model"
    chosen = ["--prior", "runs/prior", "--decoder", "runs/decoder"]
    chosen += ["--upsampler", "runs/upsampler", "--upsampler", "model:upsampler_256"]
    call("assemble", "mine", "--clip", "model", *chosen, "--ar-prior", "runs/ar_prior")
    pipe = UnCLIP.from_pretrained("mine")
    assert pipe.sizes == (16, 64, 256) and pipe.provenance["parts"]["prior"]["samples"] == 8
    assert torch.equal(pipe.prior.network.query, load_ema("runs/prior")["network.query"])
    assert pipe.generate("two dogs", size=64).images.isfinite().all()  # by the analytic variance, which was measured
    for kind in ("diffusion", "ar"):
        call("generate", "two dogs", "--model", "mine", "--prior", kind, "--size", "16", "-o", f"{kind}.png")
    call("assemble", "other", "--clip", "model", "--prior", "runs/contrastive_prior", "--decoder", "runs/decoder")
    assert UnCLIP.from_pretrained("other").generate("two dogs").images.shape == (1, 3, 16, 16)
    told = CliRunner().invoke(app, ["assemble", "third", "--clip", "runs/clip", *chosen])
    assert told.exit_code == 2 and "another CLIP" in told.output + told.stderr


def test_the_same_command_goes_on() -> None:
    name = file("going", "prior")
    call("train", name, "train.steps=1", "train.decay=constant", "--run", "runs/halves")
    out = call("train", name, "train.steps=3", "train.decay=constant", "--run", "runs/halves")
    assert "continuing" in out
    call("train", name, "train.steps=3", "train.decay=constant", "--run", "runs/whole")
    halves, whole = (DiffusionPrior.from_pretrained(Path("runs") / run / "model") for run in ("halves", "whole"))
    for a, b in zip(halves.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("start", ["model", "model/prior", "runs/from_model"])
def test_training_on_with_frozen_parameters(start: str) -> None:
    if start.startswith("runs"):
        call("train", file("from_model", "prior", start="model"))
    frozen = TRAIN | {"freeze": ["network.transformer.*", "network.out.*"]}
    out = call("train", file("tuned", "prior", start=start, train=frozen), "--run", f"runs/tuned_{start.replace('/', '_')}")
    assert "missing" in out or start != "model"  # the tiny prior has never seen an embedding
    folder = Path("model/prior") if start != "runs/from_model" else Path("runs/from_model/model")
    before = DiffusionPrior.from_pretrained(folder).state_dict()
    after = DiffusionPrior.from_pretrained(Path("runs") / f"tuned_{start.replace('/', '_')}" / "model").state_dict()
    for name, tensor in before.items():
        held = name.startswith(("network.transformer.", "network.out."))
        moved = name in ("network.query", "network.text.weight", "network.image_embed.weight")
        assert not held or torch.equal(tensor, after[name]), name
        assert not moved or not torch.equal(tensor, after[name]), name


def test_what_is_missing_in_a_start_is_made_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    network = tiny.prior().config.network
    tiny._build(DiffusionPrior, tiny.prior().config.replace(network=network.replace(null="empty")), 1).save_pretrained("bare")
    said: list[str] = []
    made = build(Training.load(file("bare", "prior", start="bare")), say=said.append)
    assert len(said) == 2 and "statistics" in said[0] and "null" in said[1]
    assert made.task.model.network.empty_mask.any() and made.task.model.scaling.norm != 1  # type: ignore[union-attr, operator]
    whole = made.task.model
    whole.save_pretrained("complete")  # type: ignore[operator]
    said.clear()
    build(Training.load(file("complete", "prior", start="complete")), say=said.append)
    assert said == []


def test_an_overfit_run_says_whether_it_works() -> None:
    name = file("wired", "prior", train=TRAIN | {"lr": 0.01})
    result = CliRunner().invoke(app, ["train", name, "--overfit", "4"])
    assert result.exit_code in (0, 1) and "sample" in result.output and not Path("runs/wired").exists()
    still = file("still", "prior", train=TRAIN | {"lr": 1e-12})
    broken = CliRunner().invoke(app, ["train", still, "--overfit", "4", "--overfit-steps", "9"])
    assert broken.exit_code == 1


@pytest.mark.parametrize("stage", ["clip", "prior", "ar_prior", "contrastive_prior", "decoder", "upsampler"])
@pytest.mark.parametrize("scale", ["small", "base"])
def test_configurations_are_written_and_can_be_built(stage: str, scale: str, tmp_path: Path) -> None:
    size = ["--size", "256"] if stage == "upsampler" else []
    clip = ["--clip", "model"] if stage not in ("clip", "upsampler") else []
    call("config", stage, "pictures", "--scale", scale, *size, *clip, "-o", str(tmp_path / "x.json"))
    training = Training.load(tmp_path / "x.json")
    assert training == starter(stage, "pictures", scale, "model" if clip else None, 256 if size else None)  # type: ignore[arg-type]
    if scale == "base" and stage == "clip":
        assert training.model is not None and training.model["name"] == "ViT-B-32"
        return
    config = config_of(training)
    if stage == "ar_prior":
        assert isinstance(config, ARPriorConfig)
        config = config.replace(quantizer=config.quantizer.replace(dims=4))
    with torch.device("meta"):
        part: Any = CLASSES[stage](config)
    count = sum(p.numel() for p in part.parameters()) / 1e6
    low, high = (1, 30) if scale == "small" else (60, 600)
    assert low < count < high, f"{stage}: {count:.1f}M"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stage": "priors"}, "priors"),
        ({"model": None}, "either model"),
        ({"start": "model", "model": {}}, "exactly one"),
        ({"clip": None}, "name it"),
        ({"clip": "nowhere"}, "nowhere"),
        ({"clip": "model/prior"}, "not a CLIP"),
        ({"model": {"network": {}}}, "model is no PriorConfig"),
        ({"start": "model:decoder", "model": None}, "is a Decoder"),
        ({"start": "model:none", "model": None}, "no part 'none'"),
        ({"data": {"source": "nowhere"}}, "nowhere"),
        ({"data": {"source": "pictures", "sizes": 3}}, "sizes"),
        ({"task": {"sam": 0.1}}, "task has settings"),
        ({"train": TRAIN | {"freeze": ["nothing*"]}}, "nothing"),
    ],
)
def test_bad_configurations_are_one_line(changes: dict[str, Any], told: str) -> None:
    name = file("bad", "prior")
    given = json.loads(Path(name).read_text()) | changes
    Path(name).write_text(json.dumps(given))
    result = CliRunner().invoke(app, ["train", name])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output + str(result.exception)
    assert told in result.stderr


def test_other_bad_input() -> None:
    assert "upsampler's config needs the side" in call("config", "upsampler", "pictures", "-o", "u.json", code=2)
    assert "no stage 'priors'" in call("config", "priors", "pictures", "-o", "u.json", code=2)
    call("config", "clip", "pictures", "-o", "written.json")
    assert "exists already" in call("config", "clip", "pictures", "-o", "written.json", code=2)
    assert "data.size is missing" in call("train", file("sizeless", "upsampler", data={"source": "pictures"}), code=2)
    parts = ["--clip", "model", "--prior", "model", "--decoder", "model"]
    assert "not an ARPrior" in call("assemble", "wrong", *parts, "--ar-prior", "model:prior", code=2)
    assert "no dtype 'half'" in call("assemble", "wrong", *parts, "--dtype", "half", code=2)
    assert not Path("wrong").exists()

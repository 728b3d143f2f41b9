"""`unclip config`, `train` and `assemble`: every stage from a folder of pictures, trained on, frozen, put together."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from typer import Exit
from typer.testing import CliRunner

from prior import ARNetworkConfig, ARPriorConfig, ContrastivePriorConfig, QuantizerConfig
from unclip import CLIP, DiffusionPrior, UnCLIP
from unclip.cli import app
from unclip.cli.common import Errors
from unclip.cli.starters import starter
from unclip.cli.train import _metadata
from unclip.config import Config
from unclip.data.embeddings import Embeddings, precompute
from unclip.data.open import open_data
from unclip.images import to_pil
from unclip.randomness import Noise
from unclip.runs import Training, build
from unclip.runs.names import component_class
from unclip.training import load_ema, read_log
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
    given: dict[str, Any] = {"data": {"source": "pictures"}, "train": TRAIN}
    if stage in ("prior", "ar_prior", "contrastive_prior", "decoder"):
        given["clip"] = "model"
    if stage == "upsampler":
        given["data"]["size"] = 64
    if "start" not in changes:
        given["model"] = {"class": component_class(models()[stage]).__name__, **json.loads(models()[stage].to_json())}
    path = Path(f"{name}.json")
    path.write_text(json.dumps(given | changes))
    return str(path)


def test_every_stage_from_pictures_to_a_pipeline() -> None:
    for stage in models():
        out = call("train", file(stage, stage, held_out={"source": "pictures"}))
        assert "step 2/2" in out and "validated" in out and out.splitlines()[-1] == f"runs/{stage}/model"
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


def test_a_disk_that_is_full_when_all_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    name = file("filled", "prior")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("unclip.files.sync", full)  # of the component at the end; states have been written then
        told = call("train", name, "--run", "runs/filled", code=2)
    assert "could not write" in told and "filled/model: No space left on device; nothing was left there." in told
    assert "But the trained weights are safe in runs/filled/state: make room, and the same command ends the training" in told
    call("train", name, "--run", "runs/filled")
    made, trained = DiffusionPrior.from_pretrained("runs/filled/model"), load_ema("runs/filled")
    assert all(torch.equal(weight, trained[name]) for name, weight in made.named_parameters())
    Path("runs/filled/model/notes.txt").write_text("mine")
    monkeypatch.setattr(sys.modules["unclip.runs.train"], "build", None)  # refused before anything is read
    assert "(it holds notes.txt)" in call("train", name, "train.steps=9", "--run", "runs/filled", code=2)


def test_another_training_in_a_begun_folder_is_refused_with_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = file("begun", "prior")
    call("train", name, "train.steps=2", "--run", "runs/begun")
    monkeypatch.setattr(sys.modules["unclip.runs.train"], "build", None)  # before anything is read
    told = call("train", name, "train.lr=0.5", "train.log_every=3", "clip=elsewhere", "--run", "runs/begun", code=2)
    assert 'model" -> "elsewhere"; train.lr: 0.001 -> 0.5. Put that back, or choose another folder' in told
    assert "with --run" in told and "--start runs/begun trains its weights on" in told and "load_ema" not in told
    told = call("train", name, "train.lr=0.5", "--run", "runs/begun", code=2)
    assert "Changed since: train.lr: 0.001 -> 0.5. Put" in told and "only places" not in told
    told = call("train", name, "train.steps=1", "--run", "runs/begun", code=2)
    assert "has done 2 steps already, more than the 1 asked for" in told


def test_the_home_folder_by_its_sign_everywhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python, a configuration and --option=~/x leave it: no shell has replaced it."""
    monkeypatch.setenv("HOME", str(place))
    name = file("at_home", "prior", clip="~/model", data={"source": "~/pictures"})
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    call("train", "~/at_home.json", "--run=~/runs/at_home")
    assert "continuing" in call("train", "~/at_home.json", "train.steps=3", "--run=~/runs/at_home")
    record = json.loads((place / "runs/at_home/training.json").read_text())
    assert record["data"]["source"] == f"{place}/pictures" and record["clip"] == f"{place}/model"
    assert load_ema("~/runs/at_home").keys() == load_ema(place / "runs/at_home").keys() and len(read_log("~/runs/at_home")) == 3
    assert "at_home: step 3" in call("report", "~/runs/at_home")
    call("assemble", "~/assembled", "--clip=~/model", "--prior=~/runs/at_home", "--decoder=~/model:decoder")
    call("train", "~/at_home.json", "start=~/runs/at_home", "--run=~/runs/further")
    assert "parameters" in call("plan", "~/at_home.json") and list(Path().iterdir()) == [] and name


def test_the_same_command_goes_on() -> None:
    name = file("going", "prior")
    call("train", name, "train.steps=1", "train.decay=constant", "--run", "runs/halves")
    out = call("train", name, "train.steps=3", "train.decay=constant", "--run", "runs/halves")
    assert "continuing" in out
    call("train", name, "train.steps=3", "train.decay=constant", "--run", "runs/whole")
    halves, whole = (DiffusionPrior.from_pretrained(Path("runs") / run / "model") for run in ("halves", "whole"))
    for a, b in zip(halves.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("start", ["model:prior", "model/prior", "runs/from_model"])
def test_training_on_with_frozen_parameters(start: str) -> None:
    if start.startswith("runs"):
        call("train", file("from_model", "prior", start="model:prior"))
    frozen = TRAIN | {"freeze": ["network.transformer.*", "network.out.*"]}
    out = call("train", file("tuned", "prior", start=start, train=frozen), "--run", f"runs/tuned_{start.replace('/', '_')}")
    assert "missing" in out or start != "model:prior"  # the tiny prior has never seen an embedding
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
    assert made.task.model.network.reader.empty_mask.any() and made.task.model.scaling.norm != 1  # type: ignore[union-attr, operator]
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
    config: Any = training.model
    if scale == "base" and stage == "clip":
        assert config.name == "ViT-B-32"
        return
    if stage == "ar_prior":
        assert isinstance(config, ARPriorConfig)
        config = config.replace(quantizer=config.quantizer.replace(dims=4))
    with torch.device("meta"):
        part: Any = component_class(config)(config)  # type: ignore[call-arg]
    count = sum(p.numel() for p in part.parameters()) / 1e6
    low, high = (1, 30) if scale == "small" else (60, 600)
    assert low < count < high, f"{stage}: {count:.1f}M"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stage": "priors"}, "priors"),
        ({"model": {"class": "Priors"}}, "Priors"),
        ({"model": {"network": {}}}, "must name its class"),
        ({"model": None}, "either model"),
        ({"start": "model"}, "model is a pipeline"),
        ({"clip": None}, "name it"),
        ({"clip": "nowhere"}, "nowhere"),
        ({"clip": "model/prior"}, "not a CLIP"),
        ({"model": {"class": "DiffusionPrior", "network": {}}}, "model is no PriorConfig"),
        ({"start": "model:decoder"}, "is a Decoder"),
        ({"start": "model:clip", "model": None}, "a CLIP is trained without another CLIP"),
        ({"start": "model:none", "model": None}, "no component 'none'"),
        ({"data": {"source": "nowhere"}}, "nowhere"),
        ({"data": {"source": "pictures", "sizes": 3}}, "sizes"),
        ({"task": {"class": "PriorTask"}}, "a PriorTask has no settings"),
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


@pytest.mark.parametrize("stage", ["prior", "ar_prior", "contrastive_prior", "decoder"])
def test_a_clip_of_other_widths_is_noticed_before_anything_is_embedded(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(CLIP, "encode_image")
    names = {"decoder": "conditions.image_embed.embed_dim"}
    name = names.get(stage, "network.embed_dim")
    training = Training.load(file("widths", stage)).override(f"model.{name}=11")
    with pytest.raises(ValueError, match=f"reads embeddings of 11 numbers, and model gives {tiny.EMBED}: name the CLIP that"):
        build(training)
    if stage != "decoder":
        training = Training.load(file("widths", stage)).override("model.network.context=7", "model.network.states_width=5")
        told = f"states of 5 numbers, and model gives {tiny.WIDTH}; captions of 7 positions, and model gives {tiny.CONTEXT}"
        with pytest.raises(ValueError, match=told):
            build(training)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("train pictures", "pictures is a folder, and what to train stands in a configuration: unclip config prior pictures -o"),
        ("train newcomr.json", "there is no file newcomr.json; there is newcomer.json"),
        ("train newcomer.jsn", "there is no file newcomer.jsn; there is newcomer.json"),
        ("train nowhere/newcomer.json", "there is no file nowhere/newcomer.json"),
        ("train newcomer.json --steps 500", "there is no option --steps: settings are written as name=value, for"),
        ("train newcomer.json --lr=1e-3", "there is no option --lr: settings are written as name=value, for inst"),
        ("plan newcomer.json batch=3", "no setting 'batch' (is train.batch meant?)"),
        ("info model/prior", "model/prior is one component of a pipeline: put components together with `unclip assemble`"),
        ("info newcomer", "newcomer is a training run: put components together with `unclip assemble`"),
    ],
)
def test_a_newcomers_slips_are_told_what_to_write(arguments: str, told: str) -> None:
    file("newcomer", "prior")
    Path("newcomer").mkdir(exist_ok=True)
    Path("newcomer/training.json").write_text("{}")
    assert told in call(*arguments.split(), code=2)


def test_a_configuration_for_data_that_are_not_here_warns() -> None:
    told = call("config", "clip", "nowhere", "-o", "absent.json")
    assert "warning: nowhere is not here" in told and Path("absent.json").is_file()
    for there in ("pictures", "s3://bucket/{0..9}.tar", "shards-*.tar"):
        assert call("config", "clip", there, "-o", f"there{len(there)}.json").count("\n") == 1


@pytest.fixture(scope="module")
def embedded(place: Path) -> None:
    """The pictures' embeddings as the CLIP of `model` and a stranger make them, in a folder and in one file."""
    tiny.clip(seed=1).save_pretrained(place / "stranger")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, clip in (("model", tiny.clip()), ("stranger", tiny.clip(seed=1))):
            call("embed", "pictures", f"of-{name}", "--model", name, "--per-shard", "8")
            made = precompute(clip, open_data("pictures", 32), f"of-{name}.safetensors")  # 32: not the size that is read later
            Embeddings(made.keys, made.image_embed).save(f"images-of-{name}.safetensors")


def with_data(stage: str, **data: Any) -> Training:
    return Training.load(file("with_data", stage, data=data))


@pytest.mark.parametrize("store", ["of-{}", "of-{}.safetensors", "images-of-{}.safetensors"])
def test_embeddings_of_another_clip_are_refused(embedded: None, store: str) -> None:
    right, wrong = store.format("model"), store.format("stranger")
    told = f"{wrong} holds embeddings of another CLIP than model"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(embedding|other data)")
        build(with_data("decoder", source="pictures", embeddings=right))
        two = [{"path": "pictures", "embeddings": right}, {"path": "pictures", "embeddings": right, "name": "again"}]
        build(with_data("decoder", source=two, size=16))
    for data in (
        {"source": "pictures", "embeddings": wrong},
        {"source": [two[0], two[1] | {"embeddings": wrong}], "size": 16},
    ):
        with pytest.raises(ValueError, match=told):
            build(with_data("decoder", **data))
        with pytest.raises(ValueError, match=told):
            build(with_data("decoder", source="pictures", embeddings=right).replace(held_out=with_data("decoder", **data).data))
    if not store.startswith("images"):
        build(with_data("prior", source=right))  # embeddings alone
        with pytest.raises(ValueError, match=told):
            build(with_data("prior", source=wrong))


def test_data_that_have_changed_since_they_were_embedded_are_told(embedded: None) -> None:
    text = Path("pictures/07.txt")
    before = text.read_text()
    text.write_text("another caption")
    try:
        with pytest.warns(UserWarning, match="of-model was made of other data than pictures, or they have changed since"):
            build(with_data("prior", source="pictures", embeddings="of-model"))
    finally:
        text.write_text(before)


def test_another_training_does_not_go_on_in_the_same_folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ["--run", str(tmp_path / "run")]
    (place / "copies").mkdir(exist_ok=True)
    for path in (place / "pictures").iterdir():
        (place / "copies" / path.name).write_bytes(path.read_bytes())
    name = file("mine", "prior", held_out={"source": "pictures"})
    # What failed before its first state is no run yet.
    assert "freeze" in call("train", name, 'train.freeze=["nothing"]', "model.text_drop=0.3", *run, code=2)
    call("train", name, *run)
    record = tmp_path / "run" / "training.json"
    assert Training.load(record).data.source == str(place / "pictures")
    assert _metadata(str(tmp_path / "run"))["training"]["data"]["source"] == "pictures"  # a model given away tells no folders
    written = record.read_bytes()
    told = call("train", name, "data.source=copies", "model.text_drop=0.2", *run, code=2)
    assert f'data.source: "{place}/pictures" -> "{place}/copies"' in told and "model.text_drop: 0.1 -> 0.2" in told
    assert "clip: " not in told and record.read_bytes() == written
    call("train", name, "train.steps=3", 'held_out.source="copies"', *run)  # the loop has its own say about `train`

    # The same places by other names.
    monkeypatch.chdir(tmp_path)
    for key in ("clip", "data.source"):
        assert f"{key}: " in call("train", str(place / name), "train.steps=3", *run, code=2)
    absolute = [f"clip={place}/model", f"data.source={place}/pictures", f"held_out.source={place}/pictures"]
    call("train", str(place / name), "train.steps=3", *absolute, *run)
    record.unlink()
    call("train", str(place / name), "train.steps=3", *absolute[:1], f"data.source={place}/copies", absolute[2], *run)


def test_several_processes_on_cpus_train_together(place: Path) -> None:
    name = file("together", "prior", train=TRAIN | {"eps": 1e-4})
    call("train", name, "--run", "runs/alone")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "-m", "unclip.cli"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("ACCELERATE_USE_CPU", None)
    command = [*launch, "train", name, "--folder", "runs/together"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("parameters") == 1 and done.stdout.count("step 2/2") == 1
    assert [row["step"] for row in read_log("runs/together")] == [row["step"] for row in read_log("runs/alone")]
    alone, together = load_ema("runs/alone"), load_ema("runs/together")
    for key, tensor in alone.items():
        torch.testing.assert_close(together[key], tensor, rtol=0, atol=1e-5, equal_nan=True)


def test_only_exhausted_memory_is_told_as_such(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    exhausted = (
        MemoryError(),
        torch.OutOfMemoryError("CUDA: of 80 GiB 0 are free"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    )
    for error in exhausted:
        with pytest.raises(Exit), Errors():
            raise error
        assert "out of memory: draw fewer pictures" in capsys.readouterr().err
    for message in ("CUDA error: an illegal memory access was encountered", "unsupported memory format option Preserve"):
        with pytest.raises(RuntimeError, match=message), Errors():
            raise RuntimeError(message)
    with monkeypatch.context() as without, pytest.raises(Exit), Errors():
        without.setitem(sys.modules, "torch", None)
        raise MemoryError

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("unclip.cli.train._train", full)
    told = call("train", file("large", "prior"), code=2)
    assert "train.micro_batch" in told and "train.checkpointing" in told and "--size" not in told


@pytest.mark.parametrize("scale", ["small", "base"])
def test_a_decoder_has_the_size_asked_for(scale: Any) -> None:
    made = starter("decoder", "pictures", scale, "model", 128)
    assert made.data.size == 128 and made.model is not None and made.model.image_size == 128  # type: ignore[attr-defined]
    assert starter("decoder", "pictures", scale, "model").model.image_size == 64  # type: ignore[union-attr]
    told = call("config", "decoder", "pictures", "--scale", scale, "--clip", "model", "--size", "100", "-o", "odd.json", code=2)
    assert f"divides by {16 if scale == 'small' else 8}; --size is 100" in told and not Path("odd.json").exists()

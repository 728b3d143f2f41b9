"""Runs that unclip 0.1.0 has begun: they go on bit for bit, or are refused with a message that says why.

`runs_0_1_0.json` is what commit 777bfba wrote into two run folders: training.json, the values of the state after two steps, and
the names and shapes of the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from unclip.cli import app
from unclip.images import to_pil
from unclip.randomness import Noise
from unclip.runs import Training, open_component
from unclip.training import TrainConfig
from unclip.training.state import State, save

pytestmark = pytest.mark.filterwarnings("ignore:.*caption.*")
OLD: dict[str, Any] = json.loads(Path(__file__).with_name("runs_0_1_0.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("legacy")
    tiny.pipeline().save_pretrained(place / "model")
    (place / "pictures").mkdir()
    for i, picture in enumerate(Noise.of(1, range(20)).uniform((3, 16, 16)) * 1.6 - 0.8):
        to_pil(picture).save(place / "pictures" / f"{i:02}.png")
        (place / "pictures" / f"{i:02}.txt").write_text(tiny.CAPTIONS[i % len(tiny.CAPTIONS)])
    return place


def training_json(stage: str, place: Path) -> str:
    return json.dumps(OLD[stage]["training"]).replace("PLACE", str(place))


def train(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert done.exit_code == code, done.output + str(done.exception)
    return done.output


def test_a_run_of_a_prior_goes_on_bit_for_bit(place: Path) -> None:
    file = place / "prior.json"
    file.write_text(training_json("prior", place))  # which `unclip config` wrote in the same form
    assert Training.load(file).train.validate_every == 1
    train(file, "train.steps=4", "--run", place / "whole")
    train(file, "train.steps=2", "--run", place / "halves")
    # As it was written then.
    (place / "halves" / "training.json").write_text(file.read_text())
    index = place / "halves" / "state" / "step-00000002" / "state.json"
    now, then = json.loads(index.read_text()), OLD["prior"]["state"]
    assert now.keys() - then.keys() == {"format", "files", "sha256"}
    model = json.loads(now["model"])
    assert model["sampling"].pop("repaint", None) is None  # is younger
    assert model == json.loads(then["model"]) and now["config"] != then["config"]
    del now["sha256"]
    index.write_text(json.dumps(now | then | {"format": 1}))
    assert "continuing" in train(file, "train.steps=4", "--run", place / "halves")
    for name in ("model", "ema", "optimizer"):
        last = Path("state", "step-00000004", f"{name}.safetensors")
        whole, halves = load_file(place / "whole" / last), load_file(place / "halves" / last)
        assert whole.keys() == halves.keys()
        assert all(torch.equal(whole[key].nan_to_num(), halves[key].nan_to_num()) for key in whole)


def test_a_run_of_a_decoder_is_refused_and_its_weights_train_on(place: Path) -> None:
    """Its settings and tensors have other names today."""
    run, file = place / "decoder", place / "decoder.json"
    file.write_text(training_json("decoder", place))
    run.mkdir()
    (run / "training.json").write_text(file.read_text())
    values = dict(OLD["decoder"]["state"])
    weights = {name: torch.full(shape, 0.01) for name, shape in OLD["decoder"]["shapes"].items()}
    save(run, State(values.pop("step"), {"model": weights, "ema": weights, "optimizer": {}}, values), keep=2)
    told = train(file, "--run", run, code=2)
    for words in ("another version of unclip has begun, stopped after step 2", "config is no DecoderConfig", f"start={run}"):
        assert words in told
    assert "another run" in train(file, "model.image_size=32", "--run", run, code=2)
    part = open_component(str(run))
    assert all(bool((parameter == 0.01).all()) for parameter in part.parameters())
    train(file, f"start={run}", "train.steps=1", "--run", place / "on")


def test_a_config_of_then_is_read_under_todays_names() -> None:
    config = TrainConfig.from_json(OLD["prior"]["state"]["config"])
    assert (config.validate_every, config.validation_samples) == (1, 4)
    with pytest.raises(ValueError, match="unknown field `examine_all`"):
        TrainConfig.from_json('{"steps": 1, "batch": 1, "lr": 1, "examine_all": 1}')

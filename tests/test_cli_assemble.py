"""`unclip assemble`: components put together to a pipeline of either kind, and told what they are where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from test_decoder_classifier import classifier
from test_pipelines_cascade import NAMES, decoder
from typer.testing import CliRunner

from decoder import Classifier
from unclip.cli import app
from unclip.conditions import Conditions, Label
from unclip.diffusion.schedule import ScheduleConfig
from unclip.pipelines.cascade import Cascade
from unclip.pipelines.load import from_pretrained


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("assemble")
    tiny.pipeline().save_pretrained(place / "model")
    return place


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output + str(result.exception)
    return result.output


def test_a_cascade_is_assembled_of_parts_that_need_no_clip() -> None:
    decoder(Conditions(label=Label(classes=3, names=NAMES))).save_pretrained("adm")
    call("assemble", "cascade", "--decoder", "adm", "--upsampler", "model:upsampler_64", "--name", "animals")
    pipe = from_pretrained("cascade")
    assert isinstance(pipe, Cascade) and pipe.sizes == (16, 64) and pipe.name == "animals"
    assert pipe.provenance["parts"] == {"decoder": {"from": "adm"}, "upsampler 1": {"from": "model:upsampler_64"}}
    call("generate", "--label", "dog", "--model", "cascade", "-o", "dog.png", "--steps", "decoder=2,upsampler_64=2")
    assert Path("dog.png").is_file()
    call("assemble", "editor", "--clip", "model", "--decoder", "model:decoder")
    assert from_pretrained("editor").prior is None


def test_a_cascade_is_assembled_with_its_guide() -> None:
    classifier(names=NAMES).save_pretrained("classifier")
    decoder(Conditions(label=Label(classes=3, names=NAMES))).save_pretrained("guided")
    call("assemble", "steered", "--decoder", "guided", "--guide", "classifier")
    pipe = from_pretrained("steered")
    assert isinstance(pipe.guide, Classifier) and pipe.provenance["parts"]["guide"] == {"from": "classifier"}
    told = call("assemble", "wrong", "--decoder", "guided", "--guide", "guided", code=2)
    assert "--guide guided is a Decoder, and what guides, as a Classifier, is expected here" in told
    told = call("assemble", "wrong", "--decoder", "model", "--clip", "model", "--guide", "classifier", code=2)
    assert "--guide is for models without a CLIP" in told
    classifier(names=NAMES, schedule=ScheduleConfig(name="linear")).save_pretrained("other")
    told = call("assemble", "wrong", "--decoder", "guided", "--guide", "other", code=2)
    assert "was trained with another noise schedule" in told and not Path("wrong").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--prior model:decoder --decoder model", "--prior model:decoder is a Decoder, and a prior (a DiffusionPrior, ARPrior"),
        ("--prior model:clip --decoder model", "--prior model:clip is a CLIP, and a prior"),
        ("--prior model --decoder model:prior", "--decoder model:prior is a DiffusionPrior, and a Decoder is expected here"),
        ("--prior model --decoder model --upsampler model:decoder", "--upsampler model:decoder is a Decoder, and an Upsampler"),
        ("--prior model --decoder model --ar-prior model:prior", "--ar-prior model:prior is a DiffusionPrior, not an ARPrior"),
        ("--decoder nowhere", "no model 'nowhere'"),
    ],
)
def test_a_component_of_another_kind_is_told_what_it_is(options: str, told: str) -> None:
    assert told in call("assemble", "wrong", "--clip", "model", *options.split(), code=2)
    assert not Path("wrong").exists()


def test_a_decoder_of_embeddings_needs_a_clip_and_a_prior_too() -> None:
    told = call("assemble", "wrong", "--decoder", "model", code=2)
    assert "--decoder model draws pictures for the image embeddings of a CLIP: name that with --clip" in told
    assert "name that too, with --clip" in call("assemble", "wrong", "--decoder", "model", "--prior", "model", code=2)

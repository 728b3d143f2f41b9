"""Every command that reads weights takes one of several in a folder, by `--variant`; none is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import tiny_data
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from unclip import UnCLIP
from unclip.cli import app
from unclip.data.embedding_shards import EmbeddingShards
from unclip.images import to_pil
from unclip.sampling import Inversion

COMMANDS = [
    "info model",
    "generate two-dogs --model model --size 16 -o x.png",
    "vary picture.png --model model --size 16 --n 1 -o x.png",
    "interpolate picture.png two-dogs --model model --size 16 --steps 2 -o x.gif",
    "diff picture.png --to dogs --model model --size 16 --steps 2 -o x.png",
    "reconstruct picture.png --model model --size 16 -o x.png",
    "invert picture.png --model model -o x.safetensors",
    "img2img picture.png --caption dogs --model model --size 16 -o x.png",
    "inpaint picture.png --mask mask.png --caption dogs --model model --size 16 -o x.png",
    "mix picture.png dogs --model model --size 16 -o x.png",
    "embed pictures new --model model",
    "assemble new --clip model --prior model --decoder model",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose CLIP and decoder are there twice, a picture, and captioned ones."""
    monkeypatch.chdir(tmp_path)
    tiny.pipeline(decoder=tiny.decoder(inversion=Inversion(steps=2, refine=0))).save_pretrained("model")
    other = tiny.decoder()
    with torch.no_grad():
        other.network.unet.output.bias.fill_(0.5)
    for name, component in (("decoder", other), ("clip", tiny.clip())):
        save_file(component.state_dict(), f"model/{name}/model.ema.safetensors")
    tiny_data.folder(tmp_path / "pictures", 2)
    to_pil(torch.zeros(3, 16, 16)).save("picture.png")
    to_pil(torch.ones(3, 16, 16) * torch.tensor([1.0, -1.0]).repeat(8)).save("mask.png")
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*has no weights 'ema'.*")
@pytest.mark.parametrize("command", COMMANDS)
def test_which_weights_are_meant(command: str) -> None:
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert "several weights, model.ema.safetensors, model.safetensors: say which (--variant ema or plain;" in done.stderr
    done = CliRunner().invoke(app, [*command.split(), "--variant", "ema"])
    assert done.exit_code == 0, done.output


@pytest.mark.filterwarnings("ignore:.*has no weights 'ema'.*")
def test_these_are_taken() -> None:
    for variant, bias in (("ema", True), ("plain", False)):
        CliRunner().invoke(app, ["assemble", variant, *COMMANDS[-1].split()[2:], "--variant", variant])
        assert bool(UnCLIP.from_pretrained(variant).decoder.network.unet.output.bias.eq(0.5).all()) == bias
    CliRunner().invoke(app, ["embed", "pictures", "new", "--model", "model", "--variant", "model.ema.safetensors"])
    assert len(EmbeddingShards("new")) == 2

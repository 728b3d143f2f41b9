"""open_clip's models by name: never without weights, from its tags, files, folders and the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory
from safetensors.torch import save_file
from typer.testing import CliRunner

from unclip import UnCLIP
from unclip.cli import app
from unclip.clip import CLIP, CLIPConfig
from unclip.clip.named import named_clip, placed
from unclip.images import to_pil
from unclip.randomness import Noise
from upsamplers.filters import resize

TINY = "ViT-tiny-of-tests"
CAPTIONS = ["a red heart", "a cat with a hat", "two dogs", "a house by the sea"]


@pytest.fixture(scope="module", autouse=True)
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A model of open_clip's that is small enough for tests, known to it by name, and its config."""
    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    (folder / f"{TINY}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{TINY}.json")
    yield config
    factory._MODEL_CONFIG_PATHS.remove(folder / f"{TINY}.json")
    factory._MODEL_CONFIGS.pop(TINY)


def network(seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.create_model(TINY).eval()


def answers(clip: CLIP) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([clip.encode_text(CAPTIONS).z_t, clip.encode_image(torch.linspace(-1, 1, 3072).view(1, 3, 32, 32))])


def test_names() -> None:
    tag = "laion2b_s34b_b79k"
    assert named_clip(f"open_clip:ViT-B-32:{tag}") == CLIPConfig(name="ViT-B-32", pretrained=tag)
    for name in ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "local-dir:/tmp/x y/m"):
        assert named_clip(f"open_clip:{name}") == CLIPConfig(name=name, pretrained="default")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ViT-B-32", "ViT-B-32 names no weights, .* at random: write open_clip:ViT-B-32:TAG, of its tags openai, .*laion2b_"),
        ("ViT-B-32:", "names no weights"),
        (TINY, f"write open_clip:{TINY}:TAG, of its tags none, or the path of a file"),
        ("ViT-B-33", "open_clip has no model 'ViT-B-33'; close to it: ViT-B-32"),
        ("ViT-B-32:opnai", "the CLIP 'ViT-B-32' has no weights 'opnai'; it has openai, laion"),
        ("ViT-B-32:/no/where.pt", "/no/where.pt is missing"),
        ("ViT-B-32:where.safetensors", "where.safetensors is missing"),
    ],
)
def test_a_model_without_weights_is_refused_at_once(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        named_clip(f"open_clip:{name}")


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_the_commands_refuse_it_before_they_read_anything(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "pictures")
    clip = f"open_clip:{TINY}"
    training = {"stage": stage, "start": "emoji", "clip": clip, "data": {"source": "pictures"}}
    Path("train.json").write_text(json.dumps({**training, "train": {"steps": 1, "batch": 2, "lr": 1e-3}}))
    for command in (
        ["embed", "pictures", "out", "--model", clip],
        ["config", stage, "pictures", "--clip", clip, "-o", "out.json"],
        ["train", "train.json", "--run", "out"],
        ["plan", "train.json"],
    ):
        told = call(*command, code=2)
        assert told.startswith("error: ") and told.count("\n") == 1 and "names no weights" in told, told
    assert sorted(os.listdir()) == ["pictures", "train.json"]


@pytest.mark.parametrize("kind", ["trainer.pt", "bare.pth", "model.bin", "compiled.pt", "x.safetensors", "jit.pt"])
def test_a_file_of_weights(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = network(seed=3)
    state, path = made.state_dict(), tmp_path / kind
    if kind == "trainer.pt":  # as open_clip's own training writes it
        parallel = {f"module.{name}": x for name, x in state.items()}
        moments = {"state": {0: {"exp_avg": torch.ones(2)}}}
        torch.save({"epoch": 3, "name": "run", "state_dict": parallel, "optimizer": moments}, path)
    elif kind == "compiled.pt":
        torch.save({"model": {f"_orig_mod.{name}": x for name, x in state.items()}}, path)
    elif kind.endswith(".safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path)
    with torch.no_grad():
        expected = CLIP(CLIPConfig(name=TINY))
    expected.network.load_state_dict(state)

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("torch was asked to read a file")

    monkeypatch.setattr(torch, "load", asked)
    monkeypatch.chdir(tmp_path)
    for source in (f"open_clip:{TINY}:{path}", f"open_clip:{TINY}:./{kind}"):
        clip = CLIP(named_clip(source)).eval()
        assert torch.equal(answers(clip), answers(expected.eval()))
    assert clip.record().pretrained is None  # the weights are stored with it


def test_files_that_are_of_another_model(tmp_path: Path) -> None:
    state = network().state_dict()
    state.pop("visual.proj")
    torch.save({**state, "more": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"x.pt, read as open_clip's {TINY}, does not fit its config: 1 missing: visual.proj; "):
        CLIP(named_clip(f"open_clip:{TINY}:{tmp_path / 'x.pt'}"))
    (tmp_path / "x.pt").write_bytes(b"not one")
    with pytest.raises(ValueError, match="x.pt cannot be read as torch weights"):
        CLIP(named_clip(f"open_clip:{TINY}:{tmp_path / 'x.pt'}"))
    torch.save({**network().state_dict(), "visual.proj": torch.full((16, 12), float("nan"))}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds NaN or infinite weights in visual.proj"):
        CLIP(named_clip(f"open_clip:{TINY}:{tmp_path / 'x.pt'}"))


def test_openais_own_files_have_its_activation(tmp_path: Path) -> None:
    """They hold three numbers beside the weights, by which they are known."""
    numbers = {name: torch.tensor(n) for name, n in {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}.items()}
    torch.save({**network().state_dict(), **numbers}, tmp_path / "openai.pt")
    torch.save(network().state_dict(), tmp_path / "other.pt")
    assert CLIP(named_clip(f"open_clip:{TINY}:{tmp_path / 'openai.pt'}")).record().quick_gelu is True
    assert CLIP(named_clip(f"open_clip:{TINY}:{tmp_path / 'other.pt'}")).record().quick_gelu is False


def test_a_folder_of_open_clip(model: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {"mean": [0, 0, 0]}}))
    config = named_clip(f"open_clip:local-dir:{tmp_path}")
    with pytest.raises(ValueError, match="open_clip cannot make .* could not be loaded"):  # where open_clip only warns
        CLIP(config)
    save_file(network(5).state_dict(), tmp_path / "open_clip_model.safetensors")
    clip = CLIP(config)
    assert torch.equal(clip.network.visual.proj, network(5).visual.proj) and clip.record().mean == (0, 0, 0)
    caplog.clear()
    CLIP(clip.record())  # whose weights come from the folder that it is saved in
    assert caplog.records == []


def test_paths_in_names_are_placed() -> None:
    def whole(path: str) -> str:
        return f"/here/{path}"

    for source, expected in {
        f"open_clip:{TINY}:w.pt": f"open_clip:{TINY}:/here/w.pt",
        "open_clip:local-dir:models/x": "open_clip:local-dir:/here/models/x",
        "open_clip:hf-hub:a/b": "open_clip:hf-hub:a/b",
        "open_clip:ViT-B-32:openai": "open_clip:ViT-B-32:openai",
        "open_clip:ViT-B-32": "open_clip:ViT-B-32",
    }.items():
        assert placed(source, whole) == expected


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output + str(result.exception)
    return result.stderr if code else result.output


def pictures(folder: Path) -> None:
    folder.mkdir()
    for i, picture in enumerate(resize(Noise.of(1, range(12)).uniform((3, 4, 4)) * 1.6 - 0.8, (64, 64), "bilinear")):
        to_pil(picture).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(CAPTIONS[i % len(CAPTIONS)])


@pytest.mark.filterwarnings("ignore:.*buckets.*", "ignore:.*cut to.*")
def test_from_embed_to_assemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own weights of a model of open_clip: embed, config, train a prior and a decoder, assemble, generate."""
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "pictures")
    torch.save(network(7).state_dict(), "weights.pt")
    clip = f"open_clip:{TINY}:weights.pt"
    assert "12 pictures" in call("embed", "pictures", "embedded", "--model", clip)
    for stage in ("prior", "decoder"):
        call("config", stage, "pictures", "--clip", clip, "--scale", "small", "-o", f"{stage}.json")
        settings = ["train.steps=2", "train.batch=4", "train.warmup=0", "data.embeddings=embedded"]
        call("train", f"{stage}.json", *settings, "--run", f"runs/{stage}")
    call("assemble", "model", "--clip", clip, "--prior", "runs/prior", "--decoder", "runs/decoder")
    pipe = UnCLIP.from_pretrained("model")
    assert torch.equal(pipe.clip.network.visual.proj, network(7).visual.proj)
    assert pipe.generate("two dogs", decoder=pipe.decoder.config.sampling.replace(steps=2)).images.isfinite().all()


def test_what_open_clip_warns_of_reaches_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line each, of the commands, which hide what other libraries have to say."""
    import logging
    import warnings

    made = open_clip.get_tokenizer
    here = Path(factory.__file__)

    def noisy(name: str) -> Any:
        logging.getLogger("transformers").warning("look here")
        lines = ("import logging, warnings", "logging.warning('a log\\nof two lines')", "warnings.warn('a warning')")
        exec(compile("\n".join(lines), str(here), "exec"), {})
        warnings.warn_explicit("deprecated", UserWarning, torch.__file__, 1)
        return made(name)

    monkeypatch.setattr(open_clip, "get_tokenizer", noisy)
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "pictures")
    torch.save(network().state_dict(), "weights.pt")
    result = CliRunner().invoke(app, ["embed", "pictures", "out", "--model", f"open_clip:{TINY}:weights.pt"])
    lines = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert lines == ["warning: open_clip: a log of two lines", "warning: open_clip: a warning"]
    assert "look here" not in result.stderr and "deprecated" not in result.stderr

"""What every command does with an output that is there already, or is read too; and that the same run writes the same bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_data
from test_runs_report import run as log_of_a_run
from typer.testing import CliRunner

from unclip.cli import app
from unclip.editing.pca import PCA
from unclip.images import to_pil
from unclip.randomness import Noise
from unclip.sampling import Inversion

ROOT = Path(__file__).parents[1]
DRAW = ("--model", "model", "--size", "16")
FILES = {  # outputs, and the commands that write them
    "one.png": ("generate", "a red heart", *DRAW),
    "several-1.png": ("generate", "a red heart", "two dogs", *DRAW, "-o", "several.png"),
    "folder/00007.png": ("generate", "a red heart", *DRAW, "--n", "2", "--first", "6", "-o", "folder"),
    "vary.png": ("vary", "x.png", *DRAW, "--n", "2"),
    "edits/00003.png": ("vary", "xy.safetensors", *DRAW, "--n", "2", "-o", "edits"),
    "path.gif": ("interpolate", "x.png", "y.png", *DRAW, "--steps", "3"),
    "path.webp": ("interpolate", "x.png", "a red heart", *DRAW, "--steps", "3"),
    "frames/00004.png": ("interpolate", "x.png", "y.png", "x.png", *DRAW, "--steps", "3", "-o", "frames"),
    "diff.png": ("diff", "x.png", "--to", "two dogs", *DRAW, "--steps", "2"),
    "diffs/00001.png": ("diff", "x.png", "--to", "two dogs", *DRAW, "--steps", "2", "-o", "diffs"),
    "again.png": ("reconstruct", "x.png", *DRAW),
    "components/00001.png": ("reconstruct", "x.png", *DRAW, "--pca", "2,5", "-o", "components"),
    "img2img.png": ("img2img", "x.png", "--caption", "dogs", *DRAW),
    "mix.png": ("mix", "x.png", "a red heart", *DRAW),
    "latent.safetensors": ("invert", "x.png", "--model", "model"),
    "check.json": ("data", "check", "pictures", "--json", "check.json"),
    "prior.json": ("config", "prior", "pictures", "--clip", "model"),
    "report.png": ("report", "run"),
}
FOLDERS = {
    "shards": ("data", "pack", "pictures", "shards"),
    "mine": (
        "assemble",
        "mine",
        "--clip",
        "model",
        "--prior",
        "model",
        "--decoder",
        "model",
        "--upsampler",
        "model:upsampler_64",
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, pictures, a latent of two, and a run."""
    place = tmp_path_factory.mktemp("outputs")
    components = PCA.fit(Noise.of(0, range(40)).normal((tiny.EMBED,)))
    pipe = tiny.pipeline(decoder=tiny.decoder(inversion=Inversion(steps=3, refine=0)), pca=components)
    pipe.save_pretrained(place / "model")
    pictures = Noise.of(1, range(2)).uniform((3, 16, 16)) * 2 - 1
    for name, picture in zip("xy", pictures):
        to_pil(picture).save(place / f"{name}.png")
    pipe.invert(pictures).save(place / "xy.safetensors")
    tiny_data.folder(place / "pictures", 3)
    log_of_a_run(place / "run")
    return place


@pytest.fixture(autouse=True)
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is read, in a folder of its own."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output + str(done.exception)
    return done.stderr


def full(output: str, words: tuple[str, ...]) -> tuple[str, ...]:
    return words if "-o" in words or "--json" in words else (*words, "-o", output)


def hashes() -> dict[str, str]:
    files = (path for path in Path().rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusing takes no model and no reading of data."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("was loaded")

    loaders = ["cli.generate.load_any", "cli.steer.load_any", "cli.edit.load", "cli.job.load", "cli.starters.load_clip"]
    for name in (*loaders, "data.check.check", "runs.open_component", "data.open.open_source"):
        monkeypatch.setattr(f"unclip.{name}", fail)


@pytest.mark.parametrize("output", FILES)
def test_files_that_are_there_are_refused_at_once(output: str, nothing_is_loaded: None) -> None:
    Path(output).parent.mkdir(exist_ok=True)
    for link in (False, True):
        Path(output).symlink_to("nowhere") if link else Path(output).write_text("mine")
        before = sorted(Path().rglob("*"))
        told = call(*full(output, FILES[output]), code=2)
        assert told.startswith(f"error: {output} exists already: choose another name") and told.count("\n") == 1
        assert sorted(Path().rglob("*")) == before and (link or Path(output).read_text() == "mine")
        Path(output).unlink()


@pytest.mark.parametrize(
    "output",
    ["one.png", "edits/00003.png", "path.webp", "latent.safetensors", "check.json", "prior.json", "report.png"],
)
def test_overwrite_and_the_same_run_writes_the_same_bytes(output: str) -> None:
    words = full(output, FILES[output])
    call(*words)
    first = hashes()
    target = Path("target")
    target.write_text("mine")
    Path(output).unlink()
    Path(output).symlink_to(target.absolute())  # is replaced, and what it leads to stays
    call(*words, "--overwrite")
    assert not Path(output).is_symlink() and target.read_text() == "mine"
    target.unlink()
    assert hashes() == first and output in first


@pytest.mark.parametrize("output", FOLDERS)
def test_folders_too(output: str, nothing_is_loaded: None) -> None:
    Path(output).mkdir()
    (Path(output) / "thesis.txt").write_text("mine")
    for more, told in (((), "choose a new one"), (("--overwrite",), r"choose a new one (it holds thesis.txt)")):
        assert told in call(*FOLDERS[output], *more, code=2)
    assert os.listdir(output) == ["thesis.txt"]


@pytest.mark.parametrize("output", FOLDERS)
def test_folders_are_replaced_by_what_the_command_makes(output: str) -> None:
    call(*FOLDERS[output])
    first = hashes()
    assert "or have it replaced with --overwrite" in call(*FOLDERS[output], code=2)
    assert hashes() == first
    call(*FOLDERS[output], "--overwrite")
    assert hashes() == first and any(path.startswith(f"{output}/") for path in first)


def test_embeddings_go_on_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b"):
        call("embed", "pictures", folder, "--model", "model")
    assert {k[2:]: v for k, v in hashes().items() if k[:2] == "a/"} == {k[2:]: v for k, v in hashes().items() if k[:2] == "b/"}
    monkeypatch.setattr("unclip.runs.load_clip", lambda name: pytest.fail("was loaded"))
    assert "model is not empty and holds no embeddings" in call("embed", "pictures", "model", "--model", "model", code=2)
    assert "cannot write" in call("embed", "pictures", "x.png/new", "--model", "model", code=2)


@pytest.mark.parametrize(
    "words",
    [
        ("vary", "x.png", "-o", "x.png"),
        ("vary", "x.png", "-o", "./new/../x.png"),
        ("vary", "x.png", "-o", "link.png"),
        ("vary", "link.png", "-o", "x.png"),
        ("interpolate", "a red heart", "x.png", "-o", "x.png"),
        ("diff", "x.png", "--to", "two dogs", "-o", "x.png"),
        ("reconstruct", "x.png", "-o", "x.png"),
        ("reconstruct", "edits/00000.png", "-o", "edits"),
        ("img2img", "x.png", "-o", "x.png"),
        ("invert", "picture.safetensors", "-o", "picture.safetensors"),
        ("data", "check", "table.json", "--json", "table.json"),
        ("data", "check", "pictures", "--json", "pictures/a.json"),
        ("data", "pack", "shards", "shards"),
        ("data", "pack", "shards/00000.tar", "shards"),
        ("assemble", "model", "--clip", "emoji", "--prior", "emoji", "--decoder", "model"),
        ("assemble", "model", "--clip", "emoji", "--prior", "emoji", "--decoder", "emoji", "--upsampler", "model:upsampler_64"),
    ],
)
def test_what_is_read_is_never_replaced(words: tuple[str, ...], nothing_is_loaded: None) -> None:
    os.mkdir("new")
    os.symlink("x.png", "link.png")
    for name, source in {"edits/00000.png": "x.png", "picture.safetensors": "x.png", "pictures/a.json": "x.png"}.items():
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(source, name)  # a picture under the name of a latent too
    os.mkdir("shards")
    for name in ("table.json", "shards/00000.tar"):
        Path(name).write_bytes(b"PAR1")
    before = hashes()
    told = call(*words, "--overwrite", code=2)
    assert "is read here" in told and "choose another" in told and told.count("\n") == 1
    assert hashes() == before


@pytest.mark.parametrize("words", [("info", "model"), ("--help",)])
def test_a_reader_that_has_seen_enough(words: tuple[str, ...]) -> None:
    """As `unclip info | head -0`: status 0 or that of a broken pipe, and not a word."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    end, start = os.pipe()
    os.close(end)
    done = subprocess.run([sys.executable, "-m", "unclip.cli", *words], stdout=start, stderr=subprocess.PIPE, env=environment)
    os.close(start)
    assert done.stderr == b"" and done.returncode in (0, 1)

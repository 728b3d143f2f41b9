"""The page docs/training.md: every command of it, in its order, with few steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unclip.cli import app
from unclip.images import to_pil
from unclip.randomness import Noise
from upsamplers.filters import resize

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
COMMANDS = [line for block in re.findall(r"```\n(.*?)```", PAGE.read_text(), re.DOTALL) for line in block.strip().splitlines()]
FEW = ["train.steps=2", "train.batch=2", "train.log_every=1", "train.validation_samples=4", "train.precision=float32"]
CAPTIONS = ["red heart", "grinning cat", "thumbs up", "a dog"]


def pictures(folder: Path, start: int, count: int) -> None:
    (folder / "some").mkdir(parents=True)
    made = resize(Noise.of(1, range(start, start + count)).uniform((3, 4, 4)) * 1.6 - 0.8, (256, 256), "bilinear")
    for i, picture in enumerate(made, start):
        to_pil(picture).save(folder / "some" / f"{i:02}.jpg")
        (folder / "some" / f"{i:02}.txt").write_text(CAPTIONS[i % len(CAPTIONS)])


@pytest.mark.filterwarnings("ignore")
def test_every_command_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "pictures", 0, 18)
    pictures(tmp_path / "held-out", 18, 4)
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) >= 17 and all(command.startswith("unclip ") for command in COMMANDS)
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        if words[0] == "train":
            words[2:2] = FEW
            words += ["--overfit-steps", "2"]
        result = CliRunner().invoke(app, words)
        # A self-test of two steps must fail, and says so by its status.
        assert result.exit_code == ("--overfit" in words), f"{command}\n{result.output}{result.exception!r}"
    assert (tmp_path / "picture.png").stat().st_size > 1000 and (tmp_path / "prior.png").stat().st_size > 1000

"""The page docs/steer.md: its Python as printed with the shipped weights, and its commands as far as their options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import tiny
import torch
from typer.testing import CliRunner

from unclip.cli import app, generate, steer
from unclip.images import to_pil

PAGE = Path(__file__).parents[1] / "docs" / "steer.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
COMMANDS = [
    line for block in re.findall(r"```\n(unclip .*?)```", PAGE.read_text(), re.DOTALL) for line in block.strip().splitlines()
]


def test_snippets_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, snippet in enumerate(SNIPPETS):
        exec(compile(snippet, f"docs/steer.md, snippet {number}", "exec"), names)
    told = capsys.readouterr().out
    assert "0.50 red heart + 0.25 woman.png + 0.25 latent" in told and "stopped" in told and len(SNIPPETS) == 7
    assert {path.name for path in tmp_path.iterdir()} >= {"farmer.png", "twice.png", "cook.png", "apple_preview.png"}


@pytest.mark.filterwarnings("ignore")
def test_every_command_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model: what is tested is that they are written as the command takes them."""
    monkeypatch.chdir(tmp_path)
    pipe = tiny.pipeline()
    for module in (generate, steer):
        monkeypatch.setattr(module, "load_any", lambda *a, **k: pipe)
    picture, hat = torch.rand(3, 40, 40) - 0.5, -torch.ones(3, 40, 40)
    hat[:, :15] = 1
    to_pil(picture).save("woman.png")
    to_pil(hat).save("hat.png")
    assert len(COMMANDS) == 6
    for command in COMMANDS:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{command}\n{done.output}{done.exception!r}"


def test_pictures_of_the_page_are_there() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", PAGE.read_text()):
        assert (PAGE.parent / path).stat().st_size > 1000, path

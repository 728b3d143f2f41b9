"""The recipe runner, on a toy recipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import experiments.train
from experiments.recipes import Recipe, find, names
from unclip.randomness import Noise
from unclip.training.task import Task
from unclip.types import Batch, Losses

MODULE = """
from __future__ import annotations
from test_training_recipes import ToyRecipe
from unclip.training import TrainConfig

def line() -> ToyRecipe:
    return ToyRecipe(train=TrainConfig(steps=3, batch=2, lr=0.1, warmup=0), slope=2.0)

def steep() -> ToyRecipe:
    return line().replace(slope=9.0)

def helper() -> int:
    return 3
"""


class ToyRecipe(Recipe, frozen=True, kw_only=True):
    slope: float

    def build(self) -> tuple[Task, Line]:
        return LineTask(), Line(self.slope)

    def finish(self, model: nn.Module, run_dir: Path) -> None:
        assert not model.training
        (run_dir / "slope.txt").write_text(f"{model.weight.item()}")


class LineTask(Task):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        assert batch.image_embed is not None
        x, y = batch.image_embed.split(1, 1)
        return Losses((self.model(x) - y).square().flatten(), None, {})


class Line:
    def __init__(self, slope: float):
        self.keys, self.slope = ["a", "b", "c"], slope

    def __len__(self) -> int:
        return 3

    def batch(self, indices: list[int], noise: Noise | None = None) -> Batch:
        x = torch.tensor(indices)[:, None] + 1.0
        return Batch(keys=[self.keys[i] for i in indices], image_embed=torch.cat([x, self.slope * x], 1))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes in place of the real one."""
    import experiments.recipes as package

    (tmp_path / "toy.py").write_text(MODULE)
    monkeypatch.setattr(package, "__path__", [str(tmp_path)])
    monkeypatch.setitem(sys.modules, "test_training_recipes", sys.modules[__name__])
    yield tmp_path
    sys.modules.pop("experiments.recipes.toy", None)


def test_recipes_are_found_by_name(toy: Path) -> None:
    assert names() == ["toy.line", "toy.steep"]
    assert find("toy.steep").slope == 9.0
    for wrong in ("toy.lime", "tox.line", "line"):
        with pytest.raises(ValueError, match=f"no recipe '{wrong}'; there are toy.line, toy.steep"):
            find(wrong)


def test_training_a_recipe_with_settings(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = toy / "run"
    assert experiments.train.main(["toy.line", "train.steps=300", "--run", str(run), "slope=3", "train.ema=0.5"]) == 0
    assert float((run / "slope.txt").read_text()) == pytest.approx(3, abs=0.01)
    recipe = ToyRecipe.load(run / "recipe.json")
    assert recipe == find("toy.line").override("train.steps=300", "slope=3", "train.ema=0.5")
    assert "3 samples" in capsys.readouterr().out
    # Again with nothing left to do, and from its weights in a new folder.
    assert experiments.train.main(["toy.line", "train.steps=300", "--run", str(run), "slope=3", "train.ema=0.5"]) == 0
    arguments = ["toy.line", "train.steps=1", "train.lr=1e-9", "--run", str(toy / "on"), "--init", str(run)]
    assert experiments.train.main(arguments) == 0
    assert float((toy / "on" / "slope.txt").read_text()) == pytest.approx(3, abs=0.01)


def test_mistakes_are_one_line(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["toy.line", "train.stepps=3"], "in place of 'stepps'"),
        (["toy.curve"], "there are toy.line"),
        (["toy.line", "train.lr=-1"], "lr is -1"),
        (["toy.line", "--init", str(toy), "--run", str(toy / "x")], "no complete training state"),
    ):
        assert experiments.train.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    script = Path(experiments.train.__file__)
    result = subprocess.run([sys.executable, str(script), "nothing.here"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and "no recipe 'nothing.here'" in result.stderr

"""Recipes by name, on a toy recipe whose component, task and data are all of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unclip.checkpoint import Component
from unclip.cli import app
from unclip.data.spec import DataSpec
from unclip.runs import Training, open_component
from unclip.runs.components import RECORD
from unclip.runs.names import UnknownName, class_named
from unclip.runs.recipes import find, functions, load

MODULE = """
from __future__ import annotations

from collections.abc import Sequence
import torch
from torch import nn

from unclip.checkpoint import Component
from unclip.config import Config
from unclip.data.spec import DataSpec
from unclip.randomness import Noise
from unclip.runs import Training
from unclip.training import TrainConfig
from unclip.training.task import Task
from unclip.types import Batch, Losses


class LineConfig(Config, frozen=True, kw_only=True):
    bias: bool = False


class Line(Component[LineConfig]):
    config_class = LineConfig
    task_class = "LineTask"

    def __init__(self, config: LineConfig):
        super().__init__()
        self.config, self.network = config, nn.Linear(1, 1, config.bias)


class LineTask(Task):
    def __init__(self, model: Line):
        super().__init__()
        self.model = model

    @classmethod
    def reads(cls, config: Config) -> tuple[str, ...]:
        return ("image_embed",)

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        x, y = batch.image_embed.split(1, 1)
        return Losses((self.model.network(x) - y).square().flatten(), None, {})


class LineData(DataSpec, frozen=True, kw_only=True):
    slope: float

    @property
    def embedded(self) -> bool:
        return True

    def open(self, classes: Sequence[str] | None = None) -> Points:
        return Points(self.slope)


class Points:
    def __init__(self, slope: float):
        self.keys, self.slope = ["a", "b", "c"], slope

    def __len__(self) -> int:
        return 3

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        x = torch.tensor(indices)[:, None] + 1.0
        return Batch(keys=[self.keys[i] for i in indices], image_embed=torch.cat([x, self.slope * x], 1))


def line() -> Training:
    train = TrainConfig(steps=3, batch=2, lr=0.1, warmup=0)
    return Training(model=LineConfig(), data=LineData(slope=2.0), train=train)


def steep() -> Training:
    return line().replace(data=LineData(slope=9.0))


def of(slope: float) -> Training:
    return line().replace(data=LineData(slope=slope))


def helper() -> int:
    return 3
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of recipes in place of the real one."""
    import experiments.recipes as package

    (tmp_path / "toy.py").write_text(MODULE)
    monkeypatch.setattr(package, "__path__", [str(tmp_path)])
    yield tmp_path
    sys.modules.pop("experiments.recipes.toy", None)


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output + str(result.exception)
    return result.output


def slope(run: Path) -> float:
    return float(open_component(str(run)).network.weight)  # type: ignore[union-attr, arg-type]


def test_recipes_are_found_by_name(toy: Path) -> None:
    assert list(functions()) == ["toy.line", "toy.steep"]
    assert find("toy.steep").data.slope == 9.0  # type: ignore[attr-defined]
    for wrong in ("toy.lime", "tox.line", "line"):
        with pytest.raises(ValueError, match=f"no recipe '{wrong}'; there are toy.line, toy.steep"):
            find(wrong)


def test_training_a_recipe_with_settings(toy: Path) -> None:
    run, settings = toy / "run", ["train.steps=300", "data.slope=3", "train.ema=0.5"]
    out = call("train", "toy.line", *settings, "--run", str(run))
    assert "Line: " in out and "3 samples" in out and slope(run) == pytest.approx(3, abs=0.01)
    assert Training.load(run / RECORD) == find("toy.line").override(*settings)
    # Again with nothing left to do, and from its weights in a new folder.
    call("train", "toy.line", *settings, "--run", str(run))
    for name in ("--start", "--init"):
        arguments = ["toy.line", "train.steps=1", "train.lr=1e-9", "--run", str(toy / f"on{name}"), name, str(run)]
        call("train", *arguments)
        assert slope(toy / f"on{name}") == pytest.approx(3, abs=0.01)
    (run / "model" / "model.safetensors").unlink()
    (run / "model" / "config.json").unlink()
    (run / "model").rmdir()
    assert slope(run) == pytest.approx(3, abs=0.01), "of a run that has not ended the averaged weights are taken"


def test_the_json_of_a_recipe_is_the_same_training(toy: Path) -> None:
    call("config", "toy.steep", "-o", str(toy / "steep.json"))
    assert (toy / "steep.json").read_text() == call("train", "toy.steep", "--show")
    written = (toy / "steep.json").read_text()
    assert '"class": "Line"' in written and '"class": "LineData"' in written
    assert load(str(toy / "steep.json")) == find("toy.steep")
    for what, run in (("toy.steep", "by_name"), (str(toy / "steep.json"), "by_file")):
        call("train", what, "--run", str(toy / run))
    assert slope(toy / "by_name") == slope(toy / "by_file")
    assert "exists already" in call("config", "toy.steep", "-o", str(toy / "steep.json"), code=2)


def test_a_file_may_name_classes_of_recipes_that_nobody_has_imported(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toy / "toy.py").write_text(MODULE.replace("Line", "Curve").replace("Points", "Places"))
    data, train = {"class": "CurveData", "slope": 1}, {"steps": 3, "batch": 2, "lr": 0.1}
    file = toy / "curve.json"
    file.write_text(json.dumps({"model": {"class": "Curve"}, "data": data, "train": train}))
    with pytest.raises(UnknownName, match="no component 'Curve'"):
        class_named("Curve", Component)
    assert load(str(file)).name == "Curve" and class_named("CurveData", DataSpec).__name__ == "CurveData"


def test_mistakes_are_one_line(toy: Path) -> None:
    (toy / "begun").mkdir()
    (toy / "begun" / RECORD).write_text(find("toy.line").to_json())
    for arguments, words in (
        (["toy.line", "train.stepps=3"], "in place of 'stepps'"),
        (["toy.curve"], "there are toy.line"),
        (["toy.line", "train.lr=-1"], "lr is -1"),
        (["toy.line", "--init", str(toy / "begun"), "--run", str(toy / "x")], "no complete training state"),
        (["toy.line", "model.class=Lime"], "no component 'Lime'"),
        (["toy.line", "model.curve=1"], "in place of 'curve'"),
        (["toy.line", "clip=emoji", "--run", str(toy / "x")], "leave clip out"),
    ):
        result = CliRunner().invoke(app, ["train", *arguments])
        assert result.exit_code == 2, result.output + str(result.exception)
        assert result.stderr.startswith("error: ") and words in result.stderr and result.stderr.count("\n") == 1


def test_recipes_are_those_of_the_current_folder(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-m", "unclip.cli", "train", "nothing.here"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and "no recipe 'nothing.here'; there are emoji.clip" in result.stderr
    (tmp_path / "experiments" / "recipes").mkdir(parents=True)
    for folder in ("experiments", "experiments/recipes"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "experiments" / "recipes" / "mine.py").write_text(MODULE)
    command[-1:] = ["mine.steep", "--show"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and '"slope": 9.0' in result.stdout, result.stderr

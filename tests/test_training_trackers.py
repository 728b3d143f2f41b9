"""TensorBoard's files hold what was logged; W&B is told the same; a missing library is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
from accelerate import Accelerator

import unclip.training.trackers
from unclip.training import TrainConfig
from unclip.training.trackers import Trackers

CONFIG = TrainConfig(steps=9, batch=2, lr=0.5)
ROWS: list[dict[str, Any]] = [
    {"step": 1, "loss": 2.0, "loss_q1": None, "lr": 0.5},
    {"step": 2, "event": "skipped", "loss": float("nan")},
    {"step": 2, "loss": 1.0, "lr": 0.25, "skipped": 1},
    {"step": 2, "event": "validated", "cosine": 0.5, "cosine/text": 0.25, "psnr": float("inf")},
]


class Main:
    is_main_process = True


class Other:
    is_main_process = False


def tell(trackers: Trackers) -> None:
    for row in ROWS:
        trackers.log(row, row["step"])
    trackers.close()


class Fake:
    """Notes down how W&B's tracker is used."""

    made: list[Fake] = []

    def __init__(self, project: str, **options: Any):
        self.calls: list[tuple[Any, ...]] = [(project, options)]
        Fake.made.append(self)

    def start(self) -> None:
        self.calls.append(("start",))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(("config", values))

    def log(self, values: dict[str, Any], step: int) -> None:
        self.calls.append((step, values))

    def finish(self) -> None:
        self.calls.append(("finish",))


def test_wandb_is_told_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerate.tracking, "WandBTracker", Fake)
    monkeypatch.setattr(unclip.training.trackers, "find_spec", lambda name: name)
    Fake.made.clear()
    for _ in range(2):
        tell(Trackers(("wandb",), tmp_path / "my run", Main(), CONFIG))  # type: ignore[arg-type]
    first, second = Fake.made
    (project, options), started, (_, config), *logged, finished = first.calls
    assert (project, options["name"], started, finished) == ("unclip", "my run", ("start",), ("finish",))
    assert config["lr"] == 0.5 and config["steps"] == 9
    assert logged == [
        (1, {"train/loss": 2.0, "train/lr": 0.5}),
        (2, {"train/loss": 1.0, "train/lr": 0.25, "train/skipped": 1}),
        (2, {"held_out/cosine": 0.5, "held_out/cosine/text": 0.25}),
    ]
    assert second.calls[0][1] == options and options["resume"] == "allow", "the same run when it is continued"
    tell(Trackers(("wandb",), tmp_path, Other(), CONFIG))  # type: ignore[arg-type]
    assert len(Fake.made) == 2, "other processes say nothing"


def test_tensorboard_holds_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(Trackers(("tensorboard",), tmp_path, Accelerator(cpu=True), CONFIG))
    # A second run, from step 2 on: what the first one had there is gone.
    again = Trackers(("tensorboard",), tmp_path, Accelerator(cpu=True), CONFIG)
    again.log({"step": 2, "loss": 7.0}, 2)
    again.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    names = {"train/loss", "train/lr", "train/skipped", "held_out/cosine", "held_out/cosine/text"}
    assert set(events.Tags()["scalars"]) == names
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.0), (2, 7.0)]
    assert "config/text_summary" in events.Tags()["tensors"]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unclip.training.trackers, "find_spec", lambda name: None)
    for process in (Main(), Other()):
        with pytest.raises(ValueError, match="'tensorboard' is not installed: pip install tensorboard"):
            Trackers(("tensorboard",), tmp_path, process, CONFIG)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no tracker 'comet'; there are tensorboard, wandb"):
        Trackers(("comet",), tmp_path, Main(), CONFIG)  # type: ignore[arg-type]
    tell(Trackers((), tmp_path / "none", Main(), CONFIG))  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_wandb_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tell(Trackers(("wandb",), tmp_path, Accelerator(cpu=True), CONFIG))
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))

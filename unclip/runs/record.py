"""training.json in a run's folder: the configuration that a run is resumed with, so that nothing else goes on in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from unclip import checkpoint
from unclip.checks import path_of
from unclip.clip.named import OPEN_CLIP, placed
from unclip.files import write_files

from .components import MODEL, RECORD
from .training import Training

COMPARED = ("model", "start", "clip", "task", "data")  # and of `train` what changes a step; validation may be another


def write(training: Training, run: Path) -> None:
    """With absolute paths, so that it says the same from everywhere."""
    write_files([(run / RECORD, _placed(training, lambda path: str(path_of(path).absolute())).to_json().encode())])


def begin(training: Training, run: Path) -> None:
    """Write it unless something goes on here already.  (Folders of older versions get one at the end.)"""
    if not _begun(run):
        write(training, run)


def refuse_other(training: Training, run: Path) -> None:
    """ValueError with every difference between what has begun in `run` and this training."""
    if not _begun(run) or not (run / RECORD).is_file():
        return
    try:
        begun = Training.load(run / RECORD)
    except ValueError as error:
        problem = f"{run} holds a run of another version of unclip, which cannot go on here"
        raise ValueError(f"{problem} ({error}): let that version finish it, or choose another folder with --run") from None
    done = max(int(state.name.removeprefix("step-")) for state in _states(run))
    if done > training.train.steps:
        raise ValueError(f"the run in {run} has done {done} steps already, more than the {training.train.steps} asked for")
    then, now = _flat(begun), _flat(training)
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    changes = [f"{name}: {_clipped(then, name)} -> {_clipped(now, name)}" for name in names]
    changes += [f"train.{change}" for change in begun.train.differences(training.train)]
    if changes:
        problem = f"{run} holds another run. Changed since: {'; '.join(changes)}"
        remedy = "Put that back, or choose another folder with --run"
        remedy += f", or, if only places have changed, with the same in them, remove {run / RECORD}" if names else ""
        raise ValueError(f"{problem}. {remedy}. (--start {run} trains its weights on)")


def _begun(run: Path) -> bool:
    """Whether there is a state to go on from: of a training run that ended before the first one nothing is left."""
    return bool(_states(run))


def _states(run: Path) -> list[Path]:
    return [state for state in (run / "state").glob("step-*") if state.name.removeprefix("step-").isdecimal()]


def _flat(training: Training) -> dict[str, Any]:
    """What is compared, by name: {"data.source": ...}."""
    tree = _placed(training, lambda path: str(path_of(path).resolve())).tree()
    flat: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key in value:
                add(f"{name}.{key}", value[key])
        else:
            flat[name] = value

    for name in COMPARED:
        add(name, tree[name])
    return flat


def _clipped(flat: dict[str, Any], name: str) -> str:
    text = msgspec.json.encode(flat[name]).decode() if name in flat else "nothing"
    return text if len(text) < 200 else text[:200] + "…"


def _holds_components(folder: str) -> bool:
    return any((path_of(folder) / name).exists() for name in (checkpoint.INDEX, checkpoint.CONFIG, MODEL, RECORD))


def _placed(training: Training, path: Callable[[str], str]) -> Training:
    """With `path` applied to all names of files and folders."""

    def model(name: str | None) -> str | None:
        """Shipped ones and those of a hub or open_clip have a name that is the same everywhere."""
        if name is None or _holds_components(name):
            return name and path(name)
        if name.startswith(OPEN_CLIP):
            return placed(name, path)
        folder, colon, component = name.rpartition(":")
        return f"{path(folder)}{colon}{component}" if folder and _holds_components(folder) else name

    return training.replace(
        data=training.data.placed(path),
        held_out=training.held_out and training.held_out.placed(path),
        start=model(training.start),
        clip=model(training.clip),
    )

"""training.json in a run's folder: what is trained there, so that nothing else goes on in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from unclip.data.open import DataConfig

    from .training import Training

RECORD = "training.json"
COMPARED = ("stage", "model", "start", "clip", "task", "data")  # the loop itself compares `train`; what examines may change


def write(training: Training, run: Path) -> None:
    """With absolute paths, so that it says the same from everywhere."""
    from unclip.files import write_files

    write_files([(run / RECORD, _placed(training, os.path.abspath).to_json().encode())])


def begin(training: Training, run: Path) -> None:
    """Write it unless something goes on here already.  (Folders of older versions get one at the end.)"""
    if not _begun(run):
        write(training, run)


def refuse_other(training: Training, run: Path) -> None:
    """ValueError with every difference between what has begun in `run` and this training."""
    from .training import Training

    if not _begun(run) or not (run / RECORD).is_file():
        return
    then, now = _flat(Training.load(run / RECORD)), _flat(training)
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if names:
        changes = "; ".join(f"{name}: {_short(then, name)} -> {_short(now, name)}" for name in names)
        raise ValueError(
            f"{run} holds another run. Changed since: {changes}. Put that back, or choose another folder with --run"
            f" (if only places have changed, with the same in them, remove {run / RECORD})"
        )


def _begun(run: Path) -> bool:
    """Whether there is a state to go on from: of a sitting that ended before the first one nothing is left."""
    return any((run / "state").glob("step-*"))


def _flat(training: Training) -> dict[str, Any]:
    """What is compared, by name: {"data.source": ...}."""
    from .training import config_of

    tree = msgspec.to_builtins(_placed(training, os.path.realpath))
    if training.model is not None:
        tree["model"] = msgspec.to_builtins(config_of(training))  # defaults may be written or left out
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


def _short(flat: dict[str, Any], name: str) -> str:
    text = msgspec.json.encode(flat[name]).decode() if name in flat else "nothing"
    return text if len(text) < 200 else text[:200] + "…"


def _holds_parts(folder: str) -> bool:
    from unclip import checkpoint

    from .training import MODEL

    return any((Path(folder) / name).exists() for name in (checkpoint.INDEX, checkpoint.CONFIG, MODEL))


def _placed(training: Training, path: Callable[[str], str]) -> Training:
    """With `path` applied to all names of files and folders."""

    def held(data: DataConfig) -> DataConfig:
        if isinstance(data.source, str):
            return data.replace(source=place(data.source), embeddings=data.embeddings and place(data.embeddings))
        parts = [one.replace(path=place(one.path), embeddings=one.embeddings and place(one.embeddings)) for one in data.source]
        return data.replace(source=tuple(parts))

    def place(name: str) -> str:
        from unclip.data.files import is_url

        return name if is_url(name) or name.startswith("pipe:") else path(name.removeprefix("file://"))

    def model(name: str | None) -> str | None:
        """Shipped ones and those of a hub or open_clip have a name that is the same everywhere."""
        if name is None or _holds_parts(name):
            return name and path(name)
        folder, colon, part = name.rpartition(":")
        return f"{path(folder)}{colon}{part}" if folder and _holds_parts(folder) else name

    return training.replace(
        data=held(training.data),
        held_out=training.held_out and held(training.held_out),
        start=model(training.start),
        clip=model(training.clip),
    )

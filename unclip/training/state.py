"""The state of a run on disk: safetensors and JSON in a folder per step, complete or not there.

    run/state/step-00000500/  model.safetensors  ema.safetensors  optimizer.safetensors  state.json

A state is written aside, synced and renamed.  `state.json`, written last, holds size and hash of every other file, so
that a truncated or altered state is found on reading and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

INDEX = "state.json"
FORMAT = 1


class State(NamedTuple):
    step: int  # updates done
    tensors: dict[str, dict[str, Tensor]]  # by file: model, ema, optimizer
    values: dict[str, Any]  # JSON: config, meters, scale


def save(run_dir: Path, state: State, keep: int) -> Path:
    """Write a state and drop all but the newest `keep`.  OSError (a full disk) leaves the older states as they were."""
    from safetensors.torch import save_file

    final = run_dir / "state" / f"step-{state.step:08d}"
    aside = final.with_name(f".writing-{final.name}")
    clear_unfinished(run_dir)
    aside.mkdir(parents=True)
    try:
        files = {}
        for name, tensors in state.tensors.items():
            path = aside / f"{name}.safetensors"
            save_file(_storable(tensors), path)
            _sync(path)
            files[path.name] = {"size": path.stat().st_size, "sha256": _hash(path)}
        index = {"format": FORMAT, "step": state.step, "files": files, **state.values}
        (aside / INDEX).write_text(json.dumps(index, indent=1, allow_nan=False) + "\n")
        _sync(aside / INDEX)
        _sync(aside)
        if final.exists():  # a broken state, or a step done again after falling back behind it
            shutil.rmtree(final)
        aside.rename(final)
        _sync(final.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in _folders(run_dir)[keep:]:
        shutil.rmtree(old)
    return final


def newest(run_dir: Path, only: tuple[str, ...] | None = None) -> State | None:
    """The newest complete state, with a warning for each broken one passed over; None when there is none.

    `only`: the files to read, by name without ending; all are checked.
    """
    from safetensors.torch import load_file

    for folder in _folders(run_dir):
        index, problem = _read_index(folder)
        if problem:
            warnings.warn(f"training state {folder} is broken ({problem}); trying the one before it", stacklevel=2)
            continue
        names = [name.removesuffix(".safetensors") for name in index["files"]]
        tensors = {name: load_file(folder / f"{name}.safetensors") for name in names if only is None or name in only}
        values = {key: value for key, value in index.items() if key not in ("format", "step", "files")}
        return State(index["step"], tensors, values)
    return None


def load_ema(run_dir: str | Path) -> dict[str, Tensor]:
    """The averaged weights of `task.model` from the newest complete state of a run."""
    state = newest(Path(run_dir), only=("ema",))
    if state is None:
        raise ValueError(f"{run_dir} holds no complete training state: no run folder, or nothing was saved yet")
    return state.tensors["ema"]


def clear_unfinished(run_dir: Path) -> None:
    """Remove what a crash in the middle of saving left."""
    for folder in (run_dir / "state").glob(".writing-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _folders(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "state").glob("step-*"), reverse=True)


def _read_index(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The contents of state.json, and what is wrong with the state or None."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
        if index["format"] != FORMAT:
            return {}, f"its format is {index['format']}, this version reads {FORMAT}"
        for name, expected in index["files"].items():
            path = folder / name
            if not path.is_file():
                return {}, f"{name} is missing"
            if path.stat().st_size != expected["size"]:
                return {}, f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
            if _hash(path) != expected["sha256"]:
                return {}, f"the contents of {name} have changed"
        int(index["step"])
    except FileNotFoundError:
        return {}, f"{INDEX} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}, f"{INDEX} cannot be read"
    return index, None


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and each with memory of its own (safetensors refuses tied weights)."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        result[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return result


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Training checkpoints: safetensors and JSON in a folder per step, complete or absent.

    run/state/step-00000500/  model.safetensors  ema.safetensors  optimizer.safetensors  state.json

Tensors are whole, however many processes share them, and written one by one.  A state is written aside, synced and
renamed.  `state.json`, written last, holds size and hash of every other file and a hash of its own contents, so that a truncated
or altered state is found on reading and the one before it is used.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from unclip.checks import path_of
from unclip.files import sync
from unclip.weights import sha256_of, write_tensors
from unclip.weights.tensors import in_order

from .config import TrainConfig
from .shard import RowShard

INDEX = "state.json"
FORMAT = 2  # format 1, of unclip 0.1.0, had no hash of its own
NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32"}
NAMES |= {"int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}  # of types, in safetensors


class State(NamedTuple):
    step: int  # updates done
    tensors: Mapping[str, Mapping[str, Any]]  # by file (model, ema, optimizer) and name: Tensor, or RowShard when saved
    values: dict[str, Any]  # JSON: config, meters, scale


def save(run_dir: Path, state: State, keep: int, writes: bool = True) -> Path:
    """Write a state; only the last `keep` up to it and the best stay.  OSError (a full disk) leaves the older ones as they were.

    Of sharded tensors every process must call, only one with `writes`: the others hand it their rows.
    """
    final = run_dir / "state" / f"step-{state.step:08d}"
    tensors = (tensor for entries in state.tensors.values() for tensor in _whole(entries))
    try:
        if writes:
            _write(run_dir, final, state, tensors)
    finally:
        for _ in tensors:  # of a process that does not write, or whose disk is full while the others hand over theirs
            pass
    if writes:
        best = (state.values.get("best") or {}).get("step")
        folders = _folders(run_dir)
        # Later ones were passed over as broken when the run went on from an earlier one.
        later = [folder for folder in folders if int(folder.name[5:]) > state.step]
        for old in later + folders[len(later) :][keep:]:
            if old.name != f"step-{best or 0:08d}":
                shutil.rmtree(old, ignore_errors=True)  # on Windows not while somebody reads it; then after the next one
    return final


def _write(run_dir: Path, final: Path, state: State, tensors: Iterator[Tensor]) -> None:
    aside = final.with_name(f".writing-{final.name}")
    clear_unfinished(run_dir)
    aside.mkdir(parents=True)
    try:
        files = {}
        for name, entries in state.tensors.items():
            path = aside / f"{name}.safetensors"
            digest = write_tensors(path, entries, itertools.islice(tensors, len(entries)))
            files[path.name] = {"size": path.stat().st_size, "sha256": digest}
        index = {"format": FORMAT, "step": state.step, "files": files, **state.values}
        index["sha256"] = _digest(index)
        (aside / INDEX).write_bytes(json.dumps(index, indent=1, allow_nan=False).encode() + b"\n")
        sync(aside / INDEX)
        sync(aside)
        if final.exists():  # a broken state, or a step done again after falling back behind it
            shutil.rmtree(final)
        aside.rename(final)
        sync(final.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _whole(entries: Mapping[str, Any]) -> Iterator[Tensor]:
    for name in in_order(entries):
        entry = entries[name]
        yield entry.whole() if isinstance(entry, RowShard) else entry


def newest(run_dir: Path, only: tuple[str, ...] | None = None) -> State | None:
    """The newest complete state, with a warning for each broken one passed over; None when nothing was saved yet.

    `only`: the files to read, by name without ending; all are checked.  ValueError: there are states, and all are broken.
    """
    problems = []
    for folder in _folders(run_dir):
        index, problem = _read_index(folder)
        if not problem:
            return _read(folder, index, only)
        warnings.warn(f"training state {folder} is broken ({problem}); trying the one before it", stacklevel=2)
        problems.append(f"{folder.name} ({problem})")
    if problems:
        raise ValueError(
            f"no training state in {run_dir / 'state'} can be read: {', '.join(problems)}. Move that folder away to start anew"
        )
    return None


def read(run_dir: Path, step: int) -> State:
    """The state after `step` updates, which somebody else has checked."""
    folder = run_dir / "state" / f"step-{step:08d}"
    return _read(folder, json.loads((folder / INDEX).read_bytes()), None)


def load_ema(run_dir: str | Path, decay: float | None = None, best: bool = False) -> dict[str, Tensor]:
    """The averaged weights of `task.model` from the newest complete state of a run, or from the best that it kept.

    decay: which average, of a run with several; None = the first.
    """
    run_dir = path_of(run_dir)
    state = newest(run_dir, only=())
    if state is None:
        raise ValueError(f"{run_dir} holds no complete training state: no run folder, or nothing was saved yet")
    config = TrainConfig.from_json(state.values["config"], source=f"the config of the state in {run_dir}")
    name = ema_name(config, config.decays[0] if decay is None else decay)
    step = state.step
    if best:
        if not state.values.get("best"):
            raise ValueError(f"{run_dir} kept no best state: its config's `best` is {config.best!r}, or no validation came yet")
        step = state.values["best"]["step"]
    folder = run_dir / "state" / f"step-{step:08d}"
    index, problem = _read_index(folder)
    if problem:
        raise ValueError(f"the best state of {run_dir}, {folder.name}, is broken: {problem}")
    return dict(_read(folder, index, (name,)).tensors[name])


def ema_name(config: TrainConfig, decay: float) -> str:
    """The name, without ending, of the file that holds this average.  ValueError: the run has no such one."""
    if decay not in config.decays:
        raise ValueError(f"no average of decay {decay}: this run has {', '.join(map(str, config.decays))}")
    return "ema" if decay == config.decays[0] else f"ema-{decay}"


def _read(folder: Path, index: dict[str, Any], only: tuple[str, ...] | None) -> State:
    from safetensors.torch import load_file

    names = [name.removesuffix(".safetensors") for name in index["files"]]
    tensors = {name: load_file(folder / f"{name}.safetensors") for name in names if only is None or name in only}
    values = {key: value for key, value in index.items() if key not in ("format", "step", "files", "sha256")}
    return State(index["step"], tensors, values)


def clear_unfinished(run_dir: Path) -> None:
    """Remove what a crash in the middle of saving left."""
    for folder in (run_dir / "state").glob(".writing-*"):
        shutil.rmtree(folder, ignore_errors=True)


def saved_steps(run_dir: Path) -> list[int]:
    """The steps after which states were saved, ascending, broken ones among them."""
    return [int(folder.name.removeprefix("step-")) for folder in reversed(_folders(run_dir))]


def _folders(run_dir: Path) -> list[Path]:
    """Of states, the newest first."""
    found = [path for path in (run_dir / "state").glob("step-*") if path.name[5:].isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def _read_index(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The contents of state.json, and what is wrong with the state or None."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
        if index["format"] not in (1, FORMAT):
            return {}, f"its format is {index['format']}, this version reads 1 and {FORMAT}"
        if index.pop("sha256", None) != (None if index["format"] == 1 else _digest(index)):
            return {}, f"the contents of {INDEX} have changed"
        for name, expected in index["files"].items():
            path = folder / name
            if not path.is_file():
                return {}, f"{name} is missing"
            if path.stat().st_size != expected["size"]:
                return {}, f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
            if sha256_of(path) != expected["sha256"]:
                return {}, f"the contents of {name} have changed"
        int(index["step"])
    except FileNotFoundError:
        return {}, f"{INDEX} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, f"{INDEX} cannot be read"
    return index, None


def _digest(index: dict[str, Any]) -> str:
    """Of what a state.json says, however it is spaced."""
    return hashlib.sha256(json.dumps(index).encode()).hexdigest()

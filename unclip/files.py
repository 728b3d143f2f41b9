"""Files and folders written aside and renamed, so that each is there whole or not at all; outputs checked before drawing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError


def write_files(files: Iterable[tuple[Path, bytes]]) -> None:
    """Write files aside, sync, then rename them all; a full disk or an unwritable folder is a ValueError and leaves nothing."""
    asides: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, data in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            asides.append((path.with_name(f".{path.name}.{os.getpid()}"), path))
            with open(asides[-1][0], "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for aside, path in asides:
            os.replace(aside, path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        for aside, _ in asides:
            with suppress(OSError):
                aside.unlink(missing_ok=True)


def write_folder(folder: str | Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a folder beside the target, then rename: the target appears whole or not at all."""
    folder = Path(folder).absolute()
    try:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(f"{folder} exists already and is not an empty folder: choose a new one, nothing is overwritten")
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror or error}") from None
    try:
        write(aside)
        for path in aside.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors writes for its owner alone
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        aside.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    except (OSError, SafetensorError) as error:  # a full disk reaches us as either
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"could not write {folder}: {reason}; nothing was left there") from None
    finally:
        with suppress(OSError):
            shutil.rmtree(aside)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object, not a {type(found).__name__}")
    return found


def check_output(path: str | Path, files: Sequence[str] = (".png",), folder: bool = True) -> Path:
    """The path, when it can be written: a file with one of the suffixes `files`, or a folder, there or not; else ValueError."""
    path = Path(path)
    suffixes = " or ".join(files)
    try:
        is_file, is_folder = path.suffix.lower() in files, path.is_dir()
        if not is_file and not (folder and (is_folder or not path.suffix)):
            raise ValueError(f"this is written as {suffixes}{' or into a folder' * folder}, not as {path.suffix!r}: {path}")
        if is_file and is_folder:
            raise ValueError(f"{path} is a folder: name a file in it, or a folder that does not end in {path.suffix}")
        parent = path.parent if is_file else path
        while not parent.exists():
            parent = parent.parent
        with TemporaryFile(dir=parent):  # permissions alone do not tell: the disk may be mounted read-only
            pass
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
    return path

"""Atomic writes of files and folders; checks of what is read and of outputs."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError

from .config import visible as visible

KINDS = {
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
POINTER = b"version https://git-lfs.github.com/spec/"


def regular_file(path: str | Path) -> Path:
    """The path of a file that can be read to its end; ValueError for a missing one, and for what would wait or never end."""
    path = Path(path).expanduser()
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, ValueError) as error:  # too long a name, a loop of links; a zero byte in it
        raise ValueError(f"{visible(path)} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if kind != stat.S_IFREG:
        raise ValueError(f"{path} cannot be read: it is {KINDS.get(kind, 'no regular file')}, and a file is expected")
    return path


def refuse_pointer(path: Path, start: bytes) -> None:
    """ValueError where a file starts as git-lfs writes what stands in for a large one that was not fetched."""
    if start.startswith(POINTER):
        problem = f"{path} is a git-lfs pointer of {path.stat().st_size} bytes, not the file itself"
        raise ValueError(f"{problem}: fetch that with `git lfs pull`, or download it")


def read_text(path: str | Path) -> str:
    """A text file in UTF-8, or in UTF-16 or UTF-32 if it says so, without its byte order mark."""
    path = regular_file(path)
    data = path.read_bytes()
    refuse_pointer(path, data)
    return data.decode(json.detect_encoding(data))


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {visible(error)}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold an object, not a {type(value).__name__}")
    return value


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of files, to the disk.  OSError: a full one."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # Windows opens no folder, and syncs no file that is open for reading only
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network file systems may not do it for folders
            raise
    finally:
        os.close(handle)


def write_files(files: Iterable[tuple[Path, bytes]]) -> None:
    """Write files aside, sync, then put them all in place: all or none, and where one fails, what was there before stays.

    ValueError for a full disk or a folder that cannot be written.  A link in the place of a file is replaced, what it leads to
    stays as it is.  Of several threads that write to one path one's file is kept, whole.
    """
    asides: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, data in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            asides.append((_aside(path), path))
            with open(asides[-1][0], "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        _replace(asides)
    except OSError as error:
        raise ValueError(f"cannot write {error.filename2 or path}: {error.strerror or error}") from None
    finally:
        for aside, _ in asides:
            with suppress(OSError):
                aside.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    """A hidden name beside `path` that nobody else has, short enough wherever that one is."""
    return path.with_name(f".unclip-{secrets.token_hex(8)}")


def _replace(asides: Iterable[tuple[Path, Path]]) -> None:
    """Rename all; where one cannot be, those before it are as they were (where the file system has hard links)."""
    undo: list[Callable[[], None]] = []
    kept: list[Path] = []
    try:
        for aside, path in asides:
            before = _aside(path)
            with suppress(OSError):
                os.link(path, before, follow_symlinks=False)
                kept.append(before)
            os.replace(aside, path)
            undo.append(partial(os.replace, before, path) if kept and kept[-1] == before else path.unlink)
    except BaseException:
        for back in undo:
            with suppress(OSError):
                back()
        raise
    finally:
        for before in kept:
            with suppress(OSError):
                before.unlink(missing_ok=True)


def write_folder(folder: str | Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a folder beside the target, then rename: the target appears whole or not at all."""
    folder = Path(folder).expanduser().absolute()
    try:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(f"{folder} exists already and is not an empty folder: choose a new one, nothing is overwritten")
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".unclip-", dir=folder.parent))
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror or error}") from None
    try:
        write(aside)
        for path in aside.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors writes for its owner alone
                sync(path)
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

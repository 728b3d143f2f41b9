"""Atomic writes of files and folders; checks of what is read and of outputs."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .checks import path_of
from .config import visible as visible

KINDS = {
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
POINTER = b"version https://git-lfs.github.com/spec/"
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")  # what systems put into folders
REPLACED = ", or have it replaced with --overwrite (in Python overwrite=True)"


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


def write_files(files: Iterable[tuple[Path, bytes]], overwrite: bool = True) -> None:
    """Write files aside, sync, then put them all in place: all or none, and where one fails, what was there before stays.

    ValueError for a full disk, a folder that cannot be written, a device, and what is there already unless `overwrite`.  A link
    in the place of a file is replaced, what it leads to stays as it is.  Of several threads that write to one path one's file
    is kept, whole.
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
        for _, path in asides:
            _refuse_there(path, overwrite)
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
            with suppress(OSError, NotImplementedError):  # Windows cannot say what becomes of links
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


def write_folder(
    folder: str | Path, write: Callable[[Path], None], overwrite: bool = False, replaces: Sequence[str] = ()
) -> None:
    """Call `write` on a folder beside the target, then rename: the target appears whole or not at all.

    overwrite, replaces: which folder may be replaced, as in `check_folder`; it stays until the new one is whole.
    """
    folder = check_folder(folder, overwrite, replaces).absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".unclip-", dir=folder.parent))
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror or error}") from None
    before = _aside(folder)
    try:
        write(aside)
        for path in aside.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors writes for its owner alone
                sync(path)
        aside.chmod(0o755)
        check_folder(folder, overwrite, replaces)  # somebody else may have been faster
        if folder.exists():
            folder.rename(before)
        try:
            aside.rename(folder)
        except BaseException:
            if before.exists():
                before.rename(folder)
            raise
        shutil.rmtree(before, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # a full disk reaches us as either
        reason = getattr(error, "strerror", None) or error
        left = "what was there before is kept" if folder.exists() else "nothing was left there"
        raise ValueError(f"could not write {folder}: {reason}; {left}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# Before anything is drawn, computed or loaded


def check_output(path: str | Path, files: Sequence[str] = (".png",), folder: bool = True) -> Path:
    """The path, if it is a file with one of the suffixes `files`, or a folder, there or not; else ValueError."""
    path = path_of(path)
    suffixes = " or ".join(files)
    try:
        is_file, is_folder = path.suffix.lower() in files, path.is_dir()
    except (OSError, ValueError) as error:  # too long a name; a zero byte in it
        raise ValueError(f"cannot write {visible(path)}: {getattr(error, 'strerror', None) or error}") from None
    if not is_file and not (folder and (is_folder or not path.suffix)):
        raise ValueError(f"this is written as {suffixes}{' or into a folder' * folder}, not as {path.suffix!r}: {visible(path)}")
    if is_file and is_folder:
        raise ValueError(f"{path} is a folder: name a file in it, or a folder that does not end in {path.suffix}")
    return path


def check_files(paths: Iterable[Path], overwrite: bool = False, inputs: Iterable[str | Path] = ()) -> None:
    """ValueError unless all of these files, of one folder, can be written.

    One that is there already must not be, unless `overwrite`.  One that is also read is refused always: `inputs` are files,
    folders with all that is in them, and words that are neither.
    """
    paths, inputs = list(paths), list(inputs)
    for path in paths:
        if os.path.lexists(path):  # False for names that cannot be, which are tried below
            _refuse_read(path, inputs)
            _refuse_there(path, overwrite)
    if paths:
        _try_name(paths[0].parent, max((path.name for path in paths), key=len))


def check_folder(
    folder: str | Path, overwrite: bool = False, replaces: Sequence[str] = (), inputs: Iterable[str | Path] = ()
) -> Path:
    """The path of a folder to be written as a whole: ValueError unless it is new or empty, or one that may be replaced.

    replaces: patterns of the names that are in such a folder, the first of one that always is.  With `overwrite` a folder is
    replaced that holds these and nothing else.  inputs: what is read, which is never replaced.
    """
    folder = path_of(folder)
    try:
        if folder.is_symlink():
            raise ValueError(f"{folder} is a link: name the folder itself")
        there = [] if not folder.exists() else os.listdir(folder) if folder.is_dir() else [folder.name]
        if there := [name for name in there if name not in LITTER]:
            strange = [name for name in there if not any(re.fullmatch(pattern, name) for pattern in replaces)]
            ours = folder.is_dir() and not strange and any(re.fullmatch(replaces[0], name) for name in there)
            if not ours or not overwrite:
                hint = REPLACED if ours else f" (it holds {visible(strange[0])})" if overwrite and strange else ""
                raise ValueError(f"{folder} exists already and is not an empty folder: choose a new one{hint}")
            for one in inputs:
                if Path(one).expanduser().resolve().is_relative_to(folder.resolve()):
                    raise ValueError(f"{folder} is read here (for {one}), so it is not replaced: choose another folder")
    except OSError as error:
        raise ValueError(f"cannot write {visible(folder)}: {error.strerror or error}") from None
    _try_name(folder.absolute().parent, folder.absolute().name)
    return folder


def _refuse_there(path: Path, overwrite: bool) -> None:
    """ValueError where something else than a file to be replaced is in the place of one.  Links count as files."""
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return
    if kind not in (stat.S_IFREG, stat.S_IFLNK):
        raise ValueError(f"cannot write {path}: it is {KINDS.get(kind, 'no regular file')}")
    if not overwrite:
        raise ValueError(f"{path} exists already: choose another name{REPLACED}")


def _refuse_read(path: Path, inputs: Iterable[str | Path]) -> None:
    for one in inputs:
        with suppress(OSError, RuntimeError):  # a caption is no path, or too long a one
            place = Path(one).expanduser()
            same = place.samefile(path) or (place.is_dir() and path.resolve().is_relative_to(place.resolve()))
            if same:
                raise ValueError(f"{path} is read here (for {visible(one)}), so it is not replaced: choose another output")


def _try_name(folder: Path, name: str) -> None:
    """ValueError unless a file of that name can be written into a folder, which may not be there yet.

    In a folder of its own for as long as this takes: which names, lengths and users a file system takes, it knows best.
    """
    path, names = folder / name, [name]
    try:
        folder = folder.absolute()
        while not folder.exists():
            if folder.is_symlink():
                raise OSError(errno.ENOENT, f"{folder} is a link that leads nowhere")
            names.append(folder.name)
            folder = folder.parent
        with tempfile.TemporaryDirectory(prefix=".unclip-", dir=folder) as aside:
            for name in dict.fromkeys(names):
                (Path(aside) / name).touch()
                if not (Path(aside) / name).is_file():  # nul, con, aux.png on Windows
                    raise OSError(errno.EINVAL, f"{name} is the name of a device")
    except OSError as error:
        raise ValueError(f"cannot write {visible(path)}: {error.strerror or error}") from None
    except ValueError:
        raise ValueError(f"cannot write {visible(path)}: this file system has no such names") from None

"""One training at a time in a run folder, by a lock of the system's, which ends with the process that holds it.

Between machines it holds as far as the locks of the file system that they share: those of NFS 4 do, some others are each
machine's own, and where there are none a warning says so.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from unclip.config import visible
from unclip.files import LITTER, check_files

LOCK, STATES = ".lock", "state"
HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK, getattr(errno, "EDEADLOCK", errno.EDEADLK))  # the last three: Windows
FAR = 2**30  # the byte that is locked on Windows, where a locked one cannot be read
_ours: ContextVar[frozenset[str]] = ContextVar("_ours", default=frozenset())  # folders, by thread


@contextmanager
def locked(run_dir: Path, active: bool = True) -> Iterator[None]:
    """Keep other trainings out of a run folder, which is made; the thread that holds it may lock it again.

    active: False in the processes that do not write.  ValueError: another training is in it, or it is no folder for one.
    """
    key = os.path.realpath(run_dir)
    if not active or key in _ours.get():
        yield
        return
    check_run(run_dir)
    new = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise ValueError(f"cannot write {run_dir / LOCK}: {error.strerror or error}") from None
    try:
        _lock(handle, run_dir)
        before = _ours.set(_ours.get() | {key})
        try:
            yield
        finally:
            _ours.reset(before)
            with suppress(OSError):
                os.ftruncate(handle, 0)
    finally:
        os.close(handle)  # and with it the lock
        if new and os.listdir(run_dir) == [LOCK]:  # of a refused training nothing is left
            shutil.rmtree(run_dir, ignore_errors=True)


def check_run(run_dir: Path) -> None:
    """ValueError unless a training can write into a folder: what is there is of a training, or nothing is."""
    for folder in (run_dir, run_dir / STATES):
        if os.path.lexists(folder) and not folder.is_dir():
            raise ValueError(f"{folder} is in the place of a folder of the training: move it away, or choose another run folder")
    states = run_dir / STATES
    for name in sorted(os.listdir(states)) if states.is_dir() else []:
        if re.fullmatch(r"step-\d{8,}|\.writing-step-\d{8,}", name) and (states / name).is_dir():
            continue
        if name not in LITTER:
            raise ValueError(f"{states / visible(name)} was written by no training: move it out of that folder")
    check_files([run_dir / "log.jsonl"], overwrite=True)


def _lock(handle: int, run_dir: Path) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            told = f"{_holder(handle)} is training in {run_dir}"
            raise ValueError(f"{told}: wait until it ends, or choose another run folder") from None
        told = f"the file system of {run_dir} has no locks ({error.strerror or error})"
        warnings.warn(f"{told}: see to it that no other training writes there", stacklevel=3)
        return
    with suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())


def _holder(handle: int) -> str:
    """Who has written its name into the file."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        holder = json.loads(os.read(handle, 1000))
        return f"process {int(holder['pid'])} on {visible(holder['host'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

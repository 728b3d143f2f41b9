"""One training at a time in a run folder, and folders in which none can go on."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from test_training_loop import BASE, Circle, ToyTask, everything, states

from unclip.training import lock, train
from unclip.training.lock import LOCK, locked
from unclip.training.log import read_log

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, time
from pathlib import Path
from unclip.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_training_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, env=environment) as first:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        told = f"process {first.pid} on {socket.gethostname()} is training in {tmp_path}: wait until it ends"
        with pytest.raises(ValueError, match=told):
            train(ToyTask(), Circle(), BASE, tmp_path)
        assert os.listdir(tmp_path) == [LOCK]
        first.send_signal(signal.SIGKILL)  # it has no time to clean up
        first.wait()
    assert train(ToyTask(), Circle(), BASE.replace(steps=2), tmp_path).step == 2
    assert (tmp_path / LOCK).read_bytes() == b""


def test_threads_too_and_the_holder_may_lock_again(tmp_path: Path) -> None:
    problems: list[str] = []

    def second() -> None:
        try:
            train(ToyTask(), Circle(), BASE, tmp_path / "." / ".." / tmp_path.name)
        except ValueError as error:
            problems.append(str(error))

    with locked(tmp_path), locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(problems) == 1 and f"process {os.getpid()} on" in problems[0]
    with locked(tmp_path), locked(tmp_path / "another"):
        assert json.loads((tmp_path / "another" / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "another").exists(), "nothing was written there"


def test_where_there_are_no_locks_a_warning_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks .No locks available.: see to it that no other training writes there"):
        assert train(ToyTask(), Circle(), BASE.replace(steps=1), tmp_path).step == 1


class Msvcrt:
    """Windows' locks: of a byte, which others then can neither lock nor read."""

    LK_NBLCK = 2
    held: set[tuple[int, int]] = set()

    @classmethod
    def locking(cls, handle: int, mode: int, count: int) -> None:
        status = os.fstat(handle)
        byte = (status.st_ino, os.lseek(handle, 0, os.SEEK_CUR))
        assert (mode, count) == (cls.LK_NBLCK, 1) and byte[1] > status.st_size
        if byte in cls.held:
            raise PermissionError(errno.EACCES, "Permission denied")
        cls.held.add(byte)


def test_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt)  # type: ignore[arg-type]
    monkeypatch.setattr(lock, "sys", type("sys", (), {"platform": "win32"}))
    with locked(tmp_path):
        lock._ours.set(frozenset())  # as of another process
        with pytest.raises(ValueError, match=f"process {os.getpid()} on .* is training in"), locked(tmp_path):
            pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("state", "state is in the place of a folder of the training: move it away"),
        ("state/notes.txt", "state/notes.txt was written by no training: move it out"),
        ("state/step-00000009", "step-00000009 was written by no training"),
        ("state/step-00000009 (copy)/state.json", r"step-00000009 \(copy\) was written by no training"),
        ("state/step-old/state.json", "step-old was written by no training"),
        ("log.jsonl/x", "cannot write .*log.jsonl: it is a folder"),
    ],
)
def test_run_folders_with_something_else_in_them_are_refused_at_once(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=message):
        train(ToyTask(), Circle(), BASE, tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_a_file_in_the_place_of_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    for run_dir in (tmp_path / "run", tmp_path / "run" / "new"):
        with pytest.raises(ValueError, match="in the place of a folder|cannot write .*: Not a directory"):
            train(ToyTask(), Circle(), BASE, run_dir)


def test_what_systems_leave_in_folders_does_no_harm(tmp_path: Path) -> None:
    train(ToyTask(), Circle(), BASE.replace(steps=2), tmp_path)
    (tmp_path / "state" / ".DS_Store").touch()
    assert train(ToyTask(), Circle(), BASE.replace(steps=3), tmp_path).step == 3


@pytest.mark.parametrize("name", ["batch", "workers"])
def test_numbers_that_are_slips(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 1000000000; it can be at most 1,"):
        BASE.replace(**{name: 10**9})


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="tells what a descriptor is of")
def test_a_disk_that_is_full_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the place and what is kept; with room again the same command ends as if nothing had been."""
    config = BASE.replace(save_every=4)
    write = lock.os.fsync

    def full(handle: int) -> None:
        if "step-00000010" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(handle)

    monkeypatch.setattr(os, "fsync", full)
    told = r"state after step 10 could not be written into .*/run/state \(No space left.*\); that after step 8 is kept: make room"
    with pytest.raises(OSError, match=told):
        train(ToyTask(), Circle(), config, tmp_path / "run")
    monkeypatch.undo()
    assert states(tmp_path / "run") == ["step-00000004", "step-00000008"]
    assert train(ToyTask(), Circle(), config, tmp_path / "run").step == 10
    train(ToyTask(), Circle(), config, tmp_path / "straight")
    assert everything(tmp_path / "run")["ema.safetensors"] == everything(tmp_path / "straight")["ema.safetensors"]
    assert read_log(tmp_path / "run")

"""What is read and written: special files, pointers and byte order marks, and files that are put in place all or none."""

from __future__ import annotations

import ast
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unclip import files
from unclip.config import Config
from unclip.files import (
    check_files,
    check_folder,
    check_output,
    read_json,
    regular_file,
    sync,
    visible,
    write_files,
    write_folder,
)
from unclip.sampling import Sampling
from unclip.training import state
from unclip.weights import tensors


def test_text_from_files_is_made_visible_and_cut() -> None:
    assert visible("ein Löwe 🦁 👩\u200d🚀") == "ein Löwe 🦁 👩\u200d🚀"
    assert visible("a\x1b[2J\x07b\nc\u202ed\ud800\x9b") == r"a\x1b[2J\x07b\nc\u202ed\ud800\x9b"
    assert visible("x" * 300) == "x" * 200 + "..." and visible("x" * 200) == "x" * 200 and visible(3) == "3"
    with pytest.raises(ValueError, match=r"unknown field `\\x1b\[31mred`"):
        Sampling.from_json('{"\\u001b[31mred": 1}')
    assert len(str(pytest.raises(ValueError, Sampling.from_json, json.dumps({"x" * 10_000: 1})).value)) < 700


@pytest.fixture
def special(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Paths that block a reader or never end, and what they are called."""
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    os.mkfifo("pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    server.close()
    os.mkdir("folder")
    os.symlink("pipe", "link")
    return {"pipe": "pipe", "link": "pipe", "socket": "socket", "folder": "folder", "/dev/zero": "device"}


def test_special_files_are_refused_at_once(special: dict[str, str]) -> None:
    for read in (regular_file, read_json):
        for path, kind in special.items():
            with pytest.raises(ValueError, match=f"cannot be read: it is a {kind}.*, and a file is expected"):
                read(path)
        with pytest.raises(ValueError, match="lost is missing"):
            read("lost")
        with pytest.raises(ValueError, match="cannot be read: .*too long"):
            read("n" * 300)
        with pytest.raises(ValueError, match=r"a\\x00b cannot be read: embedded null byte"):
            read("a\0b")
    for path in special:
        with pytest.raises(ValueError, match="cannot be read: it is no regular file"):
            Sampling.load(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(json.dumps({"sampler": "ddpm", "name": "Löwe"}, ensure_ascii=False).encode(encoding))
    assert read_json(path) == {"sampler": "ddpm", "name": "Löwe"}


def test_configs_with_a_byte_order_mark_and_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "x.json").write_text(Sampling(steps=7).to_json(), encoding="utf-8-sig")
    assert Sampling.load("~/x.json") == Sampling(steps=7) and read_json("~/x.json")["steps"] == 7


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3459\n", "is a git-lfs pointer of 67 bytes.*git lfs"),
        (b"[" * 100_000, "cannot be read as JSON: maximum recursion depth"),
        (b'{"a": "\xff\xfe"}', "cannot be read as JSON: .*decode byte"),
        (b"[1]", "must hold an object, not a list"),
        (b"", "cannot be read as JSON"),
    ],
)
def test_json_that_is_none(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ValueError, match=f"x.json {message}") as error:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(error.value)


def test_configs_nested_without_end(tmp_path: Path) -> None:
    class Nest(Config, frozen=True, kw_only=True):
        inner: dict[str, Any]

    with pytest.raises(ValueError, match="is no Nest: maximum recursion depth"):
        Nest.from_json('{"inner":' + '{"a":' * 100_000)


# Written


def test_all_files_or_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x").write_text("mine")
    with pytest.raises(ValueError, match="cannot write .*/c: it is a folder"):
        write_files([(tmp_path / name, name.encode()) for name in "abc"])
    assert (tmp_path / "a").read_text() == "before" and sorted(os.listdir(tmp_path)) == ["a", "c"]
    write_files([(tmp_path / name, name.encode()) for name in "ab"])
    assert (tmp_path / "a").read_text() == "a" and sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_what_was_replaced_comes_back_where_a_later_one_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("before")
    replace = os.replace

    def fail_at_c(source: Any, target: Any) -> None:
        if Path(target).name == "c":
            raise PermissionError(errno.EACCES, "Permission denied", str(source), None, str(target))  # as of a file that is open
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_c)
    with pytest.raises(ValueError, match="cannot write .*/c: Permission denied"):
        write_files([(tmp_path / name, name.encode()) for name in "abc"])
    assert (tmp_path / "a").read_text() == "before" and sorted(os.listdir(tmp_path)) == ["a"]


@pytest.mark.parametrize("error", [OSError(errno.ENOTSUP, "Operation not supported"), NotImplementedError("follow_symlinks")])
def test_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(os, "link", refuse)
    write_files([(tmp_path / "a", b"1")])
    write_files([(tmp_path / "a", b"2"), (tmp_path / "b", b"3")])
    assert (tmp_path / "a").read_bytes() == b"2" and sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_names_as_long_as_they_may_be(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".png")
    write_files([(path, b"1")])
    write_folder(tmp_path / ("m" * 255), lambda aside: None)
    assert path.read_bytes() == b"1" and (tmp_path / ("m" * 255)).is_dir()


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    for target in ("kept", "nowhere"):
        (tmp_path / "x").unlink(missing_ok=True)
        (tmp_path / "x").symlink_to(target)
        write_files([(tmp_path / "x", b"new"), (tmp_path / "y", b"new")])
        assert not (tmp_path / "x").is_symlink() and (tmp_path / "x").read_text() == "new"
    assert (tmp_path / "kept").read_text() == "kept" and sorted(os.listdir(tmp_path)) == ["kept", "x", "y"]


def test_several_threads_write_to_one_path(tmp_path: Path) -> None:
    contents = [bytes([k]) * 100_000 for k in range(4)]
    failures: list[Exception] = []

    def write(data: bytes) -> None:
        try:
            for _ in range(20):
                write_files([(tmp_path / "x", data)])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and (tmp_path / "x").read_bytes() in contents and os.listdir(tmp_path) == ["x"]


def test_what_is_there_is_replaced_only_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("before")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("b", "link"):
        for check in (check_files, lambda paths: write_files([(path, b"new") for path in paths], overwrite=False)):
            with pytest.raises(ValueError, match=f"/{name} exists already: choose another name.*--overwrite"):
                check([tmp_path / "a", tmp_path / name])
        check_files([tmp_path / "a", tmp_path / name], overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["b", "link"] and (tmp_path / "b").read_text() == "before"


def test_devices_and_pipes_are_never_replaced(special: dict[str, str]) -> None:
    for path, kind in special.items():
        if path != "link":
            for check in (check_files, lambda paths, overwrite: write_files([(path, b"new") for path in paths], overwrite)):
                with pytest.raises(ValueError, match=f"cannot write {path}: it is a {kind}"):
                    check([Path(path)], overwrite=True)


def test_what_is_read_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.makedirs("in/deep")
    for name in ("a", "in/deep/b"):
        Path(name).write_text("kept")
    os.symlink("a", "to-a")
    os.link("a", "also-a")
    for output, given in (("a", "a"), ("a", tmp_path / "a"), ("to-a", "a"), ("a", "to-a"), ("also-a", "a"), ("in/deep/b", "in")):
        with pytest.raises(ValueError, match=f"^{output} is read here .*, so it is not replaced: choose another output"):
            check_files([Path(output)], overwrite=True, inputs=["a red heart", "x" * 9000, "~nobody-has-this-name/x", given])
    check_files([Path("a"), Path("in/deep/c")], overwrite=True, inputs=["in", "lost"])  # what is not there yet is no input


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("n" * 300 + ".png", "File name too long"),
        ("new/" + "n" * 300 + "/x.png", "File name too long"),
        ("ä" * 130 + ".png", "File name too long"),  # 264 bytes in 134 letters
        ("/".join(["deep" * 20] * 60) + "/x.png", "File name too long"),
        ("half \ud83e.png", "this file system has no such names"),
        ("zero \0.png", "this file system has no such names"),
        ("file/new/x.png", "Not a directory"),
        ("lost/x.png", "is a link that leads nowhere"),
        ("/proc/new/x.png", "No such file"),
    ],
)
def test_names_that_cannot_be_are_refused_before_anything_is_drawn(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "lost").symlink_to("nowhere")
    with pytest.raises(ValueError, match=f"^cannot write .*{message}") as error:
        check_files([check_output(tmp_path / path)])
    assert "\n" not in str(error.value) and str(error.value).isprintable() and sorted(os.listdir(tmp_path)) == ["file", "lost"]


def test_names_of_devices_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a file called `nul.png` is written into nothing, without an error."""
    touch = Path.touch
    monkeypatch.setattr(Path, "touch", lambda path: None if path.stem in ("nul", "con") else touch(path))
    for path in ("nul.png", "con/x.png"):
        with pytest.raises(ValueError, match="cannot write .*: (nul|con).* is the name of a device"):
            check_files([tmp_path / path])
    check_files([tmp_path / "annul.png"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o555)
    for check in (lambda path: check_files([path]), check_folder, lambda path: write_files([(path, b"1")])):
        for path in ("theirs/x", "theirs/new/x"):
            with pytest.raises(ValueError, match="cannot write .*: Permission denied"):
                check(tmp_path / path)


def fill(text: str, *names: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)

    return write


def test_folders_are_replaced_only_by_their_own_kind(tmp_path: Path) -> None:
    kind, folder = ("index", r"part_\d", "notes"), tmp_path / "made"
    write_folder(folder, fill("1", "index", "part_1/x", "notes"))
    with pytest.raises(ValueError, match="exists already and is not an empty folder: choose a new one .it holds notes.$"):
        write_folder(folder, fill("2", "index"), overwrite=True)
    with pytest.raises(ValueError, match="choose a new one, or have it replaced with --overwrite"):
        write_folder(folder, fill("2", "index"), replaces=kind)
    write_folder(folder, fill("2", "index", "part_2/x"), overwrite=True, replaces=kind)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["index", "made", "part_2", "x"]
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"choose a new one \(it holds thesis.txt\)"):
        write_folder(folder, fill("3", "index"), overwrite=True, replaces=kind)
    (folder / "thesis.txt").unlink()
    (folder / ".DS_Store").touch()
    write_folder(folder, fill("3", "index"), overwrite=True, replaces=kind)
    (folder / "index").rename(folder / "notes")
    with pytest.raises(ValueError, match="choose a new one$"):
        write_folder(folder, fill("4", "index"), overwrite=True, replaces=kind)
    assert (folder / "notes").read_text() == "3"


def test_a_folder_stays_where_its_successor_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "made", Path.rename
    write_folder(folder, fill("1", "index"))

    def full(aside: Path) -> None:
        fill("2", "index")(aside)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ValueError, match="could not write .*made: No space left"):
        write_folder(folder, full, overwrite=True, replaces=("index",))

    def interrupted(source: Path, target: Path) -> Path:
        if target == folder and (source / "index").read_text() == "2":
            raise KeyboardInterrupt
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, fill("2", "index"), overwrite=True, replaces=("index",))
    assert (folder / "index").read_text() == "1" and os.listdir(tmp_path) == ["made"]


def test_folders_that_are_read_or_links_are_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    write_folder(folder, fill("1", "index", "part_1/x"))
    (tmp_path / "link").symlink_to("made")
    for given in (folder, tmp_path / "link", folder / "part_1"):
        with pytest.raises(ValueError, match="made is read here .*, so it is not replaced"):
            check_folder(folder, True, ("index", "part_1"), ["emoji", given])
    with pytest.raises(ValueError, match="link is a link: name the folder itself"):
        check_folder(tmp_path / "link", True, ("index", "part_1"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file exists already and is not an empty folder"):
        check_folder(tmp_path / "file", True, ("file",))


class Windows:
    """`os` by its rules: no folder can be opened, and what is open for reading only cannot be synced."""

    name = "nt"

    def open(self, path: Any, flags: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return os.open(path, flags)

    def fsync(self, handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        os.fsync(handle)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def test_what_windows_can_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises OSError for what Linux does, which looked like a full disk: a training would never have saved."""
    for module in (files, tensors):
        monkeypatch.setattr(module, "os", Windows())
    write_folder(tmp_path / "new", lambda aside: (aside / "x").write_bytes(b"1") and None)
    write_files([(tmp_path / "y", b"1")])
    saved = state.save(tmp_path / "run", state.State(3, {"model": {"a": torch.ones(2)}}, {"config": "{}"}), keep=2)
    found = state.newest(tmp_path / "run")
    assert saved.is_dir() and found is not None and found.step == 3


def test_text_is_utf_8_whatever_the_system_writes(tmp_path: Path) -> None:
    """Windows has another encoding by default, in which a name with an umlaut comes back as another."""
    root = Path(__file__).parents[1]
    for path in (path for package in ("unclip", "prior", "decoder", "upsamplers") for path in (root / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                told = {"encoding"} & {keyword.arg for keyword in node.keywords}
                assert node.func.attr not in ("read_text", "write_text") or told, f"{path}:{node.lineno}"
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "PYTHONIOENCODING": "cp1252"}
    script = "import tiny; from unclip import UnCLIP; tiny.pipeline(name='\\u732b').save_pretrained('m')"
    script += "; assert UnCLIP.from_pretrained('m').name == '\\u732b'"
    script += "; import sys; from unclip import cli; sys.argv = ['unclip', 'info', 'm']; cli.main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(rb"\u732b (unclip ") and done.stderr == b""


@pytest.mark.parametrize(
    ("code", "name", "raised"), [(errno.EINVAL, "", False), (errno.EINVAL, "x", True), (errno.ENOSPC, "", True)]
)
def test_folders_are_synced_where_the_system_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, name: str, raised: bool
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "x").write_text("x")
    monkeypatch.setattr(os, "fsync", refuse)
    call: Callable[[], None] = lambda: sync(tmp_path / name)  # noqa: E731
    if raised:
        pytest.raises(OSError, call)
    else:
        call()

"""Tar shards: found by glob, braces and URL, read through an index, and used as far as they are whole."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import shutil
import tarfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import tiny_data
import torch

from unclip.data import files, shard_cache, shards
from unclip.data.files import expand
from unclip.data.naming import base, key_of, member_name, split_suffix
from unclip.data.open import open_data
from unclip.data.reader import Reader
from unclip.data.shards import Shards
from unclip.randomness import Noise


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every shard that is read for its index."""
    seen: list[int] = []
    scan = shards.scan
    monkeypatch.setattr(shards, "scan", lambda *a: (seen.append(1), scan(*a))[1])
    return seen


def test_globs_braces_and_lists_name_shards(tmp_path: Path) -> None:
    for name in ("a-008", "a-009", "a-010", "b-009"):
        (tmp_path / f"{name}.tar").touch()

    def names(pattern: str) -> list[str]:
        return [Path(found).stem for found in expand(f"{tmp_path}/{pattern}")]

    assert names("a-{008..010}.tar") == ["a-008", "a-009", "a-010"]
    assert names("a-0{10,08}.tar") == ["a-010", "a-008"]
    assert names("{b,a}-{009..009}.tar") == ["b-009", "a-009"]
    assert names("?-*.tar") == ["a-008", "a-009", "a-010", "b-009"]
    assert names("{b,a}-*9.tar") == ["b-009", "a-009"]
    (tmp_path / "odd[1].tar").touch()
    assert names("odd[1].tar") == ["odd[1]"]
    assert expand("memory://x-{9..11}.tar") == ["memory://x-9.tar", "memory://x-10.tar", "memory://x-11.tar"]
    with pytest.raises(ValueError, match="2 of 4 files of .* are not there, the first is .*a-007.tar"):
        names("{a,b}-00{7,9}.tar")
    for pattern, message in (("c*.tar", "no file matches"), ("a-{3..1}.tar", "runs backwards"), ("a-{x}.tar", "write a range")):
        with pytest.raises(ValueError, match=message):
            names(pattern)


def test_the_convention_of_names() -> None:
    assert base("a/b.c/0001.seg") == "a/b.c/0001" and base("x") == "x"
    assert split_suffix("a/b.c/0001.seg.PNG") == ("a/b.c/0001.seg", "png") and split_suffix("x.jpg") == ("x", "jpg")
    assert split_suffix("a/.hidden")[1] == split_suffix("a.b/README")[1] == ""
    for key in ("deep/c.v1", "100%", "a%2Eb", "a%252E.", ".dot", "http://x.y/z.w"):
        stem, suffix = split_suffix(f"{member_name(key)}.png")
        assert key_of(stem) == key and base(stem) == stem and suffix == "png"


def test_captions_and_pictures_are_found_among_other_members(tmp_path: Path) -> None:
    png, jpg = tiny_data.picture(1), tiny_data.picture(2, "JPEG")
    path = tiny_data.tar(
        tmp_path / "x.tar",
        {
            "d/b.seg.png": b"a mask",
            "d/b.JPG": jpg,
            "d/b.json": json.dumps({"caption": "from json", "key": "other"}).encode(),
            "d/b.txt": b"eins\n\n zwei \n",
            "d/b.cls": b"7",
            "a.png": png,
            "a.json": json.dumps({"text": ["x", "y\nz"], "width": 6}).encode(),
            "blank.png": png,
            "blank.txt": b"",
            "lonely.png": png,
            "words.txt": b"nothing to see",
        },
    )
    with pytest.warns(UserWarning) as seen:
        source = Shards(str(path))
    assert sorted(str(w.message) for w in seen) == [
        "1 captions have no picture and are left out: words",
        "1 pictures have no caption and are left out: lonely",
    ]
    assert source.keys == ["a", "blank", "d/b"]
    assert [source.captions(row) for row in range(3)] == [["x", "y\nz"], [""], ["eins", "zwei"]]
    assert source.image_bytes(2) == jpg and source.where(2) == f"{path}:d/b.JPG"


def test_a_caption_that_cannot_be_read_breaks_its_sample(tmp_path: Path) -> None:
    png = tiny_data.picture(1)
    bad = {"a.json": b"{}", "b.json": b"{oh", "c.txt": b"\xff\xfe\xfd", "d.json": b"[1]"}
    path = tiny_data.tar(tmp_path / "x.tar", {**{f"{k}.png": png for k in "abcde"}, **bad, "e.txt": b"fine"})
    data = Reader(Shards(str(path)), 4)
    with pytest.warns(UserWarning) as seen:
        assert data.batch(range(5)).keys == ["e"] * 5
    assert [w.message.args[0].split(":")[1].split()[0] for w in seen] == ["a.json", "b.json", "c.txt", "d.json"]  # type: ignore


def test_members_whose_names_are_no_utf8(tmp_path: Path, scans: list[int]) -> None:
    png = tiny_data.picture(1)
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as file:
        for name, data in (("caf\xe9.png", png), ("caf\xe9.txt", b"coffee"), ("b\xe9.png", png * 9)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    cut(path, path.read_bytes().index(b"b\xe9.png") + 600)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"in the middle of b\\xe9.png"):
            source = Shards(str(path))
        assert source.keys == ["caf\\xe9"] and source.captions(0) == ["coffee"] and source.image_bytes(0) == png
        assert source.digest() and source.where(0).endswith(":caf\\xe9.png")
    assert len(scans) == 1  # the index could be written


def test_the_index_is_made_once_and_anew_when_the_shard_has_changed(tmp_path: Path, scans: list[int]) -> None:
    folder = tiny_data.shards(tmp_path / "s", 6, 3)
    for _ in range(2):
        assert len(Shards(f"{folder}/*.tar").keys) == 6
    assert len(scans) == 2 and sorted(p.name for p in folder.iterdir()) == [
        "s-000.tar",
        "s-000.tar.index.json",
        "s-001.tar",
        "s-001.tar.index.json",
    ]
    tiny_data.tar(folder / "s-001.tar", tiny_data.members(range(7, 9)))
    assert Shards(f"{folder}/*.tar").keys[3:] == ["p007", "p008"] and len(scans) == 3
    before = (folder / "s-000.tar").stat()  # the same size, other contents: told by the time
    tiny_data.tar(folder / "s-000.tar", tiny_data.members(range(3, 6)))
    assert (folder / "s-000.tar").stat().st_size == before.st_size
    os.utime(folder / "s-000.tar", ns=(before.st_mtime_ns + 1, before.st_mtime_ns + 1))
    assert Shards(f"{folder}/*.tar").keys[:3] == ["p003", "p004", "p005"] and len(scans) == 4
    index = folder / "s-000.tar.index.json"
    index.write_bytes(index.read_bytes()[:50])  # a damaged index is made anew too
    assert len(Shards(f"{folder}/*.tar").keys) == 5 and len(scans) == 5


def test_the_index_goes_to_the_cache_where_the_folder_cannot_be_written(
    tmp_path: Path, cache: Path, scans: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_data.shards(tmp_path / "s", 4, 2)
    write = shard_cache.write_files

    def refuse(files: list[tuple[Path, bytes]]) -> None:  # permissions do not stop root
        if files[0][0].parent == folder:
            raise ValueError("cannot write: Permission denied")
        write(files)

    monkeypatch.setattr(shard_cache, "write_files", refuse)
    for _ in range(2):
        assert len(Shards(f"{folder}/*.tar").keys) == 4
    assert len(scans) == 2 and len(list(cache.glob("shards/*.index.json"))) == 2
    assert [p.suffix for p in sorted(folder.iterdir())] == [".tar", ".tar"]


def test_shards_behind_a_url_are_the_same_data(tmp_path: Path, cache: Path, scans: list[int]) -> None:
    folder = tiny_data.shards(tmp_path / "s", 7, 3)
    memory = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    here, noise = Reader(Shards(f"{folder}/*.tar"), 4), Noise.of(0, range(4))
    for url in ("memory:///bucket/s-{000..002}.tar", "memory:///bucket/s-*.tar"):
        there = Reader(Shards(url), 4)
        assert there.keys == here.keys and there.source.digest() == here.source.digest()
        a, b = here.batch([6, 0, 3, 2], noise), there.batch([6, 0, 3, 2], noise)
        assert a.captions == b.captions and torch.equal(a.images, b.images)  # type: ignore[arg-type]
    assert len(scans) == 3 + 3 and len(list(cache.glob("shards/*.index.json"))) == 3
    memory.pipe("/bucket/s-000.tar", (folder / "s-001.tar").read_bytes())
    with pytest.raises(ValueError, match="there is no memory://bucket/s-003.tar"):
        Shards("memory://bucket/s-{000..003}.tar")


def test_equal_keys_in_two_shards_get_the_shards_name(tmp_path: Path) -> None:
    for name in ("x", "y"):
        tiny_data.tar(tmp_path / f"{name}.tar", tiny_data.members(range(2)))
    assert Shards(f"{tmp_path}/*.tar").keys == ["x/p000", "x/p001", "y/p000", "y/p001"]
    with pytest.raises(ValueError, match="is given twice"):
        Shards(f"{tmp_path}/{{x,x}}.tar")


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize(
    ("keep", "whole", "message"),
    [
        (2048 * 3 + 100, 3, "is broken or truncated at byte 6144 of 6244"),  # in a header, which tarfile takes for the end
        (2048 * 3 + 530, 3, "is truncated after 6674 bytes, in the middle of p003.png"),
        (2048 * 3, 3, "is broken or truncated at byte 6144 of 6144"),  # between two members: only the end mark is missing
        (2048 * 2 + 1024 + 512, 2, "is broken or truncated|is truncated after"),  # the picture is whole, its text is not there
    ],
)
def test_a_truncated_shard_is_used_as_far_as_it_goes(tmp_path: Path, keep: int, whole: int, message: str) -> None:
    path = tiny_data.tar(tmp_path / "x.tar", tiny_data.members(range(6)))
    cut(path, keep)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        source = Shards(str(path))
    told = [str(w.message) for w in seen if "whole samples are used" in str(w.message)]
    assert len(told) == 1 and told[0].endswith(f"; its {whole} whole samples are used")
    assert re.search(message, told[0])
    assert source.keys == [f"p{i:03d}" for i in range(whole)]
    assert Reader(source, 4).batch(range(whole)).captions == [tiny_data.caption(i) for i in range(whole)]
    assert list(source.problems) == [str(path)]


def test_a_broken_shard_does_not_stop_the_others(tmp_path: Path) -> None:
    folder = tiny_data.shards(tmp_path / "s", 8, 2)
    (folder / "s-000.tar").write_bytes(b"")
    (folder / "s-001.tar").write_bytes(b"<html>not found</html>" * 100)
    damaged = bytearray((folder / "s-002.tar").read_bytes())
    damaged[2048 + 148] ^= 1  # the checksum in the header of its second sample
    (folder / "s-002.tar").write_bytes(damaged)
    with pytest.warns(UserWarning) as seen:
        source = Shards(f"{folder}/*.tar")
    assert source.keys == ["p004", "p006", "p007"] and list(source.problems) == [f"{folder}/s-00{i}.tar" for i in range(3)]
    assert sum("its 0 whole samples are used" in str(w.message) for w in seen) == 2
    with pytest.raises(ValueError, match="no captioned picture in the 2 shards"), pytest.warns(UserWarning):
        Shards(f"{folder}/s-00{{0..1}}.tar")


def test_a_shard_that_has_shrunk_since_breaks_its_samples(tmp_path: Path) -> None:
    path = tiny_data.tar(tmp_path / "x.tar", tiny_data.members(range(3)))
    data = Reader(Shards(str(path)), 4)
    cut(path, 3000)
    with pytest.warns(UserWarning, match="instead of .* bytes from byte"):
        assert data.batch([1]).keys == ["p000"]


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.bz2"])
def test_a_compressed_shard_is_unpacked_into_the_cache_once(tmp_path: Path, cache: Path, suffix: str) -> None:
    compress = bz2.compress if suffix == ".tar.bz2" else gzip.compress
    plain = tiny_data.tar(tmp_path / "plain" / "x.tar", tiny_data.members(range(5)))
    packed = tmp_path / f"x{suffix}"
    packed.write_bytes(compress(plain.read_bytes()))
    with pytest.warns(UserWarning, match=r"is compressed: it is copied to .* once"):
        first = Reader(Shards(str(packed)), 4).batch([4, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Reader(Shards(str(packed)), 4).batch([4, 0])
    expected = Reader(Shards(str(plain)), 4).batch([4, 0])
    for batch in (first, again):
        assert batch.captions == expected.captions and torch.equal(batch.images, expected.images)  # type: ignore[arg-type]
    (copy,) = cache.glob("shards/*.tar")
    copy.unlink()  # a cache may be emptied
    with pytest.warns(UserWarning, match="is copied"):
        assert len(Shards(str(packed)).keys) == 5
    noisy = {f"{i}.{s}": d for i in range(9) for s, d in (("png", tiny_data.noisy(i)), ("txt", b"noise"))}
    data = compress(tiny_data.tar(tmp_path / "noisy.tar", noisy).read_bytes())
    packed.write_bytes(data[: len(data) // 2])
    if suffix != ".tar.bz2":  # bzip2 gives nothing of an unfinished block
        with pytest.warns(UserWarning) as seen:
            assert 0 < len(Shards(str(packed)).keys) < 9
        assert any("whole samples are used" in str(w.message) for w in seen)


@contextmanager
def server(folder: Path, ranges: bool) -> Iterator[str]:
    """A web server over a folder, which knows of ranges or not."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, body: bool) -> None:
            path = folder / self.path.strip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data, asked = path.read_bytes(), self.headers.get("Range")
            if ranges and asked:
                first, last = asked.removeprefix("bytes=").split("-")
                size = len(data)
                data = data[int(first) : int(last or size - 1) + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{size}")
            else:
                self.send_response(200)
            if ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}"
    finally:
        web.shutdown()
        web.server_close()
        thread.join()


@pytest.mark.parametrize("ranges", [True, False])
def test_web_servers_with_and_without_ranges(tmp_path: Path, cache: Path, ranges: bool, scans: list[int]) -> None:
    pytest.importorskip("aiohttp")
    folder = tiny_data.shards(tmp_path / "s", 6, 3)
    expected = Reader(Shards(f"{folder}/*.tar"), 4).batch([5, 1, 0])
    with server(folder, ranges) as url:
        for _ in range(2):
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                batch = Reader(Shards(f"{url}/s-{{000..001}}.tar"), 4).batch([5, 1, 0])
            assert batch.captions == expected.captions and torch.equal(batch.images, expected.images)  # type: ignore[arg-type]
            assert sum("from a server without ranges: it is copied to" in str(w.message) for w in seen) <= (0 if ranges else 2)
        assert len(list(cache.glob("shards/*.tar"))) == (0 if ranges else 2) and len(scans) == 4
        with pytest.raises(ValueError, match=r"there is no http://127.0.0.1:\d+/s-002.tar"):
            Shards(f"{url}/s-002.tar")


def test_a_network_that_fails_now_and_then_breaks_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_data.tar(tmp_path / "x.tar", tiny_data.members(range(2)))
    memory = fsspec.filesystem("memory")
    memory.pipe("/flaky/x.tar", path.read_bytes())
    data = Reader(Shards("memory://flaky/x.tar"), 4)
    read, calls = type(memory).cat_file, iter([True, True, False] * 2 + [True] * 9)

    def flaky(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        if next(calls):
            raise ConnectionResetError("reset by peer")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(type(memory), "cat_file", flaky)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    assert data.batch([1]).keys == ["p001"]
    with pytest.raises(OSError, match="x.tar could not be read in 3 tries: ConnectionResetError reset by peer"):
        data.batch([1])  # not replaced: that would be another training


def test_a_missing_package_for_a_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.core

    def missing(url: str) -> None:
        raise ImportError("HTTPFileSystem requires aiohttp to be installed")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ValueError, match=r"pip install 'unclip\[remote\]'"):
        Shards("https://example.invalid/x.tar")


def test_members_of_every_kind_of_header_are_read(tmp_path: Path) -> None:
    """GNU and PAX long names, folders, links and hidden files among the members."""
    png = tiny_data.picture(3)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        root = tmp_path / str(form)
        deep = root / "in" / ("d" * 90) / "ä" / ("k" * 90)
        deep.parent.mkdir(parents=True)
        deep.with_suffix(".png").write_bytes(png)
        deep.with_suffix(".txt").write_text("deep")
        (root / "in" / ".hidden.png").write_bytes(png)
        os.symlink("nowhere", root / "in" / "link.png")
        with tarfile.open(root / "x.tar", "w", format=form) as tar:
            tar.add(root / "in", arcname=".")
        (key,) = Shards(str(root / "x.tar")).keys
        assert key == f"{'d' * 90}/ä/{'k' * 90}"
        shutil.rmtree(root)


# What lies behind the first end mark, and members that come again


def whole(*numbers: int) -> bytes:
    """A tar of some samples, with its end mark."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for i in numbers:
            for name, data in tiny_data.members(range(i, i + 1)).items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def keys(path: Path) -> list[str]:
    source = Shards(str(path))
    batch = Reader(source, 4).batch(range(len(source.keys)))
    assert batch.keys == source.keys and batch.captions == [tiny_data.caption(int(key[1:4])) for key in source.keys]
    return source.keys


@pytest.mark.parametrize(
    "data",
    [
        whole(0) + whole(1, 2),
        gzip.compress(whole(0) + whole(1, 2)),
        gzip.compress(whole(0)) + gzip.compress(whole(1)) + gzip.compress(whole(2)),
        bz2.compress(whole(0)) + bz2.compress(whole(1, 2)),
        lzma.compress(whole(0)) + lzma.compress(whole(1, 2)),
        whole(0)[:2048] + whole(1, 2),  # without an end mark in between
        gzip.compress(whole(0, 1)) + bytes(700) + gzip.compress(whole(2)) + bytes(5),
        whole(0, 1) + bytes(2**21 + 512) + whole(2),
    ],
)
def test_tars_behind_one_another_are_one_shard(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.tar"  # whatever the suffix says
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert keys(path) == ["p000", "p001", "p002"]
    assert not any("whole samples are used" in str(w.message) for w in seen)


@pytest.mark.parametrize(
    ("data", "found", "told"),
    [
        (whole(0) + b"rubbish" * 300, 1, "has 2100 bytes behind its end, at byte 10240, that are no tar"),
        (whole(0) + whole(1) + b"\0" * 600 + b"rubbish", 2, "that are no tar"),
        (whole(0) + whole(1, 2)[:2500], 1, "is truncated after 12740 bytes, in the middle of p002.png|truncated at byte"),
        (gzip.compress(whole(0)) + b"rubbish", 1, "holds what cannot be unpacked: .*header"),
        (bz2.compress(whole(0)) + b"rubbish", 1, "holds what cannot be unpacked: Invalid data"),
        (lzma.compress(whole(0)) + b"rubbish", 1, "holds what cannot be unpacked: Input format"),
        (gzip.compress(whole(0)) + gzip.compress(whole(1))[:-20], 1, "ends in the middle of its compressed data"),
        (gzip.compress(whole(0))[:-3], 1, "ends in the middle of its compressed data"),
    ],
)
def test_rubbish_behind_the_end_is_told(tmp_path: Path, data: bytes, found: int, told: str) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(data)
    with pytest.warns(UserWarning) as seen:
        assert len(Shards(str(path)).keys) >= found
    (message,) = [str(w.message) for w in seen if "whole samples are used" in str(w.message)]
    assert re.search(told, message)
    with pytest.warns(UserWarning, match=told):  # from the index too
        Shards(str(path))


def test_samples_of_equal_keys_are_all_there(tmp_path: Path) -> None:
    """Two shards that both count from 0, put behind one another; the picture that both have is one."""
    path = tiny_data.tar(tmp_path / "a.tar", tiny_data.members(range(2)))
    other = {"p000.png": tiny_data.picture(0), "p000.txt": tiny_data.caption(0).encode()}
    other |= {"p001.png": tiny_data.picture(7), "p001.txt": b"seven"}
    path.write_bytes(path.read_bytes() + tiny_data.tar(tmp_path / "b.tar", other).read_bytes())
    source = Shards(str(path))
    assert source.keys == ["p000", "p001", "p001-2"]
    assert [source.captions(row) for row in range(3)] == [[tiny_data.caption(0)], [tiny_data.caption(1)], ["seven"]]
    assert source.image_bytes(2) == tiny_data.picture(7) and not any(source.left_out.values())


def members_in_order(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_members_given_twice_are_never_paired_wrongly(tmp_path: Path) -> None:
    a, b, c = (tiny_data.picture(i) for i in range(3))
    follows = [("x.png", a), ("x.txt", b"a"), ("y.png", c), ("y.txt", b"c"), ("x.png", b), ("x.txt", b"b")]
    source = Shards(str(members_in_order(tmp_path / "follows.tar", follows)))
    found = {key: (source.image_bytes(row), source.captions(row)) for row, key in enumerate(source.keys)}
    assert found == {"x": (a, ["a"]), "x-2": (b, ["b"]), "y": (c, ["c"])}
    # Which text belongs to which picture cannot be known.
    for doubtful in (
        [("x.png", a), ("y.png", c), ("x.png", b), ("x.txt", b"a"), ("y.txt", b"c"), ("x.txt", b"b")],
        [("x.png", a), ("x.png", b), ("x.txt", b"b"), ("y.png", c), ("y.txt", b"c")],
        [("x.png", a), ("x.txt", b"a"), ("y.png", c), ("y.txt", b"c"), ("x.txt", b"b")],
    ):
        with pytest.warns(UserWarning, match="2 members come again with other contents and are left out: x.png, x.txt"):
            source = Shards(str(members_in_order(tmp_path / "doubtful.tar", doubtful)))
        assert source.keys == ["y"] and source.image_bytes(0) == c and source.captions(0) == ["c"]


def test_links_to_members_are_members(tmp_path: Path) -> None:
    """What tar makes of a file with two names, and of links."""
    root = tmp_path / "in"
    tiny_data.folder(root / "a", 2)
    os.link(root / "a" / "p000.png", root / "hard.png")
    os.link(root / "a" / "p000.txt", root / "hard.txt")
    for name, target in {"soft.png": "a/p001.png", "soft.txt": "soft2.txt", "soft2.txt": "a/p001.txt", "b": "a"}.items():
        (root / name).symlink_to(target)
    for name, target in {"out.png": "/elsewhere/x.png", "dogs": "../dogs", "._x.png": "gone"}.items():
        (root / name).symlink_to(target)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for path in sorted(root.rglob("*")):
            tar.add(path, arcname=path.relative_to(root), recursive=False)
    with pytest.warns(UserWarning, match="2 links lead out of the shard and are left out: dogs, out.png"):
        source = Shards(str(tmp_path / "x.tar"))
    assert source.keys == ["a/p000", "a/p001", "hard", "soft"]
    assert [source.captions(row)[0][-1] for row in range(4)] == ["0", "1", "0", "1"]
    assert [source.image_bytes(row) for row in range(4)] == [tiny_data.picture(i) for i in (0, 1, 0, 1)]


def test_litter_twins_and_kinds_that_are_not_read(tmp_path: Path) -> None:
    png = tiny_data.picture(1)
    litter = ("__MACOSX/._x.png", "._x.png", ".ipynb_checkpoints/x.png", "@eaDir/x.png")
    members = {"x.png": png, "x.jpg": png, "x.txt": b"x", "q.heic": b"heic", **dict.fromkeys(litter, png)}
    with pytest.warns(UserWarning) as seen:
        source = Shards(str(tiny_data.tar(tmp_path / "x.tar", members)))
    assert source.keys == ["x"] and source.where(0).endswith("x.png")
    assert sorted(str(w.message) for w in seen) == [
        "1 pictures are of a kind that is not read and are left out: q.heic",
        "1 pictures have the name of another and are left out: x.jpg",
    ]


def test_dots_in_members_names(tmp_path: Path) -> None:
    png = tiny_data.picture(1)
    names = ["s0.input.jpg", "s0.outputs.txt", "2020.01.png", "2020.01.txt", "2020.02.PNG", "2020.02.Txt"]
    names += ["m.png", "m.mask.png", "m.txt"]
    source = Shards(str(tiny_data.tar(tmp_path / "x.tar", {n: png if n[-1] in "gG" else n.encode() for n in names})))
    assert source.keys == ["2020.01", "2020.02", "m", "s0"] and not any(source.left_out.values())
    assert [source.captions(row) for row in range(4)] == [["2020.01.txt"], ["2020.02.Txt"], ["m.txt"], ["s0.outputs.txt"]]
    (tmp_path / "y").mkdir()
    path = tiny_data.tar(tmp_path / "y" / "y.tar", {"a.input.png": png, "a.target.png": png, "words.txt": b"x"})
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"such as 0001.jpg and 0001.txt; found: 2 pictures"):
        Shards(str(path))


def test_shards_of_one_name_in_several_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny_data.tar(tmp_path / "s" / name / "00000.tar", tiny_data.members(range(2)))
    (tmp_path / "s" / "link.tar").symlink_to(tmp_path / "s" / "a" / "00000.tar")
    expected = ["a/00000/p000", "a/00000/p001", "b/00000/p000", "b/00000/p001"]
    assert Shards(f"{tmp_path}/s/?/*.tar").keys == expected
    with pytest.warns(UserWarning, match="a/00000.tar is .*link.tar again and is left out"):
        assert len(Shards(f"{tmp_path}/s/{{link,a/00000,b/00000}}.tar").keys) == 4
    (tmp_path / "s" / "link.tar").unlink()
    assert open_data(tmp_path / "s", 4).keys == expected

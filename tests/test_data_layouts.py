"""Folders and tables as people and their tools make them: nothing is lost without a word, and what is broken is named."""

from __future__ import annotations

import json
import os
import signal
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_data

from unclip.data.check import check
from unclip.data.folder import Folder
from unclip.data.open import open_data, open_source
from unclip.data.sample import caption_lines
from unclip.data.shards import Shards


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pictures(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_data.picture(i))
    folder.mkdir(exist_ok=True)
    return folder


def read(source: str | Path) -> dict[str, list[str]]:
    """The captions of every sample, by key; its picture can be read too."""
    found = open_source(source)
    assert isinstance(found, (Folder, Shards)) and all(found.image_bytes(row) for row in range(len(found.keys)))
    return {key: found.captions(row) for row, key in enumerate(found.keys)}


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


# One sample in three places


@pytest.mark.parametrize(
    ("name", "data", "captions"),
    [
        ("x.txt", b"one\r\ntwo\r\n\r\n", ["one", "two"]),
        ("x.TXT", "\ufeffone".encode(), ["one"]),
        ("x.txt", "one\ntwo".encode("utf-16"), ["one", "two"]),
        ("x.caption", "a\u2028b\x0bc\x0cd\x85e\x1cf\rg\n".encode(), ["a\u2028b\x0bc\x0cd\x85e\x1cf\rg"]),
        ("x.png.txt", b"", [""]),
        ("x.json", b'\xef\xbb\xbf{"Caption": "one\\ntwo", "width": 6}', ["one\ntwo"]),
        ("x.JSON", b'{"text": ["one", null, 42, 2.0]}', ["one", "42", "2"]),
        ("x.json", b'{"caption": null, "texts": ["one"]}', ["one"]),
    ],
)
def test_captions_are_the_same_in_a_folder_a_tar_and_a_table(tmp_path: Path, name: str, data: bytes, captions: list[str]) -> None:
    folder = pictures(tmp_path / "a", "x.png")
    (folder / name).write_bytes(data)
    tar = tiny_data.tar(tmp_path / "x.tar", {"x.png": tiny_data.picture(0), name: data})
    assert read(folder) == read(tar) == {"x": captions}
    if name.lower().endswith("json"):
        table = pictures(tmp_path / "b", "x.png") / "captions.jsonl"
        table.write_text(json.dumps({"file_name": "x.png", **json.loads(data.decode("utf-8-sig"))}))
        assert read(table) == {"x": captions}


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("x.txt", b"caf\xe9", "is no UTF-8 text|utf-8"),
        ("x.json", b"{}", 'expected {"caption": text or list of texts}'),
        ("x.json", b'{"caption": {"de": "eins"}}', "got a dict"),
        ("x.json", b"[" * 100_000, "nested too deeply|too deep"),
        ("x.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git-lfs pointer"),
    ],
)
def test_captions_that_cannot_be_read_break_one_sample(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    folder = pictures(tmp_path / "a", "x.png", "y.png")
    (folder / name).write_bytes(data)
    (folder / "y.txt").write_text("fine")
    members = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for source in (folder, tiny_data.tar(tmp_path / "x.tar", members)):
        report = check(source)
        assert list(report.broken) == ["x"] and report.samples == 2 and not report.fine
        assert name in report.broken["x"] and any(t in report.broken["x"] for t in told.split("|"))


@pytest.mark.parametrize("nothing", [b"null", b"[]", b"[null, null]"])
def test_a_json_that_says_that_there_is_no_caption_is_left_out(tmp_path: Path, nothing: bytes) -> None:
    folder = tiny_data.folder(pictures(tmp_path / "a", "x.png"), 1)
    (folder / "x.json").write_bytes(b'{"caption": %s}' % nothing)
    members = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for source in (folder, tiny_data.tar(tmp_path / "x.tar", members)):
        report = check(source)
        assert report.fine and report.samples == 1 and report.left_out == {"pictures have no caption": ["x"]}


def test_lines_end_at_line_feeds_and_nowhere_else() -> None:
    assert caption_lines("a\vb\fc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\rj\n k \r\n\n".encode()) == [
        "a\vb\fc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\rj",
        "k",
    ]


# Folders


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    elsewhere = tiny_data.folder(tmp_path / "elsewhere", 2, "e")
    folder = tiny_data.folder(tmp_path / "pictures" / "cats", 2, "c").parent
    for name, target in {"dogs": elsewhere, "a-loop": folder, "again": folder / "cats", "cats/deep": folder / "cats"}.items():
        (folder / name).symlink_to(target, target_is_directory=True)
    (elsewhere / "back").symlink_to(folder, target_is_directory=True)
    assert list(read(folder)) == ["cats/c000", "cats/c001", "dogs/e000", "dogs/e001"]
    only = tmp_path / "only"
    only.mkdir()
    (only / "dogs").symlink_to(elsewhere, target_is_directory=True)
    (only / "one.png").symlink_to(elsewhere / "e000.png")
    (only / "one.txt").symlink_to(elsewhere / "e000.txt")
    assert set(read(only)) >= {"dogs/e000", "dogs/e001", "one"}


def test_what_tools_leave_behind_is_no_data(tmp_path: Path) -> None:
    folder = tiny_data.folder(tmp_path / "a", 1)
    for litter in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN", ".Trash-0/files", "lost+found"):
        tiny_data.folder(folder / litter, 1, "bad")
    (folder / "._p000.png").write_bytes(b"mac")
    (folder / "Thumbs.db").write_bytes(b"windows")
    source = open_source(folder)
    assert isinstance(source, Folder) and source.keys == ["p000"] and not any(source.left_out.values())


def test_what_is_lost_is_told(tmp_path: Path) -> None:
    folder = tiny_data.folder(tmp_path / "a", 1)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "round.png").symlink_to(folder / "round.png")
    (folder / "photo.HEIC").write_bytes(b"heic")
    source = open_source(folder)
    assert isinstance(source, Folder) and {what: names for what, names in source.left_out.items() if names} == {
        "links lead nowhere": ["gone.png", "round.png"],
        "pictures are of a kind that is not read": ["photo.HEIC"],
    }


@pytest.fixture
def alarm() -> Iterator[None]:
    """What waits for a pipe is interrupted."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(30)
    yield
    signal.alarm(0)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: socket.socket(socket.AF_UNIX).bind(str(path))])
def test_pipes_and_sockets_are_never_waited_for(
    tmp_path: Path, make: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    folder = tiny_data.folder(Path("a"), 2)
    for name in ("b.png", "p000.caption", "b.txt", "sub.json"):
        make(folder / name)
    source = open_source(folder)
    assert isinstance(source, Folder) and source.keys == ["p000", "p001"]
    assert source.left_out["names are those of pipes or devices"] == ["b.png", "b.txt", "p000.caption", "sub.json"]
    (folder / "p000.png").unlink()
    make(folder / "p000.png")  # since it was opened
    with pytest.raises(ValueError, match="p000.png cannot be read: it is a (pipe|socket)"):
        source.image_bytes(0)
    for name in ("captions.csv", "x.tar", "x.parquet", "x.safetensors", "e"):
        make(Path(name))
        with pytest.raises(ValueError):
            open_data(name, 4)
        with pytest.raises(ValueError):
            open_data(folder, None, embeddings=name)


# Tables


TABLES = {
    "captions.csv": "file_name,text\n0.png,a b\n1.png,c\n",
    "CAPTIONS.CSV": "File_Name,Text\r\n0.png,a b\r\n1.png,c\r\n",
    "captions.tsv": "image\tcaption\n0.png\ta b\n1.png\tc\n",
    "Captions.Csv": "filepath\ttitle\n0.png\ta b\n1.png\tc\n",  # what open_clip reads unless told otherwise
    "metadata.csv": "path;text\n0.png;a b\n1.png;c\n",  # what Excel writes in much of Europe
    "captions.CSV": "image|caption\n0.png|a b\n1.png|c\n",
    "Metadata.jsonl": '{"file_name": "0.png", "text": "a b"}\n\n{"file_name": "1.png", "text": "c"}\n',
    "metadata.JSONL": '\ufeff{"key": 0, "text": "a b"}\r\n{"key": 1.0, "caption": ["c"]}',
    "Captions.tsv": "\ufefffile_name , text\n0.png,a b\n1.png,c",  # commas, whatever the suffix says
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables_of_every_name_and_separator_are_read(tmp_path: Path, name: str, encoding: str) -> None:
    folder = pictures(tmp_path / "a", "0.png", "1.png")
    (folder / name).write_bytes(TABLES[name].removeprefix("\ufeff" * (encoding == "utf-16")).encode(encoding))
    assert read(folder) == read(folder / name) == {"0": ["a b"], "1": ["c"]}


@pytest.mark.parametrize("nothing", [None, [], [None], float("nan")])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_row_without_a_caption_is_left_out_and_counted(tmp_path: Path, kind: str, nothing: Any) -> None:
    folder = pictures(tmp_path / "a", "0.png", "1.png", "2.png")
    some: Any = ["a", None, "b"] if isinstance(nothing, list) else "a"
    rows = [{"file_name": f"{i}.png", "caption": caption} for i, caption in enumerate((some, nothing, some))]
    if kind == "jsonl":
        (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        if isinstance(nothing, float):
            rows = [{**row, "caption": None if row["caption"] is nothing else row["caption"]} for row in rows]
        parquet(folder / "captions.parquet", rows)
    captions = ["a", "b"] if isinstance(nothing, list) else ["a"]
    assert read(folder) == {"0": captions, "2": captions}
    source = open_source(folder)
    assert isinstance(source, Folder) and source.left_out["pictures have no caption"] == ["1"]


def test_a_table_without_any_caption_is_refused(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", "0.png")
    (folder / "captions.jsonl").write_text('{"file_name": "0.png", "text": null}')
    with pytest.raises(ValueError, match="line 1: expected"):
        open_source(folder)


def test_numbers_are_keys_places_and_captions(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", "0.png", "1.png")
    parquet(folder / "captions.parquet", [{"key": 0, "caption": 42}, {"key": 1, "caption": 7}])
    assert read(folder) == {"0": ["42"], "1": ["7"]}


def test_long_fields_are_read(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", "0.png", "1.png")
    (folder / "captions.csv").write_text('image,caption\n0.png,"' + "x," * 200_000 + '"\n1.png,y\n')
    assert [len(captions[0]) for captions in read(folder).values()] == [400_000, 1]


@pytest.mark.parametrize(
    "form",
    ["sub/1.png", "sub\\1.png", ".\\sub\\1.png", "./sub//1.png", "a/sub/1.png", "data\\a\\sub\\1.png", "/elsewhere/a/sub/1.png",
     "sub/1", "sub/1.jpg", "../a/sub/1.png", "file://{folder}/sub/1.png", "~/a/sub/1.png"],
)  # fmt: skip
def test_places_are_found_however_a_table_writes_them(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = pictures(tmp_path / "a", "sub/1.png", "other.png")
    (folder / "captions.jsonl").write_text(json.dumps({"file_name": form.format(folder=folder), "text": "x"}))
    source = open_source(folder)
    assert isinstance(source, Folder) and source.image_bytes(0) == tiny_data.picture(0) and source.captions(0) == ["x"]
    assert source.left_out["pictures have no caption"] == ["other"]


def test_a_table_whose_places_are_nowhere_says_where_it_looked(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", "0.png")
    (folder / "captions.csv").write_text("image,caption\nimages/9.png,x\n")
    with pytest.raises(ValueError, match="captions.csv names 'images/9.png', .* from its folder, where pictures are called '0'"):
        open_source(folder)


def test_pictures_that_a_key_column_renames_have_their_caption(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", "0.png", "1.png", "2.png")
    rows = [{"key": f"k{i}", "image_path": f"{i}.png", "caption": str(i)} for i in range(2)]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(folder)
    assert isinstance(source, Folder) and source.keys == ["k0", "k1"]
    assert source.left_out["pictures have no caption"] == ["2"] and not source.left_out["captions have no picture"]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_several_tables_are_one_source(tmp_path: Path, kind: str) -> None:
    folder = pictures(tmp_path / "a", "0.png", "1.png", "deep/2.png")
    for i, (name, place) in enumerate({"part-00000": "0.png", "part-00001": "1.png", "deep/part-00002": "2.png"}.items()):
        row = {"file_name": place, "text": str(i)}
        if kind == "parquet":
            parquet(folder / f"{name}.{kind}", [row])
        else:
            (folder / f"{name}.{kind}").write_text(json.dumps(row) if kind == "jsonl" else f"file_name,text\n{place},{i}\n")
    expected = {"0": ["0"], "1": ["1"], "deep/2": ["2"]}
    assert read(f"{folder}/**/part-*.{kind}") == expected
    assert read(f"{folder}/part-{{00000..00001}}.{kind}") == {"0": ["0"], "1": ["1"]}
    with pytest.raises(ValueError, match=r"several tables: name one .*a/deep/part-\*.*a/part-\*"):
        open_source(folder)
    (folder / "deep" / f"part-00002.{kind}").unlink()
    assert read(folder) == {"0": ["0"], "1": ["1"]}
    (folder / "0.txt").write_text("captions beside pictures come first")
    assert list(read(folder)) == ["0"]


def test_a_tables_git_lfs_pointer_is_told(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", "0.png", "1.png")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (folder / "1.png").write_bytes(pointer)
    for name in ("0.txt", "1.txt"):
        (folder / name).write_text("x")
    assert "1.png is a git-lfs pointer" in check(folder).broken["1"]
    for name in ("captions.csv", "captions.jsonl", "captions.parquet", "x.tar", "e.safetensors"):
        (tmp_path / name).write_bytes(pointer)
        with pytest.raises(ValueError, match=f"{name} is a git-lfs pointer of {len(pointer)} bytes, not the file itself"):
            open_data(tmp_path / name, None)


def test_escape_codes_in_names_are_made_visible(tmp_path: Path) -> None:
    folder = tiny_data.folder(tmp_path / "a", 1)
    for name in ("evil\x1b[2J.png", "p\nq.png"):
        (folder / name).write_bytes(b"oh")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        open_source(folder)
        (folder / "evil\x1b[2J.txt").write_text("x")
        report = check(folder)
    told = [str(one.message) for one in seen] + report.lines() + list(report.broken.values())
    assert not any("\x1b" in line or "\n" in line for line in told) and any("evil\\x1b[2J.png" in line for line in told)

"""A folder of captioned pictures: joined by key, resized without aliasing, broken files named."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unclip.data.check import CheckReport, check
from unclip.data.folder import Folder
from unclip.data.order import Data
from unclip.data.reader import Reader
from unclip.randomness import Noise


def save(path: Path, colour: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def open_folder(folder: Path, size: int, **options: Any) -> Reader:
    return Reader(Folder(folder), size, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(["b.png", "a.png", "deep/c.v1.png"]):
        save(tmp_path / name, (i * 100, 0, 0))
        (tmp_path / name).with_suffix(".txt").write_text(f"caption of {name}\n")
    return tmp_path


def test_pictures_and_texts_are_joined_by_name(folder: Path) -> None:
    data = open_folder(folder, 8)
    assert isinstance(data, Data)
    assert data.keys == ["a", "b", "deep/c.v1"]
    batch = data.batch([2, 0])
    assert batch.keys == ["deep/c.v1", "a"] and batch.captions == ["caption of deep/c.v1.png", "caption of a.png"]
    assert batch.images is not None and batch.images.shape == (2, 3, 8, 8)
    torch.testing.assert_close(batch.images[:, 0, 3, 3], torch.tensor([200, 100]) / 127.5 - 1)


def test_a_table_is_joined_by_key_whatever_its_order(folder: Path) -> None:
    rows = [
        {"key": "deep/c.v1.png", "caption": "C"},
        {"key": "a", "caption": "A"},
        {"key": "b.png", "caption": ["B", "bee"]},
    ]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    data = open_folder(folder, 8)
    assert data.batch(range(3)).captions == ["A", "B", "C"]
    drawn = {c for i in range(20) for c in data.batch([1], Noise.of(0, [i])).captions or []}
    assert drawn == {"B", "bee"}
    # A sample's caption is its own stream's, whoever stands beside it.
    together = data.batch([1] * 20, Noise.of(0, range(20))).captions
    assert together == [(data.batch([1], Noise.of(0, [i])).captions or [])[0] for i in range(20)]


def test_what_lacks_its_other_half_is_left_out_and_named(folder: Path) -> None:
    save(folder / "lonely.jpg")
    (folder / "words.txt").write_text("no picture")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert len(open_folder(folder, 8)) == 3
    messages = [str(w.message) for w in seen]
    assert any("1 pictures have no caption" in m and "lonely" in m for m in messages)
    assert any("1 captions have no picture" in m and "words" in m for m in messages)


def test_broken_pictures_are_named_once_and_replaced(folder: Path) -> None:
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:40])
    (folder / "deep" / "c.v1.png").write_bytes(b"")
    data = open_folder(folder, 8)
    with pytest.warns(UserWarning, match=r"a\.png .*next picture takes its place"):
        batch = data.batch([0, 1])
    assert batch.keys == ["b", "b"] and batch.captions == ["caption of b.png"] * 2
    with pytest.warns(UserWarning, match=r"c\.v1\.png"):
        assert data.batch([2]).keys == ["b"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.batch([0, 2]).keys == ["b", "b"]
    with pytest.raises(ValueError, match=r"a\.png"):
        open_folder(folder, 8, broken="raise").batch([0])
    (folder / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the 3 pictures"), pytest.warns(UserWarning):
        open_folder(folder, 8).batch([1])


def test_a_text_that_is_none_breaks_its_sample_alone(folder: Path) -> None:
    latin = "caf\xe9".encode("latin-1")
    (folder / "a.txt").write_bytes(latin)
    (folder / "LICENCE.txt").write_bytes(latin)  # of no picture: nobody's caption
    (folder / "._b.txt").write_bytes(b"\0\5\x16\7\0\2")  # a Mac's
    (folder / "deep.txt").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = open_folder(folder, 8)
        assert data.keys == ["a", "b", "deep/c.v1"]
    with pytest.warns(UserWarning, match=r"a\.txt is no UTF-8 text: .* 0xe9 .*next picture takes its place"):
        assert data.batch([0, 1]).keys == ["b", "b"]
    report = check(folder)
    assert (report.samples, report.readable, list(report.broken), report.captions) == (3, 2, ["a"], 2)
    assert "a.txt is no UTF-8 text" in report.broken["a"]


def test_names_that_are_no_utf8_become_keys_that_can_be_written(folder: Path) -> None:
    odd = os.fsencode(folder / "caf") + b"\xe9"
    Path(os.fsdecode(odd + b".png")).write_bytes((folder / "a.png").read_bytes())
    Path(os.fsdecode(odd + b".txt")).write_text("coffee")
    data = open_folder(folder, 8)
    assert data.keys == ["a", "b", "caf\\xe9", "deep/c.v1"]
    batch = data.batch([2])
    assert batch.captions == ["coffee"] and torch.equal(batch.images, data.batch([0]).images)  # type: ignore[arg-type]
    Path(os.fsdecode(odd + b".png")).write_bytes(b"oh")
    report = check(folder)
    assert "/caf\\xe9.png cannot be decoded" in report.broken["caf\\xe9"] and CheckReport.from_json(report.to_json()) == report


def test_resizing_is_anti_aliased_and_keeps_the_aspect(tmp_path: Path) -> None:
    stripes = np.zeros((64, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    stripes[:, :16] = stripes[:, 80:] = (255, 0, 0)  # the two edges that a centre crop takes off
    Image.fromarray(stripes).save(tmp_path / "s.png")
    (tmp_path / "s.txt").write_text("stripes")
    image = open_folder(tmp_path, 16).batch([0]).images
    assert image is not None and image.shape == (1, 3, 16, 16)
    assert image[0, 1, :, 2:-2].abs().max() < 0.1  # nearest neighbour would give all black or all white
    assert (image[0, 0] - image[0, 1])[:, 1:-1].abs().max() < 0.1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense", "line 1 is no JSON"),
        ('{"key": "a"}', "line 1: expected"),
        ('{"key": "a", "caption": []}', "line 1: expected"),
        ('{"key": "a", "caption": "x"}\n{"key": "a.png", "caption": "y"}', "line 2: the key 'a' occurs twice"),
        ('["a"]', "line 1: expected an object"),
    ],
)
def test_bad_tables_are_named(folder: Path, line: str, message: str) -> None:
    (folder / "captions.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        open_folder(folder, 8)


def test_bad_folders_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        open_folder(tmp_path / "absent", 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="0 pictures and 0 captions"):
        open_folder(tmp_path / "empty", 8)
    save(folder / "a.jpg")
    with pytest.raises(ValueError, match="same key 'a'"):
        open_folder(folder, 8)

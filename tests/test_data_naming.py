"""Which files are one sample, by their names alone."""

from __future__ import annotations

import pytest

from unclip.data.naming import Files, group, is_litter


def pairs(names: str, joins: bool = False) -> dict[str, tuple[str, str | None]]:
    return {key: (files.image, files.text) for key, files in group(names.split(), joins).samples.items()}


def test_a_picture_and_its_captions_have_one_name() -> None:
    names = "a/1.jpg a/1.txt 2.JPG 2.TXT 3.jfif 3.caption 4.AVIF 4.Json 5.png 5.png.txt 6.v1.webp 6.v1.txt 7.png 7.md"
    assert pairs(names) == pairs(names, joins=True) == {
        "a/1": ("a/1.jpg", "a/1.txt"),
        "2": ("2.JPG", "2.TXT"),
        "3": ("3.jfif", "3.caption"),
        "4": ("4.AVIF", "4.Json"),
        "5": ("5.png", "5.png.txt"),
        "6.v1": ("6.v1.webp", "6.v1.txt"),
        "7": ("7.png", None),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("x.json x.caption x.png.txt x.txt", "x.txt"),
        ("x.json x.caption x.png.txt", "x.png.txt"),
        ("x.json x.caption", "x.caption"),
    ],
)
def test_of_several_files_with_captions_one_is_read(names: str, text: str) -> None:
    found = group(["x.png", *names.split(), "x.cls"]).samples["x"]
    assert found == Files("x.png", text, "x.json", "x.cls")


def test_dots_in_names_part_samples_or_join_them() -> None:
    dates = "p.2020.01.jpg p.2020.01.txt p.2020.02.jpg p.2020.02.txt"
    assert list(pairs(dates)) == list(pairs(dates, joins=True)) == ["p.2020.01", "p.2020.02"]
    # webdataset's key is the name up to the first dot: masks and outputs belong to it.
    assert pairs("s.input.jpg s.outputs.txt", joins=True) == {"s": ("s.input.jpg", "s.outputs.txt")}
    assert pairs("s.jpg s.mask.png s.txt m.jpg m.mask.png", joins=True) == {"s": ("s.jpg", "s.txt"), "m": ("m.jpg", None)}
    # Which of two would be the picture is not guessed.
    assert pairs("t.a.jpg t.b.jpg t.txt", joins=True) == {"t.a": ("t.a.jpg", None), "t.b": ("t.b.jpg", None)}
    # In a folder each picture is one of its own.
    assert list(pairs("s.jpg s.1.jpg s.txt")) == ["s", "s.1"]


def test_what_is_left_over_is_told() -> None:
    found = group(["x.png", "x.jpg", "x.txt", "words.txt", "y.heic", "z.svg", "z.png"])
    assert found.samples["x"].image == "x.png" and found.twins == {"x": ["x.jpg"]}
    assert found.texts == {"words": "words.txt"} and found.unread == ["y.heic"]


LITTER = """\
._x.png .x.png .ipynb_checkpoints/x-checkpoint.png __MACOSX/a/x.png a/@eaDir/x.jpg $RECYCLE.BIN/x.png lost+found/x.png
.Trash-1000/files/x.png System_Volume_Information/x.png Thumbs.db a/THUMBS.DB desktop.ini .DS_Store #recycle/x.png
.thumbnails/x.png"""


def test_what_systems_and_tools_leave_behind_is_no_data() -> None:
    names = [name.replace("_Volume_", " Volume ") for name in LITTER.split()]
    assert [name for name in names if not is_litter(name)] == []
    assert group(names).samples == {}
    good = ["./x.png", "../x.png", "a.b/c.png", "lost/x.png", "eaDir/x.png", "x.DS_Store"]
    assert [name for name in good if is_litter(name)] == []

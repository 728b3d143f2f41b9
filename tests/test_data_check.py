"""Reading everything once tells what there is and names what is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_data

from unclip.data.check import CheckReport, Quantiles, check


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))


def messy(folder: Path) -> Path:
    """Four good pictures, two of them equal, a broken one of every kind, and halves."""
    folder.mkdir()
    pictures = {
        "a": tiny_data.picture(1, size=(6, 4)),
        "b": tiny_data.picture(2, size=(3, 9)),
        "c": tiny_data.picture(1),
    }
    texts = {"a": "one\ntwo words\n", "b": "  ", "c": "one", "d": "one"}
    for name, data in pictures.items():
        (folder / f"{name}.png").write_bytes(data)
    (folder / "d.jpeg").write_bytes(tiny_data.picture(3, "JPEG", (5, 5)))
    for name, data in tiny_data.BROKEN.items():
        (folder / f"{name}.png").write_bytes(data)
        texts[name] = name
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    (folder / "lonely.png").write_bytes(pictures["a"])
    return folder


@pytest.mark.parametrize("threads", [1, 3])
def test_a_folder_is_told_about(tmp_path: Path, threads: int) -> None:
    folder, seen = messy(tmp_path / "m"), []
    with pytest.warns(UserWarning, match="1 pictures have no caption"):
        report = check(folder, threads=threads, progress=lambda done, total: seen.append((done, total)))
    bad = len(tiny_data.BROKEN)
    assert seen == [(i + 1, 4 + bad) for i in range(4 + bad)]
    assert (report.samples, report.readable) == (4 + bad, 4)
    assert report.bytes == sum(p.stat().st_size for p in folder.iterdir() if p.suffix != ".txt" and p.stem != "lonely")
    assert report.formats == {"png": 3 + bad, "jpeg": 1}
    assert report.short_side == Quantiles(least=3, median=4, most=5) and report.long_side == Quantiles(least=5, median=6, most=9)
    # Captions of broken pictures are not counted: nothing is trained on them.
    assert (report.captions, report.blank_captions, report.same_captions) == (5, 1, 2)
    assert report.captions_per_picture == Quantiles(least=1, median=1, most=2)
    assert report.caption_length == Quantiles(least=0, median=3, most=9)
    assert report.duplicates == [["a", "c"]]
    assert report.left_out == {"pictures have no caption": ["lonely"]}
    assert set(report.broken) == set(tiny_data.BROKEN) and not report.fine
    assert all(f"{name}.png" in reason for name, reason in report.broken.items())
    assert CheckReport.from_json(report.to_json()) == report
    text = "\n".join(report.lines())
    assert "11 captioned pictures, 4 readable" in text and "3 to 5 (median 4) pixels" in text
    assert all(f"{name}.png" in text for name in tiny_data.BROKEN)


def test_whole_data_are_fine(tmp_path: Path) -> None:
    report = check(tiny_data.shards(tmp_path / "s", 9, 4))
    assert report.fine and report.samples == report.readable == 9 and report.duplicates == [] and report.broken == {}
    assert report.captions == 9 and report.same_captions == 0


def test_a_truncated_shard_is_not_fine(tmp_path: Path) -> None:
    folder = tiny_data.shards(tmp_path / "s", 6, 3)
    shard = folder / "s-001.tar"
    shard.write_bytes(shard.read_bytes()[:4096])
    with pytest.warns(UserWarning, match="its 2 whole samples are used"):
        report = check(folder)
    assert not report.fine and report.readable == 5 and list(report.damaged_shards) == [str(shard)]
    assert any("damaged shard" in line and "s-001.tar" in line for line in report.lines())

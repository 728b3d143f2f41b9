"""Packed shards hold the same samples: keys, bytes and captions, whatever they are called."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import tiny_data
import torch
from test_pipelines_generation import full_disk

from unclip.data.folder import Folder
from unclip.data.open import open_data
from unclip.data.order import indices
from unclip.data.pack import pack
from unclip.data.reader import Reader
from unclip.data.shards import Shards
from unclip.randomness import Noise


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))


CAPTIONS = {
    "plain": ["one"],
    "deep/c.v1": ["two", "zwei"],
    "100%2E.": [" spaces "],
    "k" * 120: ["line\nbreak", "ä"],
    "blank": [""],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "odd names"
    for i, key in enumerate(CAPTIONS):
        path = folder / f"{key}.{'jpeg' if i % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_data.picture(i, "JPEG" if i % 2 else "PNG"))
    rows = [{"key": key, "caption": captions} for key, captions in CAPTIONS.items()]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_what_is_packed_reads_back_equal(folder: Path, tmp_path: Path) -> None:
    before = Folder(folder)
    packed = pack(before, tmp_path / "new" / "packed", samples_per_shard=2)
    assert [path.name for path in packed.shards] == ["00000.tar", "00001.tar", "00002.tar"] and packed.samples == 5
    after = Shards([str(path) for path in packed.shards])
    assert after.keys == before.keys == sorted(CAPTIONS)
    for row, key in enumerate(before.keys):
        assert after.image_bytes(row) == before.image_bytes(row) and after.captions(row) == before.captions(row) == CAPTIONS[key]
    old, new = (open_data(path, 4) for path in (folder, tmp_path / "new" / "packed"))
    for k in range(4):
        a, b = (data.batch(indices(5, 3, 0, k), Noise.of(0, range(3)).at(k)) for data in (old, new))
        assert a.keys == b.keys and a.captions == b.captions and torch.equal(a.images, b.images)  # type: ignore[arg-type]


def test_other_readers_find_the_convention(tmp_path: Path) -> None:
    pack(Folder(tiny_data.folder(tmp_path / "a", 3)), tmp_path / "b", samples_per_shard=2)
    with tarfile.open(tmp_path / "b" / "00000.tar") as tar:
        assert tar.getnames() == ["p000.png", "p000.txt", "p001.png", "p001.txt"]
        assert tar.extractfile("p001.txt").read().decode() == tiny_data.caption(1) + "\n"  # type: ignore[union-attr]


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    source = Folder(tiny_data.folder(tmp_path / "a", 5))
    for name in ("b", "c"):
        pack(source, tmp_path / name, samples_per_shard=2)
    assert [p.read_bytes() for p in sorted((tmp_path / "b").iterdir())] == [
        p.read_bytes() for p in sorted((tmp_path / "c").iterdir())
    ]


def test_shards_keep_within_their_size(tmp_path: Path) -> None:
    source = Folder(tiny_data.folder(tmp_path / "a", 6))
    weight = max(len(source.image_bytes(row)) + len(source.captions(row)[0]) + 1 for row in range(6))
    packed = pack(source, tmp_path / "b", samples_per_shard=None, bytes_per_shard=2 * weight)
    assert [len(Shards(str(path)).keys) for path in packed.shards] == [2, 2, 2]
    tiny = pack(source, tmp_path / "c", bytes_per_shard=1)  # at least one picture a shard
    assert len(tiny.shards) == 6


def test_resized_pictures_are_what_training_at_that_size_reads(tmp_path: Path) -> None:
    source = Folder(tiny_data.folder(tmp_path / "a", 4))
    (tmp_path / "a" / "p002.png").write_bytes(tiny_data.noisy(2))
    packed = pack(source, tmp_path / "b", size=8)
    new = Reader(Shards([str(path) for path in packed.shards]), 8).batch(range(4)).images
    old = Reader(source, 8).batch(range(4)).images
    assert new is not None and old is not None
    assert (new - old).abs().max() <= 0.5 / 127.5 + 1e-6  # rounding to 8 bits, no second JPEG
    assert Shards([str(path) for path in packed.shards]).where(0).endswith("p000.png")


def test_broken_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    folder = tiny_data.folder(tmp_path / "a", 4)
    (folder / "p001.png").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"p001\.png .*; it is left out"):
        packed = pack(Folder(folder), tmp_path / "b")
    assert list(packed.broken) == ["p001"] and Shards([str(p) for p in packed.shards]).keys == ["p000", "p002", "p003"]
    for path in folder.glob("*.png"):
        path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="none of the 4 pictures in a can be read"), pytest.warns(UserWarning):
        pack(Folder(folder), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    source = Folder(tiny_data.folder(tmp_path / "a", 3))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "precious").touch()
    with pytest.raises(ValueError, match="exists already and is not an empty folder"):
        pack(source, tmp_path / "b")
    with pytest.raises(ValueError, match="samples per shard is 0"):
        pack(source, tmp_path / "c", samples_per_shard=0)
    with full_disk(3000), pytest.raises(ValueError, match="could not write .*File too large; nothing was left there"):
        pack(source, tmp_path / "c")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["a", "b"]

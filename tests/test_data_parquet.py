"""Parquet with the pictures inside, as `datasets` writes it: the same samples as from a folder, in any order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
import tiny_data
import torch

from unclip.data.open import open_data, open_source
from unclip.data.shards import Shards
from unclip.randomness import Noise

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))


def write(path: Path, rows: Sequence[dict[str, Any]], metadata: dict[str, Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows))
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, row_group_size=2)
    return path


def image(i: int, path: str | None = None) -> dict[str, Any]:
    return {"bytes": tiny_data.picture(i), "path": path}


def test_pictures_in_a_table_are_those_of_a_folder(tmp_path: Path) -> None:
    folder = tiny_data.folder(tmp_path / "a", 5)
    table = write(tmp_path / "t.parquet", [{"image": image(i, f"p{i:03d}.png"), "text": tiny_data.caption(i)} for i in range(5)])
    with pytest.warns(UserWarning, match="t.parquet is a table with pictures in it: it is copied to .* once"):
        new = open_data(table, 4)
    old = open_data(folder, 4)
    assert new.keys == old.keys
    a, b = (data.batch([4, 0, 2, 2], Noise.of(0, range(4))) for data in (old, new))
    assert a.captions == b.captions and torch.equal(a.images, b.images)  # type: ignore[arg-type]
    memory = fsspec.filesystem("memory")
    memory.pipe("/tables/t.parquet", table.read_bytes())
    with pytest.warns(UserWarning, match="is a table with pictures"):
        assert open_source("memory://tables/t.parquet").keys == old.keys


def test_a_hub_folder_is_read_split_by_split(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 1)):
        for part in range(2):
            rows = [{"image": image(9 * part + i), "caption": f"{split} {part} {i}"} for i in range(count)]
            write(tmp_path / "hub" / "data" / f"{split}-{part:05d}-of-00002.parquet", rows)
    with pytest.raises(ValueError, match=r"several tables: name one .*/data/test-\*-of-\*.parquet, .*/data/train-\*-of-\*"):
        open_source(tmp_path / "hub")
    with pytest.warns(UserWarning, match="is a table with pictures"):
        source = open_source(f"{tmp_path}/hub/data/train-*.parquet")
    assert isinstance(source, Shards) and source.keys == [f"train-0000{p}-of-00002/{i}" for p in range(2) for i in range(3)]
    assert [source.captions(row) for row in range(6)] == [[f"train {p} {i}"] for p in range(2) for i in range(3)]
    for path in (tmp_path / "hub" / "data").glob("test-*"):
        path.unlink()
    again = open_source(tmp_path / "hub")
    assert again.keys == source.keys


@pytest.mark.parametrize(
    ("column", "value", "key"),
    [
        ("img", tiny_data.picture(1), "0"),
        ("jpg", tiny_data.picture(1, "JPEG"), "0"),
        ("Image", image(1, "deep/c.v1.png"), "deep/c.v1"),
        ("cover", image(1, "/abs/x.png"), "abs/x"),
    ],
)
def test_columns_and_names_of_pictures(tmp_path: Path, column: str, value: Any, key: str) -> None:
    path = write(tmp_path / "t.parquet", [{"id": 7, column: value, "Caption": ["one", None, "two\nlines"]}])
    with pytest.warns(UserWarning):
        source = open_source(path)
    assert isinstance(source, Shards) and source.keys == [key] and source.captions(0) == ["one", "two\nlines"]
    assert source.image_bytes(0) == (value["bytes"] if isinstance(value, dict) else value)
    assert source.where(0).endswith("jpg" if column == "jpg" else "png")


def test_keys_are_the_column_or_unique_paths_or_numbers(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"key": f"k{i}", "image": image(i, "image.png"), "text": str(i)} for i in range(12)]
    for name, drop, expected in (("a", (), ["k0", "k1", "k10"]), ("b", ("key",), ["00", "01", "02"])):
        path = write(tmp_path / f"{name}.parquet", [{k: v for k, v in row.items() if k not in drop} for row in rows])
        with pytest.warns(UserWarning):
            source = open_source(path)
        assert isinstance(source, Shards) and len(source.keys) == 12 and source.keys[:3] == expected


def test_rows_that_lack_a_half_are_left_out(tmp_path: Path) -> None:
    absent = {"bytes": None, "path": "x.png"}
    rows = [{"image": image(0), "text": "a"}, {"image": absent, "text": "b"}, {"image": image(2), "text": None}]
    with pytest.warns(UserWarning) as seen:
        source = open_source(write(tmp_path / "t.parquet", rows))
    assert source.keys == ["0"]
    told = [str(w.message) for w in seen]
    assert "1 pictures have no caption and are left out: 2" in told and "1 captions have no picture and are left out: 1" in told


def test_numbers_of_classes_have_their_names(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
    rows = [{"image": image(i), "label": i % 2, "fine": 10 * i} for i in range(3)]
    path = write(tmp_path / "t.parquet", rows, {"info": {"features": features}})
    with pytest.warns(UserWarning):
        data = open_data(path, 4, labels="label")
    assert data.classes == ("ant", "zebra") and data.batch(range(3)).labels.tolist() == [1, 0, 1]  # type: ignore[union-attr]
    assert data.batch([0]).captions is None and open_data(path, 4, labels="fine").classes == ("0", "10", "20")


def test_tables_of_two_kinds_or_without_pictures_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a-1.parquet", [{"image": image(0), "text": "a"}])
    write(tmp_path / "a-2.parquet", [{"image": "x.png", "text": "a"}])
    with pytest.raises(ValueError, match="a-1.parquet holds its pictures and .*a-2.parquet does not"):
        open_source(tmp_path)
    fsspec.filesystem("memory").pipe("/tables/a-2.parquet", (tmp_path / "a-2.parquet").read_bytes())
    with pytest.raises(ValueError, match="it holds no pictures; tables that only name them"), pytest.warns(UserWarning):
        open_source("memory://tables/a-2.parquet")
    write(tmp_path / "b.parquet", [{"image": image(0), "text": {"de": "eins"}}])
    with pytest.raises(ValueError, match="b.parquet cannot be read: row 1: expected .*, got a dict"), pytest.warns(UserWarning):
        open_source(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-9])
    with pytest.raises(ValueError, match="c.parquet cannot be read as Parquet"):
        open_source(tmp_path / "c.parquet")

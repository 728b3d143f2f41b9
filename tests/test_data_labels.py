"""Classes of pictures: the same numbers from a folder a class, a table's column, sidecars and shards, and one list for all."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_data
import torch
from typer.testing import CliRunner

from unclip.cli.data import app
from unclip.data.check import Quantiles, check
from unclip.data.embed import embed
from unclip.data.folder import Folder
from unclip.data.mix import Mix
from unclip.data.open import DataConfig, SourceConfig, open_data, open_source
from unclip.data.pack import pack
from unclip.data.reader import Reader
from unclip.data.sample import class_names, label_name
from unclip.data.shards import Shards
from unclip.randomness import Noise

ANIMALS = {"owls/a": "owl", "cats/b": "cat", "cats/c": "cat", "dogs/deep/d": "dog", "owls/e": "owl"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))


def pictures(folder: Path) -> Path:
    """A folder for each animal, without captions."""
    for i, key in enumerate(ANIMALS):
        path = folder / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_data.picture(i))
    return folder


def table(folder: Path, kind: str) -> Path:
    rows = [{"file_name": f"{key}.png", "Animal": name} for key, name in ANIMALS.items()]
    path = folder / f"captions.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return folder


def sidecars(folder: Path, record: Callable[[str], Any] = lambda name: {"animal": name}) -> Path:
    for key, name in ANIMALS.items():
        (folder / f"{key}.json").write_text(json.dumps(record(name)))
    return folder


def tar(path: Path) -> Path:
    """Shards as other tools write them: numbers in .cls, everything else in .json."""
    members = {}
    for i, (key, name) in enumerate(ANIMALS.items()):
        members[f"{key}.png"] = tiny_data.picture(i)
        members[f"{key}.json"] = json.dumps({"Animal": name, "width": 6}).encode()
        members[f"{key}.cls"] = b"%d\n" % (8 + i % 3)
    return tiny_data.tar(path, members)


def test_classes_are_the_same_wherever_they_stand(tmp_path: Path) -> None:
    layouts = {
        "folders": (pictures(tmp_path / "folders"), "folder"),
        "csv": (table(pictures(tmp_path / "csv"), "csv"), "animal"),
        "jsonl": (table(pictures(tmp_path / "jsonl"), "jsonl"), "Animal"),
        "parquet": (table(pictures(tmp_path / "parquet"), "parquet"), "ANIMAL"),
        "sidecars": (sidecars(pictures(tmp_path / "sidecars")), "animal"),
        "tar": (tar(tmp_path / "x.tar"), "animal"),
        "tar's folders": (tar(tmp_path / "y.tar"), "folder"),
        "table's folders": (table(pictures(tmp_path / "both"), "csv"), "folder"),
    }
    for name, (source, labels) in layouts.items():
        data = DataConfig(source=str(source), size=4, labels=labels).open()
        assert data.classes == (("cats", "dogs", "owls") if labels == "folder" else ("cat", "dog", "owl")), name
        assert list(data.keys) == sorted(ANIMALS) and data.fields == {"images", "labels"}
        batch = data.batch([0, 4, 2, 3, 0], Noise.of(0, range(5)))
        assert batch.labels is not None and batch.labels.dtype == torch.int64 and batch.captions is None
        assert batch.keys == ["cats/b", "owls/e", "dogs/deep/d", "owls/a", "cats/b"]
        assert batch.labels.tolist() == [0, 2, 1, 2, 0], name


def test_numbers_of_classes_are_sorted_as_numbers(tmp_path: Path) -> None:
    data = open_data(tar(tmp_path / "x.tar"), None, labels="cls")
    assert data.classes == ("8", "9", "10")
    assert data.batch(range(5)).labels.tolist() == [1, 2, 0, 0, 1]  # type: ignore[union-attr]
    assert class_names(["10", "9", "x"]) == ("10", "9", "x") and class_names(["010", "9", "10"]) == ("9", "010", "10")
    assert [label_name(value) for value in (" cat ", 3, 3.0, True, None, "", float("nan"))] == [
        "cat", "3", "3", "True", None, None, None,
    ]  # fmt: skip
    for value in (0.5, ["cat"], {"name": "cat"}):
        with pytest.raises(ValueError, match="expected the name of a class or a whole number"):
            label_name(value)


def test_labels_of_a_shard_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "x.tar")
    first = open_data(path, None, labels="animal")
    monkeypatch.setattr("unclip.data.shards.read_labels", lambda *a: pytest.fail("read again"))
    assert open_data(path, None, labels="animal").batch(range(5)).labels.tolist() == first.batch(range(5)).labels.tolist()  # type: ignore
    monkeypatch.undo()
    tiny_data.tar(path, {"k.png": tiny_data.picture(0), "k.json": b'{"animal": "ox"}'})
    assert open_data(path, None, labels="animal").classes == ("ox",)


def test_captions_stay_where_there_are_some(tmp_path: Path) -> None:
    folder = sidecars(pictures(tmp_path / "a"))
    for key, text in {"cats/b": "a cat\nmeow", "owls/a": "hoot", "owls/e": "hoot"}.items():
        (folder / f"{key}.txt").write_text(text)
    shards = pack(open_source(folder, "animal"), tmp_path / "b").shards
    for data in (open_data(folder, None, labels="animal"), open_data(shards[0], None, labels="label")):
        batch = data.batch(range(5))
        assert data.fields == {"captions", "labels"} and batch.captions == ["a cat", "", "", "hoot", "hoot"]
        assert batch.labels.tolist() == [0, 0, 1, 2, 2]  # type: ignore[union-attr]
        assert {c for i in range(20) for c in data.batch([0], Noise.of(0, [i])).captions or []} == {"a cat", "meow"}
    # Without labels a .json must have a caption, as in a shard.
    with pytest.warns(UserWarning, match="json cannot be read: expected .*caption"):
        assert open_data(folder, None).batch([1]).keys == ["owls/a"]


def test_pictures_without_a_label_are_left_out_and_named(tmp_path: Path) -> None:
    folder = sidecars(pictures(tmp_path / "a"), lambda name: {"animal": None if name == "dog" else name})
    (folder / "stray.png").write_bytes(tiny_data.picture(9))
    (folder / "cats" / "b.json").write_text("{oh")
    with pytest.warns(UserWarning, match="3 pictures have no label and are left out: cats/b, dogs/deep/d, stray"):
        data = open_data(folder, None, labels="animal")
    assert list(data.keys) == ["cats/c", "owls/a", "owls/e"] and data.classes == ("cat", "owl")
    with pytest.warns(UserWarning, match="1 pictures have no label and are left out: stray"):
        assert len(open_data(folder, None, labels="folder")) == 5
    (folder / "cats" / "c.json").write_text('{"animal": ["cat"]}')
    with pytest.raises(ValueError, match=r"c.json: expected the name of a class or a whole number, got \['cat'\] as 'animal'"):
        open_data(folder, None, labels="animal")
    with pytest.raises(ValueError, match="6 pictures and 0 labels, .* a table with the column 'kind', or NAME.json"):
        open_data(folder, None, labels="kind")


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = table(pictures(tmp_path / "a"), "csv")
    with pytest.raises(ValueError, match="captions.csv has the columns file_name, Animal; none of them is 'kind'"):
        open_data(folder, None, labels="kind")
    rows = [("cats/b.png", "cat"), ("cats/b.png", "lion")]
    (folder / "captions.csv").write_text("file_name,animal\n" + "\n".join(map(",".join, rows)))
    with pytest.raises(ValueError, match="line 3: 'cats/b' is 'lion' here and 'cat' before"):
        open_data(folder, None, labels="animal")


def test_held_out_data_are_numbered_as_the_training(tmp_path: Path) -> None:
    whole = open_data(pictures(tmp_path / "a"), 4, labels="folder")
    held = tmp_path / "b"
    for name in ("owls/x", "cats/y"):
        (held / name).parent.mkdir(parents=True)
        (held / f"{name}.png").write_bytes(tiny_data.picture(1))
    config = DataConfig(source=str(held), size=4, labels="folder")
    assert config.open().batch([0, 1]).labels.tolist() == [0, 1]  # type: ignore[union-attr]
    for data in (config.open(classes=whole.classes), config.replace(classes=whole.classes).open()):
        assert data.classes == whole.classes and data.batch([0, 1]).labels.tolist() == [0, 2]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="owls/x of b is of the class 'owls', which is not among the 2 known: cats, dogs"):
        config.open(classes=("cats", "dogs"))
    with pytest.raises(ValueError, match="names of 3 classes are not all different: cats, owls, cats"):
        config.open(classes=("cats", "owls", "cats"))
    with pytest.raises(ValueError, match="not where labels stand"):
        DataConfig(source="x", classes=("a",))
    assert DataConfig.from_json(config.to_json()) == config


def test_a_mix_has_the_classes_of_all_its_parts(tmp_path: Path) -> None:
    pictures(tmp_path / "a")
    more = tmp_path / "b" / "bats" / "x.png"
    more.parent.mkdir(parents=True)
    more.write_bytes(tiny_data.picture(7))
    sources = tuple(SourceConfig(path=str(tmp_path / name), weight=1.0) for name in "ab")
    data = DataConfig(source=sources, size=4, labels="folder").open()
    assert isinstance(data, Mix) and data.classes == ("bats", "cats", "dogs", "owls")
    batch = data.batch([5, 0, 4, 2])
    assert batch.keys == ["bats/x", "cats/b", "owls/e", "dogs/deep/d"] and batch.labels.tolist() == [0, 1, 3, 2]  # type: ignore
    parts = [Reader(Folder(tmp_path / name, labels="folder"), 4) for name in "ab"]
    with pytest.raises(ValueError, match="a and b number their classes differently"):
        Mix(parts, ["a", "b"])


def test_embeddings_keep_their_labels_beside_them(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a")
    embed(tiny.clip(), Reader(Folder(folder, labels="folder"), None), tmp_path / "e", per_shard=2)
    data = open_data(folder, 4, embeddings=tmp_path / "e", labels="folder")
    batch = data.batch([4, 1])
    assert data.fields == {"images", "image_embed", "labels"} and batch.labels.tolist() == [2, 0]  # type: ignore[union-attr]
    assert batch.image_embed is not None and batch.image_embed.shape == (2, tiny.EMBED) and batch.text is None
    alone = open_data(tmp_path / "e", None)
    assert alone.classes == () and alone.batch([0]).labels is None
    with pytest.raises(ValueError, match="holds embeddings, which have no labels"):
        open_data(tmp_path / "e", None, labels="folder")


def test_broken_pictures_are_replaced_with_their_labels(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a")
    (folder / "cats" / "c.png").write_bytes(b"oh")
    data = open_data(folder, 4, labels="folder")
    with pytest.warns(UserWarning, match="the next picture takes its place"):
        batch = data.batch([1, 0])
    assert batch.keys == ["dogs/deep/d", "cats/b"] and batch.labels.tolist() == [1, 0]  # type: ignore[union-attr]


def test_check_counts_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures(tmp_path / "a")
    (folder / "cats" / "c.png").write_bytes(b"oh")
    report = check(folder, labels="folder")
    assert report.classes == {"cats": 1, "dogs": 1, "owls": 2} and report.samples == 5 and report.captions == 0
    assert Quantiles.of(report.classes.values()) == Quantiles(least=1, median=1, most=2)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["check", "a", "--labels", "folder"])
    assert done.exit_code == 1 and "a: 5 labelled pictures, 4 readable" in done.output
    assert "classes         3 of 1 to 2 (median 1) pictures" in done.output and "largest         owls 2" in done.output
    assert CliRunner().invoke(app, ["pack", "a", "b", "--labels", "folder"]).exit_code == 0
    assert open_data("b", None, labels="label").classes == ("cats", "dogs", "owls")
    assert isinstance(open_source("b", "folder"), Shards)

"""One reader over every layout: the same samples give the same batches, joined by key, mixed by weight, whatever is broken."""

from __future__ import annotations

import csv
import json
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch

from unclip.data.embeddings import Embeddings
from unclip.data.images import load_image
from unclip.data.mix import Mix
from unclip.data.open import DataConfig, SourceConfig, open_data
from unclip.data.order import Data, indices, slice_for
from unclip.data.reader import Reader
from unclip.randomness import Noise
from unclip.types import Batch, Text

N = 12


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))


def write_parquet(path: Path, rows: list[dict[str, object]]) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows), path)


def write_csv(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def layouts(path: Path) -> dict[str, str]:
    """The same twelve samples in every way that they can lie on a disk."""
    tiny_data.folder(path / "texts", N)
    rows = [{"file_name": f"p{i:03d}.png", "text": tiny_data.caption(i)} for i in reversed(range(N))]
    for kind in ("jsonl", "csv", "tsv", "parquet"):
        folder = tiny_data.folder(path / kind, N)
        for text in folder.glob("*.txt"):
            text.unlink()
        table = folder / f"captions.{kind}"
        if kind == "jsonl":
            table.write_text("\n".join(map(json.dumps, rows)))
        elif kind == "parquet":
            write_parquet(table, list(rows))
        else:
            write_csv(table, rows, "\t" if kind == "tsv" else ",")
    tiny_data.shards(path / "one", N, N)
    tiny_data.shards(path / "five", N, 5)
    named = {kind: str(path / kind) for kind in ("texts", "jsonl", "csv", "tsv", "parquet", "one", "five")}
    more = {"braces": f"{path}/five/s-{{000..002}}.tar"}
    return named | more | {"table": str(path / "csv" / "captions.csv"), "glob": f"{path}/five/s-*.tar"}


def test_the_layout_of_data_does_not_change_a_batch(tmp_path: Path) -> None:
    named = layouts(tmp_path)
    opened = {name: DataConfig(source=source, size=4).open() for name, source in named.items()}
    chosen = indices(N, 5, 3, 7)
    expected = opened["texts"].batch(chosen, Noise.of(0, range(5)))
    assert expected.images is not None and expected.keys == [f"p{i:03d}" for i in chosen]
    assert expected.captions == [tiny_data.caption(i) for i in chosen]
    red = torch.tensor([i / 127.5 - 1 for i in chosen])
    torch.testing.assert_close(expected.images[:, 0, 2, 2], red)
    assert len(opened) == 10
    for data in opened.values():
        assert isinstance(data, Data) and len(data) == N
        batch = data.batch(chosen, Noise.of(0, range(5)))
        assert batch.keys == expected.keys and batch.captions == expected.captions
        assert torch.equal(batch.images, expected.images)  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [2, 4])
def test_processes_take_slices_of_the_same_batch(tmp_path: Path, world: int) -> None:
    data = open_data(str(tiny_data.shards(tmp_path / "s", N, 5)), 4)
    chosen, noise = indices(N, 8, 0, 3), Noise.of(0, range(8))
    whole = data.batch(chosen, noise)
    parts = [data.batch(chosen[mine], noise[mine]) for rank in range(world) if (mine := slice_for(8, rank, world))]
    assert [key for part in parts for key in part.keys] == whole.keys
    assert torch.equal(torch.cat([p.images for p in parts]), whole.images)  # type: ignore[misc, arg-type]


def test_rows_of_a_table_add_up_to_several_captions(tmp_path: Path) -> None:
    folder = tiny_data.folder(tmp_path / "a", 2)
    rows = [("p000.png", "one"), ("p001.png", "two"), ("p000.png", "uno")]
    write_csv(folder / "captions.csv", [{"image": place, "caption": text} for place, text in rows])
    data = open_data(folder, 4)
    assert {c for i in range(20) for c in data.batch([0], Noise.of(0, [i])).captions or []} == {"one", "uno"}
    assert data.batch([0, 1]).captions == ["one", "two"]
    lists = tiny_data.folder(tmp_path / "b", 2)
    write_parquet(
        lists / "captions.parquet", [{"path": "p000.png", "texts": ["one", "uno"]}, {"path": "p001.png", "texts": None}]
    )
    with pytest.warns(UserWarning, match="1 pictures have no caption"):
        data = open_data(lists, 4)
    assert data.keys == ["p000"] and data.batch([0]).captions == ["one"]


def test_a_key_column_names_the_sample_wherever_its_picture_lies(tmp_path: Path) -> None:
    tiny_data.folder(tmp_path / "pictures", 2)
    tables = tmp_path / "tables"
    tables.mkdir()
    rows = [{"Key": f"k{i}", "PATH": f"../pictures/p00{i}.png", "TEXT": f"c{i}", "other": 1} for i in (1, 0)]
    write_csv(tables / "captions.csv", [{k: str(v) for k, v in row.items()} for row in rows])
    batch = open_data(tables, 4).batch([1])
    assert batch.keys == ["k1"] and batch.captions == ["c1"]
    assert batch.images is not None and batch.images[0, 0, 0, 0] == 1 / 127.5 - 1


def test_a_table_may_name_pictures_by_url(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/links/a.png", tiny_data.picture(9))
    urls = ["memory://links/a.png", "memory://links/gone.png"]
    (tmp_path / "links.jsonl").write_text("\n".join(json.dumps({"url": url, "caption": url}) for url in urls))
    data = open_data(tmp_path / "links.jsonl", 4)
    assert list(data.keys) == urls
    with pytest.warns(UserWarning, match="gone.png cannot be read"):
        batch = data.batch([1])
    assert batch.keys == [urls[0]] and batch.images is not None and batch.images[0, 0, 0, 0] == 9 / 127.5 - 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions.csv", "a,b\n1,2\n", r"columns a, b; expected one of key, .* and one of caption"),
        ("captions.csv", "file_name,text\np000.png,one, two\n", r"line 2: more fields than columns"),
        ("captions.csv", "file_name,text\n,one\n", r"line 2: expected"),
        ("captions.parquet", "no parquet", r"cannot be read as Parquet"),
        ("captions.csv", "file_name,text\np000.png,one\np001.png,caf\udce9\n", r"captions.csv, line 3 is no UTF-8 text"),
        ("captions.jsonl", '{"key": "p000", "text": "one"}\n{"key": "p001", "text": "\udce9"}', r"line 2 is no UTF-8 text"),
        ("captions.csv", 'file_name,text\np000.png,one\np001.png,"' + "x" * 2**24, r"line 3: field larger .* quote left open"),
        ("captions.csv", 'file_name,text\np000.png,one\np001.png,"two\n', r"line 3: the table ends inside quotes; is a quote"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tiny_data.folder(tmp_path / "a", 2) / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        open_data(tmp_path / "a", 4)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tiny_data.folder(tmp_path / "a", 1) / "captions.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"pip install 'unclip\[parquet\]'"):
        open_data(tmp_path / "a", 4)


def embeddings(keys: list[str], text: bool = True) -> Embeddings:
    values = torch.arange(len(keys)).float()[:, None].repeat(1, 3)
    mask = torch.ones(len(keys), 2, dtype=torch.bool)
    texts = Text([f"of {key}" for key in keys], mask.long(), values + 0.5, values[:, None].repeat(1, 2, 1), mask)
    return Embeddings(keys, values, texts if text else None)


def test_embeddings_are_joined_by_key(tmp_path: Path) -> None:
    folder = tiny_data.folder(tmp_path / "a", 4)
    keys = ["p003", "elsewhere", "p000", "p001"]
    embeddings(keys).save(tmp_path / "e.safetensors")
    with pytest.warns(UserWarning, match="1 pictures have no embedding and are left out, the first is p002"):
        data = DataConfig(source=str(folder), size=4, embeddings=str(tmp_path / "e.safetensors")).open()
    assert list(data.keys) == ["p000", "p001", "p003"]
    batch = data.batch([2, 0])
    assert batch.image_embed is not None and batch.image_embed[:, 0].tolist() == [0, 2]
    assert batch.captions == ["of p003", "of p000"] and batch.text is not None and batch.text.embed[:, 0].tolist() == [0.5, 2.5]
    assert batch.images is not None and batch.images[0, 0, 0, 0] == 3 / 127.5 - 1
    with pytest.raises(ValueError, match="none of the 4 keys of a is among the 1 with embeddings"):
        open_data(folder, 4, embeddings=embeddings(["other"]))


def test_embeddings_alone_are_data(tmp_path: Path) -> None:
    embeddings(["b", "a"]).save(tmp_path / "e.safetensors")
    data = DataConfig(source=str(tmp_path / "e.safetensors")).open()
    assert isinstance(data, Data)
    batch = data.batch([1, 0], Noise.of(0, range(2)))
    assert batch.keys == ["a", "b"] and batch.images is None and batch.captions == ["of a", "of b"]
    with pytest.raises(ValueError, match="holds embeddings and no pictures, but size=4 was asked for"):
        open_data(tmp_path / "e.safetensors", 4)


def test_two_sets_are_drawn_with_equal_probability(tmp_path: Path) -> None:
    """As the paper draws its two sets (App. C), one of which is the larger one."""
    tiny_data.folder(tmp_path / "clip", 3, prefix="c")
    tiny_data.folder(tmp_path / "dalle", 9, prefix="d")
    sources = tuple(SourceConfig(path=str(tmp_path / name), weight=1.0) for name in ("clip", "dalle"))
    config = DataConfig(source=sources, size=4)
    assert DataConfig.from_json(config.to_json()) == config
    data = config.open()
    assert isinstance(data, Mix) and isinstance(data, Data) and data.weights is not None
    drawn = Counter(data.keys[i][0] for k in range(40) for i in indices(len(data), 6, 0, k, data.weights))
    assert drawn == {"c": 120, "d": 120}
    assert open_data([tmp_path / "clip", tmp_path / "dalle"], 4).weights is None  # type: ignore[union-attr]
    batch = data.batch([11, 0, 5, 1])
    assert batch.keys == ["d008", "c000", "d002", "c001"]
    assert batch.images is not None and [round((x.item() + 1) * 127.5) for x in batch.images[:, 0, 0, 0]] == [8, 0, 2, 1]


def test_keys_that_two_sources_share_get_the_name_in_front(tmp_path: Path) -> None:
    for name, prefix in (("pets", "p"), ("cars", "p"), ("more/pets", "p"), ("art", "q")):
        tiny_data.folder(tmp_path / name, 2, prefix)
    many = [tmp_path / "pets", tmp_path / "cars", tmp_path / "more" / "pets", tmp_path / "art"]
    data = open_data(many, 4)
    assert data.keys == ["pets/p000", "pets/p001", "cars/p000", "cars/p001", "pets-2/p000", "pets-2/p001", "q000", "q001"]
    assert data.batch([5, 7, 0]).keys == ["pets-2/p001", "q001", "pets/p000"]
    named = open_data([SourceConfig(path=str(path), name=f"s{i}") for i, path in enumerate(many[:2])], 4)
    assert named.keys == ["s0/p000", "s0/p001", "s1/p000", "s1/p001"]


def test_a_mix_keeps_noise_embeddings_and_captions_with_their_samples(tmp_path: Path) -> None:
    parts = []
    for s, name in enumerate(("a", "b")):
        folder = tiny_data.folder(tmp_path / name, 3)
        (folder / "p001.txt").write_text(f"{name} one\n{name} two\n{name} three")
        embeddings([f"p00{i}" for i in (2, 0, 1)], text=False).save(tmp_path / f"{s}.safetensors")
        parts.append(SourceConfig(path=str(folder), embeddings=str(tmp_path / f"{s}.safetensors")))
    data = open_data(parts, 4)
    chosen = [4, 1, 4, 0, 1, 5, 4, 1]
    together = data.batch(chosen, Noise.of(0, range(8)))
    alone = [data.batch([i], Noise.of(0, [row])) for row, i in enumerate(chosen)]
    assert together.captions == [(b.captions or [""])[0] for b in alone] and len(set(together.captions or [])) > 4
    assert together.keys == [b.keys[0] for b in alone] and together.keys[0] == "b/p001"
    assert together.image_embed is not None and together.image_embed[:, 0].tolist() == [2, 2, 2, 1, 2, 0, 2, 2]


def test_what_cannot_be_mixed_is_refused(tmp_path: Path) -> None:
    a, b = (tiny_data.folder(tmp_path / name, 2) for name in "ab")
    embeddings(["p000", "p001"]).save(tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match="a has captions, images and b has captions, image_embed, images, text"):
        open_data([SourceConfig(path=str(a)), SourceConfig(path=str(b), embeddings=str(tmp_path / "e.safetensors"))], 4)
    with pytest.raises(ValueError, match="has no weight, but other sources have"):
        open_data([SourceConfig(path=str(a), weight=1.0), SourceConfig(path=str(b))], 4)
    with pytest.raises(ValueError, match="it must be a positive number"):
        SourceConfig(path="a", weight=0.0)
    with pytest.raises(ValueError, match="at least one source"):
        open_data([], 4)


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent is not there: expected a folder of pictures"):
        open_data(tmp_path / "absent", 4)
    (tmp_path / "x.docx").touch()
    with pytest.raises(ValueError, match="is no known kind of data"):
        open_data(tmp_path / "x.docx", 4)
    with pytest.raises(ValueError, match="only these are read from afar"):
        open_data("https://example.invalid/pictures", 4)
    with pytest.raises(ValueError, match="would run a command"):
        open_data("pipe:curl x.tar", 4)


def broken_source(path: Path, n: int, broken: list[int], kind: str) -> str:
    """n pictures, those numbered in `broken` of every kind of brokenness in turn; every fifth is mislabelled but whole."""
    names = list(tiny_data.BROKEN)
    pictures = {i: tiny_data.picture(i, "JPEG" if i % 5 == 0 else "PNG", (4, 4)) for i in range(n)}
    pictures |= {i: tiny_data.BROKEN[names[j % len(names)]] for j, i in enumerate(broken)}
    if kind == "folder":
        path.mkdir()
        for i, data in pictures.items():
            (path / f"{i:05d}.png").write_bytes(data)
        (path / "captions.jsonl").write_text("\n".join(json.dumps({"key": f"{i:05d}", "caption": str(i)}) for i in pictures))
    else:
        for s in range(4):
            mine = range(s * n // 4, (s + 1) * n // 4)
            files = {f"{i:05d}.{end}": data for i in mine for end, data in (("png", pictures[i]), ("txt", str(i).encode()))}
            tiny_data.tar(path / f"{s}.tar", files)
    return str(path)


def epoch(data: Reader, n: int, batch: int) -> list[list[str]]:
    found = []
    for k in range(n // batch):
        one = data.batch(indices(n, batch, 0, k), Noise.of(0, range(batch)))
        assert one.images is not None and one.images.shape == (batch, 3, 4, 4) and one.images.isfinite().all()
        assert one.captions == [str(int(key)) for key in one.keys]
        found.append(one.keys)
    return found


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("n", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_hundred_broken_files_do_not_stop_a_training(tmp_path: Path, kind: str, n: int) -> None:
    broken = sorted(np.random.default_rng(0).choice(n, 100, replace=False).tolist())
    source = broken_source(tmp_path / "data", n, broken, kind)
    data = open_data(source, 4)
    assert isinstance(data, Reader) and len(data) == n
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        first = epoch(data, n, 100)
        assert [data.batch(indices(n, 100, 0, k)).keys for k in (3, 1)] == [first[3], first[1]]
    told = [str(w.message) for w in seen]
    assert len(told) == len(set(told)) == 100 and all(message.endswith("the next picture takes its place") for message in told)
    for i in broken:
        assert sum(f"{i:05d}.png" in message for message in told) == 1

    def successor(i: int) -> int:
        while i in broken:
            i = (i + 1) % n
        return i

    expected = [[f"{successor(i):05d}" for i in indices(n, 100, 0, k)] for k in range(n // 100)]
    assert first == expected
    backwards = open_data(source, 4)  # another order of reading, and several threads, change nothing
    with warnings.catch_warnings(record=True) as seen, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        found = list(pool.map(lambda k: backwards.batch(indices(n, 100, 0, k)).keys, reversed(range(n // 100))))
    assert found[::-1] == expected and len(seen) == 100


def test_broken_files_may_be_errors(tmp_path: Path) -> None:
    source = broken_source(tmp_path / "data", 8, [3], "tar")
    with pytest.raises(ValueError, match="0.tar:00003.png|1.tar:00003.png"):
        open_data(source, 4, broken="raise").batch([3])


def test_only_captions_when_no_size_is_given(tmp_path: Path) -> None:
    tiny_data.folder(tmp_path / "a", 2)
    assert open_data(tmp_path / "a", None).batch([1]) == Batch(keys=["p001"], captions=[tiny_data.caption(1)])


def test_a_tilde_is_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_data.folder(tmp_path / "a", 2)
    tiny_data.shards(tmp_path / "s", 2, 1)
    embeddings(["p000", "p001"]).save(tmp_path / "e.safetensors")
    for source in ("~/a", "~/s", "~/s/*.tar", "~/s/s-{000..001}.tar"):
        assert open_data(source, 4, embeddings="~/e.safetensors").batch([1]).image_embed is not None
    assert open_data("~/e.safetensors", None).keys == ["p000", "p001"]
    assert load_image("~/a/p000.png").shape == (3, 4, 6)


def test_each_sample_has_a_noise_of_its_own(tmp_path: Path) -> None:
    folder = tiny_data.folder(tmp_path / "a", 3)
    embeddings(["p000", "p001"]).save(tmp_path / "e.safetensors")
    alone, mixed = open_data(tmp_path / "e.safetensors", None), open_data([folder, folder], 4)
    for data in (open_data(folder, 4), alone, mixed):
        for count in (1, 3):
            with pytest.raises(ValueError, match=f"2 samples need a noise stream each, got {count}"):
                data.batch([0, 1], Noise.of(0, range(count)))

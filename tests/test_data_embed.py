"""Embeddings in shards: CLIP's own answers, found by key; made once, on any number of processes, and whole or made again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_data
import torch
from torch import Tensor

from prior import PriorTask
from unclip.data.embed import Done, embed
from unclip.data.embedding_shards import EmbeddingShards
from unclip.data.folder import Folder
from unclip.data.open import SourceConfig, open_data
from unclip.data.reader import Reader
from unclip.randomness import Noise
from unclip.types import Batch

N = 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tiny_data.folder(tmp_path / "pictures", N)
    for i, text in {1: "a red heart\na cat\ntwo dogs with a hat", 4: "two dogs\na hat", 5: ""}.items():
        (folder / f"p{i:03d}.txt").write_text(text)
    (folder / "p002.png").write_bytes(tiny_data.noisy(2))
    return folder


def run(folder: Path, dest: Path, **options: Any) -> Done:
    return embed(tiny.clip(), Reader(Folder(folder), None), dest, **{"per_shard": 3, "batch": 2, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def close(a: Tensor | None, b: Tensor | None) -> None:
    assert a is not None and b is not None
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_rows_are_clips_answers_for_the_whole_pictures(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "e") == Done([0, 1, 2], [], N, 0)
    store, clip, source = EmbeddingShards(tmp_path / "e"), tiny.clip(), Folder(folder)
    assert len(store) == N and store.keys == source.keys
    keys = ["p005", "p002", "p001", "p002"]
    image_embed, text = store.rows(keys)
    with torch.no_grad():
        pictures = clip.preprocess([folder / f"{key}.png" for key in keys])
        close(image_embed, clip.encode_image(pictures))
        expected = clip.encode_text([source.captions(source.keys.index(key))[0] for key in keys])
    assert text is not None and text.strings == expected.strings and torch.equal(text.tokens, expected.tokens)
    assert torch.equal(text.mask, expected.mask) and text.tokens.dtype == expected.tokens.dtype
    close(text.embed, expected.embed)
    close(text.states[text.mask], expected.states[expected.mask])
    assert not text.states[~text.mask].any()  # what every part masks is not stored
    assert not image_embed.requires_grad and (image_embed * torch.ones(tiny.EMBED, requires_grad=True)).sum().requires_grad


def test_several_captions_are_chosen_as_texts_are(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "e")
    plain = open_data(folder, 4)
    joined = open_data(folder, 4, embeddings=tmp_path / "e")
    clip, seen = tiny.clip(), set()
    for step in range(8):
        noise = Noise.of(step, range(5))
        a, b = plain.batch([1, 4, 1, 0, 5], noise), joined.batch([1, 4, 1, 0, 5], noise)
        assert a.keys == b.keys and a.captions == b.captions and torch.equal(a.images, b.images)  # type: ignore[arg-type]
        with torch.no_grad():
            close(b.text and b.text.embed, clip.encode_text(a.captions).embed)  # type: ignore[arg-type]
        seen |= set(b.captions or [])
    assert {"a red heart", "a cat", "two dogs with a hat", "two dogs", "a hat", ""} <= seen
    alone = open_data(tmp_path / "e", None)
    assert alone.batch([1, 4], Noise.of(3, range(2))).captions == plain.batch([1, 4], Noise.of(3, range(2))).captions


def test_a_prior_learns_the_same_from_stored_embeddings(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "e")
    size = tiny.clip().image_size
    plain, joined = open_data(folder, size), open_data(folder, None, embeddings=tmp_path / "e")
    prior = tiny.prior()
    statistics = joined.batch(range(N)).image_embed
    assert statistics is not None
    prior.fit(statistics)
    task = PriorTask(prior, tiny.clip())
    noise = Noise.of(0, range(4))
    with torch.no_grad():
        a = task(plain.batch([0, 1, 4, 5], noise), noise.at("loss"))
        b = task(joined.batch([0, 1, 4, 5], noise), noise.at("loss"))
    close(a.total, b.total)


def test_finished_shards_are_skipped_and_damaged_ones_made_again(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "e")
    before = contents(tmp_path / "e")
    assert len(before) == 1 + 2 * 3
    assert run(folder, tmp_path / "e") == Done([], [0, 1, 2], 0, 0)

    path = tmp_path / "e" / "00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    for damage in (bytes(data), bytes(data[:-1]), b"", None):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        with pytest.warns(UserWarning, match="00001.safetensors .*: it is made anew"):
            assert run(folder, tmp_path / "e") == Done([1], [0, 2], 3, 0)
        assert contents(tmp_path / "e") == before

    # Killed between a shard and its receipt, and in the middle of writing.
    (tmp_path / "e" / "00002.json").unlink()
    (tmp_path / "e" / ".00002.safetensors.4711").write_bytes(b"half")
    with pytest.raises(ValueError, match="is not finished: 1 of 3 shards are not there, the first is 00002.safetensors"):
        EmbeddingShards(tmp_path / "e")
    assert run(folder, tmp_path / "e") == Done([2], [0, 1], 1, 0)
    assert contents(tmp_path / "e") == before


def test_any_number_of_processes_makes_the_same_files(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "one")
    for world in (2, 5):
        done = [run(folder, tmp_path / str(world), rank=rank, world=world) for rank in reversed(range(world))]
        assert sorted(shard for d in done for shard in d.written) == [0, 1, 2]
        assert contents(tmp_path / str(world)) == contents(tmp_path / "one")
    run(folder, tmp_path / "batches", batch=64)
    rows = [EmbeddingShards(tmp_path / name).rows(["p003"])[0] for name in ("one", "batches")]
    close(*rows)


def test_another_clip_other_data_or_another_layout_is_refused(folder: Path, tmp_path: Path) -> None:
    dest = tmp_path / "e"
    run(folder, dest)
    before = contents(dest)

    def refused(message: str, clip: Any = None, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            embed(clip or tiny.clip(), Reader(Folder(folder), None), dest, **{"per_shard": 3, "batch": 2, **options})

    refused("holds embeddings of another CLIP", clip=tiny.clip(seed=1))
    trained = tiny.clip()
    with torch.no_grad():
        next(trained.parameters()).add_(1e-2)
    refused("holds embeddings of another CLIP", clip=trained)
    refused("3 pictures a shard in float32, not 4 in float32", per_shard=4)
    refused("3 pictures a shard in float32, not 3 in float16", dtype="float16")
    text = (folder / "p000.txt").read_text()
    (folder / "p000.txt").write_text("another caption")
    refused("holds embeddings of other data")
    (folder / "p000.txt").write_text(text)
    (folder / "p000.png").write_bytes(tiny_data.noisy(1))
    refused("holds embeddings of other data")
    assert contents(dest) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    with pytest.raises(ValueError, match="is not empty and holds no embeddings"):
        run(folder, tmp_path / "other")


def test_the_clip_of_a_training_is_checked(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "e")
    store = EmbeddingShards(tmp_path / "e")
    store.check(tiny.clip())
    with pytest.raises(ValueError, match="holds embeddings of another CLIP"):
        store.check(tiny.clip(seed=1))


def test_broken_pictures_get_no_embedding_and_are_left_out_of_training(folder: Path, tmp_path: Path) -> None:
    for i, name in ((0, "zero bytes"), (3, "bomb"), (4, "corrupt"), (5, "truncated")):
        (folder / f"p{i:03d}.png").write_bytes(tiny_data.BROKEN[name])
    with pytest.warns(UserWarning) as seen:
        done = run(folder, tmp_path / "e")
    assert done == Done([0, 1, 2], [], 3, 4) and sum("it gets no embedding" in str(w.message) for w in seen) == 4
    store = EmbeddingShards(tmp_path / "e")
    assert store.keys == ["p001", "p002", "p006"] and set(store.receipts[1].broken) == {"p003", "p004", "p005"}
    with pytest.warns(UserWarning, match="4 pictures have no embedding and are left out"):
        data = open_data(folder, 4, embeddings=tmp_path / "e")
    assert list(data.keys) == store.keys and data.batch([2, 0]).keys == ["p006", "p001"]


def test_names_that_are_no_utf8_are_embedded(folder: Path, tmp_path: Path) -> None:
    odd = os.fsencode(folder / "caf") + b"\xe9"
    Path(os.fsdecode(odd + b".png")).write_bytes(tiny_data.noisy(9))
    Path(os.fsdecode(odd + b".txt")).write_text("coffee")
    assert run(folder, tmp_path / "e") == Done([0, 1, 2], [], N + 1, 0)
    batch = open_data(folder, 4, embeddings=tmp_path / "e").batch([0])
    assert batch.keys == ["caf\\xe9"] and batch.captions == ["coffee"]


def test_half_precision_takes_half_the_disk(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "e", dtype="float16")
    run(folder, tmp_path / "f")
    half, full = (EmbeddingShards(tmp_path / name) for name in "ef")
    a, b = half.rows(["p001"]), full.rows(["p001"])
    assert a[0].dtype == torch.float32 and a[1] is not None and a[1].states.dtype == torch.float32
    torch.testing.assert_close(a[0], b[0], rtol=2e-3, atol=1e-3)
    assert half.receipts[0].size < 0.75 * full.receipts[0].size  # tokens, masks and strings weigh the same


def test_damage_is_found_on_reading(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "e")
    path = tmp_path / "e" / "00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    store = EmbeddingShards(tmp_path / "e")  # hashes are not looked at on opening: that would read everything
    assert store.problems() == [f"{path} has changed"]
    path.write_bytes(data[:-8])
    with pytest.raises(ValueError, match="00000.safetensors has .* bytes instead of"):
        EmbeddingShards(tmp_path / "e")
    with pytest.raises(ValueError, match="embeddings.json cannot be read"):
        EmbeddingShards(tmp_path)


def test_more_shards_than_are_kept_open(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unclip.data.embedding_shards.OPEN", 2)
    run(folder, tmp_path / "e", per_shard=1)
    store = EmbeddingShards(tmp_path / "e")
    every = store.rows(store.keys)[0]
    assert torch.equal(store.rows(store.keys[::-1])[0], every.flip(0)) and len(store._open) == 2


def test_shards_of_pictures_and_a_mix_are_embedded_and_joined(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny_data.shards(tmp_path / name, 4, 2)
        data = open_data(tmp_path / name, None)
        assert isinstance(data, Reader)
        embed(tiny.clip(), data, tmp_path / f"{name}-embeds", per_shard=3)
    parts = [SourceConfig(path=str(tmp_path / n), embeddings=str(tmp_path / f"{n}-embeds"), weight=1.0) for n in "ab"]
    batch: Batch = open_data(parts, 4).batch([5, 2])
    assert batch.keys == ["b/p001", "a/p002"] and batch.text is not None
    assert batch.captions == batch.text.strings == [tiny_data.caption(1), tiny_data.caption(2)]
    one = EmbeddingShards(tmp_path / "a-embeds").rows(["p001", "p002"])[0]
    assert torch.equal(batch.image_embed, one)  # type: ignore[arg-type]


def test_what_the_folder_says_of_itself(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "e", source="my pictures")
    index = json.loads((tmp_path / "e" / "embeddings.json").read_text())
    assert index["source"] == "my pictures" and index["count"] == N and index["clip"]["embed_dim"] == tiny.EMBED
    shutil.rmtree(folder)  # stored embeddings need no pictures
    assert len(EmbeddingShards(tmp_path / "e").rows(["p006"])[0]) == 1

"""What `experiments.emoji.evaluation` measures: its parts on made-up pictures, and the whole command on a tiny pipeline."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from benchmarks import steps
from experiments.emoji.data import source
from experiments.emoji.evaluation import evaluate, judge, measure, measure_upsamplers
from experiments.emoji.evaluation.siblings import groups_of, motif
from unclip.data.embeddings import Embeddings
from unclip.images import eight_bit, to_pil
from unclip.randomness import Noise
from unclip.runs.recipes import find
from unclip.types import Batch, Text
from upsamplers.filters import resize


def test_by_hash_orders_by_sha1_of_the_caption() -> None:
    captions = ["a", "b", "c", "d"]
    order = measure.by_hash(captions, captions, 3)
    assert len(order) == 3
    hashes = [hashlib.sha1(captions[i].encode()).hexdigest() for i in order]
    assert hashes == sorted(hashes)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("woman and man holding hands dark skin tone light skin tone", "holding hands"),
        ("men holding hands medium-light skin tone", "holding hands"),
        ("kiss person person light skin tone dark skin tone", "kiss"),
        ("kiss mark", "kiss mark"),
        ("man factory worker medium-dark skin tone", "factory worker"),
        ("factory worker", "factory worker"),
        ("man medium skin tone", "person"),
        ("girl", "child"),
        ("old woman dark skin tone", "older"),
        ("older person", "older"),
        ("Mrs. Claus light skin tone", "Claus"),
        ("mermaid", "merperson"),
        ("person with crown", "with crown"),
        ("princess light skin tone", "with crown"),
        ("family man woman girl boy", "family person person child child"),
        ("family woman boy", "family person child"),
        ("dark skin tone", "dark skin tone"),
        ("woman red hair", "red hair"),
        ("red hair", "red hair alone"),
        ("woman’s hat", "woman’s hat"),
        ("Isle of Man", "Isle of Man"),
        ("salt and pepper", "salt and pepper"),
    ],
)
def test_motif_leaves_out_skin_tones_and_genders(caption: str, expected: str) -> None:
    assert motif(caption) == expected


def test_siblings_among_the_real_captions() -> None:
    rows = source.read_captions()
    names = [motif(row.caption) for row in rows]
    sizes = torch.bincount(groups_of(names))
    assert int(sizes.max()) == 104  # couples: four or five kinds, 25 pairs of skin tones and none
    # whatever names neither a tone nor a person stands alone
    assert all(name == row.caption for name, row in zip(names, rows) if row.caption.islower() and "face" in row.caption.split())
    alone = {row.caption for row, group in zip(rows, groups_of(names)) if row.split == "heldout" and sizes[group] < 6}
    assert alone == {"medium skin tone"}  # the swatch; every other held-out emoji has siblings


def test_groups_of_numbers_equal_names() -> None:
    assert groups_of(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def flat(*levels: float) -> Tensor:
    return torch.stack([torch.full((3, 4, 4), level) for level in levels])


def test_nearest_ranks_the_true_picture() -> None:
    every = flat(0, 0.2, 0.4, 0.6, 0.8)
    alone = groups_of(range(5))
    assert measure.nearest(flat(0.41, 0.41), every, [2, 4], alone).tolist() == [0, 3]
    pairs = groups_of(["a", "a", "b", "b", "c"])
    assert measure.nearest(flat(0.41, 0.41, 0.41), every, [3, 4, 0], pairs).tolist() == [0, 2, 1]


def test_a_twin_is_no_miss() -> None:
    every = flat(0, 0.5, 0.5)
    twins = groups_of([picture.numpy().tobytes() for picture in every])
    assert measure.nearest(flat(0.5, 0.4), every, [2, 1], twins).tolist() == [0, 0]


def test_retrieval_counts_better_pictures() -> None:
    images = torch.eye(4)
    texts = torch.tensor([[1.0, 0, 0, 0], [1.0, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    text = Text(list("abcd"), torch.zeros(4, 1).long(), texts, torch.zeros(4, 1, 4), torch.ones(4, 1).bool())
    embeddings = Embeddings(list("abcd"), images, text)
    found = measure.retrieval(embeddings, range(4), groups_of(range(4)))
    assert found["CLIP, text to image, top-1"].mean == 0.75
    assert found["CLIP, text to image, top-5"].mean == 1.0
    assert measure.retrieval(embeddings, range(4), groups_of("aabc"))["CLIP, text to image, top-1"].mean == 1.0


def test_spread_is_the_mean_over_pairs() -> None:
    x = torch.tensor([[0.0, 0], [3, 4], [0, 0]])
    assert measure._spread(x, "rms") == pytest.approx(2 / 3 * (25 / 2) ** 0.5)
    assert measure._spread(torch.tensor([[1.0, 0], [0, 2], [5, 0]]), "cosine") == pytest.approx(2 / 3)


def test_eight_bit_is_what_the_png_holds() -> None:
    x = 1.3 * Noise.of(0).normal((3, 16, 16))[0]
    pixels = torch.from_numpy(np.asarray(to_pil(x)).copy()).permute(2, 0, 1)
    torch.testing.assert_close((eight_bit(x) + 1) * 127.5, pixels.float(), atol=1e-4, rtol=0)


class Upsampler:
    """The resized picture plus the noise it starts from; `rim` output pixels at every border are spoilt."""

    scale = 4

    def __init__(self, rim: int = 0):
        self.rim, self.seen = rim, []  # type: ignore[var-annotated]

    def sample(self, low_res: Tensor, *, noise: Noise, x_t: Tensor) -> Tensor:
        self.seen.append(tuple(low_res.shape[-2:]))
        out = low_res.repeat_interleave(4, 2).repeat_interleave(4, 3) + x_t
        if self.rim:
            inner = (..., slice(self.rim, -self.rim), slice(self.rim, -self.rim))
            spoilt = torch.full_like(out, torch.nan)
            spoilt[inner] = out[inner]
            return spoilt
        return out


@pytest.mark.parametrize(("side", "tile", "overlap"), [(16, 8, 2), (16, 8, 4), (17, 6, 2), (8, 8, 2)])
def test_tiles_of_a_local_upsampler_are_the_whole(side: int, tile: int, overlap: int) -> None:
    noise = Noise.of(0)
    low, x_t = noise.normal((3, side, side)), noise.normal((3, 4 * side, 4 * side))
    upsampler = Upsampler()
    whole = upsampler.sample(low, noise=noise, x_t=x_t)
    upsampler.seen.clear()
    assert torch.equal(measure_upsamplers.tiled(upsampler, low, x_t, tile, overlap, noise), whole)
    assert set(upsampler.seen) == {(tile, tile)}


def test_tiles_are_joined_in_the_middle_of_their_overlaps() -> None:
    """What is wrong within half an overlap of a tile's border never shows, but at the picture's own border."""
    noise, overlap = Noise.of(0), 4
    low, x_t = noise.normal((3, 16, 16)), noise.normal((3, 64, 64))
    rim = overlap // 2 * 4
    joined = measure_upsamplers.tiled(Upsampler(rim), low, x_t, 8, overlap, noise)
    assert not joined[..., rim:-rim, rim:-rim].isnan().any()
    assert measure_upsamplers.tiled(Upsampler(rim + 1), low, x_t, 8, overlap, noise)[..., rim:-rim, rim:-rim].isnan().any()


def test_scores_are_of_rounded_pictures_against_the_truth() -> None:
    truth = eight_bit(Noise.of(0).uniform((3, 8, 8)) * 1.8 - 0.9)
    scores = measure_upsamplers.Scores()
    scores.add("half", truth / 2, truth)
    scores.add("nudged", truth + 0.1 / 127.5, truth)  # a tenth of a level is rounded away
    found = scores.numbers()
    assert found["half, gradient magnitude / truth's"].mean == pytest.approx(0.5, abs=0.01)
    assert found["nudged, PSNR dB"].mean > 100


def test_the_judge_is_the_recipes_clip_from_another_seed() -> None:
    ours, its = find("emoji.clip"), find("emoji.judge")
    assert its.train.seed != ours.train.seed
    assert its.replace(train=its.train.replace(seed=ours.train.seed)) == ours
    assert its.data.split == "train"  # type: ignore[attr-defined]


def test_the_judge_is_not_the_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path))
    own, other = tiny.clip(0), tiny.clip(7)
    assert judge.load(strange_to=own) is None
    other.save_pretrained(judge.folder())
    loaded = judge.load(strange_to=own)
    assert loaded is not None
    rows = judge.features(loaded, torch.rand(3, 3, 16, 16) * 2 - 1, batch=2)
    assert torch.allclose(rows.norm(dim=1), torch.full((3,), tiny.EMBED**0.5))
    with pytest.raises(ValueError, match="CLIP of the pipeline itself"):
        judge.load(strange_to=other)
    with pytest.raises(ValueError, match="holds no component"):
        judge.load(tmp_path / "nowhere", strange_to=own)


class Data:
    """Twelve smooth pictures, every third held out; the last two are one picture under two names."""

    def __init__(self, split: str, size: int):
        rows = [i for i in range(12) if split == "all" or (i % 3 == 2) == (split == "heldout")]
        self.size, self.keys = size, [f"k{i:02}" for i in rows]
        self.captions = [f"{name} {tone} skin tone" for tone in ("light", "dark", "medium") for name in ("a", "b", "c", "d")]
        self.captions = [self.captions[i] for i in rows]
        pictures = Noise.of(1, [min(i, 10) for i in rows]).uniform((3, 4, 4)) * 2 - 1
        self.pictures = eight_bit(resize(pictures, (size, size), "bilinear"))

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, rows: Sequence[int]) -> Batch:
        return Batch([self.keys[i] for i in rows], self.pictures[list(rows)], [self.captions[i] for i in rows])


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny pipeline on disk, tiny data, and no judge."""
    monkeypatch.setattr(measure, "EmojiData", Data)
    monkeypatch.setattr(measure_upsamplers, "EmojiData", Data)
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))
    tiny.pipeline().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


SMALL = ["--n", "4", "--pictures", "2", "--captions", "2", "--draws", "3"]


@pytest.mark.filterwarnings("ignore:.*cut to.*", "ignore:the caption .* is longer")
def test_the_command(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.clip(7).save_pretrained(judge.folder())
    sections = [name for name in evaluate.SECTIONS if name != "cost"]
    evaluate.main([model, *SMALL, "--only", *sections, "--json", str(tmp_path / "all.json")])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "all.json").read_text())
    assert found["seed"] == 0 and found["judge"] is True and found["sections"] == sections and found["commit"]
    for block in ("train", "heldout"):
        rows = found[block]
        for name in ("full chain", "decoder alone (true embedding)"):
            for number in ("nearest picture top-5, siblings as one", "KID", "precision", "recall", "CLIP score"):
                assert f"{name}, {number}" in rows and f"{name}, {number}" in printed
        assert rows["full chain, KID"]["n"] == rows["in other words, full chain, nearest picture top-5"]["n"] == 4
        assert rows["diversity, 1 - judge's cosine, 3 draws of a caption"]["n"] == 2
    # 8 trained pictures leave four others, 4 held-out ones none
    assert "true pictures of other captions, KID" in found["train"]
    assert "true pictures of other captions, KID" not in found["heldout"]
    for name in ("upsampler 64", "upsampler 256, bicubic", "upsamplers alone (true 16 px), 256", "full chain, 64"):
        assert found["heldout"][f"{name}, PSNR dB"]["n"] == 2
        assert f"{name}, PSNR dB" not in found["train"]
    assert found["heldout"]["upsampler 256, tiles of 128, RMS difference in levels of 255"]["mean"] < 128
    for block in ("train", "heldout"):
        for name, row in found[block].items():
            assert row["low"] <= row["mean"] <= row["high"], name


@pytest.mark.filterwarnings("ignore:.*cut to.*")
def test_parts_measured_apart_are_the_whole(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, both, together = (tmp_path / f"{name}.json" for name in ("a", "b", "both", "together"))
    evaluate.main([model, *SMALL, "--only", "prior", "--json", str(a)])
    assert "judge" not in capsys.readouterr().out
    evaluate.main([model, *SMALL, "--only", "pictures", "--json", str(b)])
    assert f"`{judge.MAKE}` makes it" in capsys.readouterr().out
    evaluate.main(["--merge", str(a), str(b), "--json", str(together)])
    evaluate.main([model, *SMALL, "--only", "prior", "pictures", "--json", str(both)])
    assert json.loads(together.read_text()) == json.loads(both.read_text())
    changed: dict[str, Any] = json.loads(b.read_text()) | {"weights": "other"}
    b.write_text(json.dumps(changed))
    with pytest.raises(SystemExit):
        evaluate.main(["--merge", str(a), str(b)])
    assert "weights other" in capsys.readouterr().err


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["nowhere"], ["--n", "1"], ["--merge", str(tmp_path / "none.json")]):
        with pytest.raises(SystemExit) as stopped:
            evaluate.main(arguments)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.filterwarnings("ignore:.*cut to.*")
def test_the_steps_benchmark(model: str) -> None:
    """Each part of benchmarks/steps.py on the tiny pipeline: as many steps as the reference are the reference."""
    tiny.clip(7).save_pretrained(judge.folder())
    subject = measure.Subject(model)
    args = argparse.Namespace(n=2, captions=8, steps=[2, 6], ddpm=[3], reference=6)
    for part in (steps.prior, steps.decoder, steps.upsamplers):
        tables = part(subject, args)
        for table in tables:
            distance = {row.setting: next(iter(row.numbers.values())).mean for row in table.rows}
            assert distance["ddim 6"] == 0 < min(distance["ddim 2"], distance["dpmpp_2m 2"])
        assert len(tables) == (1 if part is steps.prior else 2)  # the decoder's guidances, the upsamplers
    (noisy,) = steps.stochastic(subject, args)
    assert [row.setting for row in noisy.rows][1:] == ["ddpm 3", "ddim 25, eta 0.5", "ddim 25, eta 1"]
    (guided,) = steps.guidance(subject, args)
    plain, full = (next(row for row in guided.rows if row.setting == f"guidance {g}").numbers for g in (1, 2))
    assert {"nearest picture top-5", "KID", "precision", "recall"} < set(plain) and plain["KID"] != full["KID"]
    printed = steps.markdown(guided)
    assert printed.count("\n") == len(guided.rows) + 4 and "| guidance 3 within (200, 800) |" in printed

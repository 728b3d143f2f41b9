"""The experiments on priors, each from end to end on a tiny pipeline and two folders of pictures, and what they count."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor

from experiments.figures import best_of, compare_priors, explained_variance, guidance_sweep, prior_curves, prior_importance
from experiments.figures.priors import columns, contestants, curves, material
from experiments.figures.priors.contestants import AR, CAPTION, CONTRASTIVE, DIFFUSION, LINEAR, NAMES, TEXT
from unclip import UnCLIP
from unclip.images import to_pil
from unclip.randomness import Noise
from upsamplers.filters import resize

pytestmark = pytest.mark.filterwarnings("ignore:.*cut to.*", "ignore:.*buckets.*")
WORDS = ["a red heart", "a cat with a hat", "two dogs", "a hat", "a red cat", "two cats with a hat", "a heart with two dogs"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("priors") / "model"
    tiny.pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Twenty smooth pictures to train on and five held out, with a text file each."""
    place = tmp_path_factory.mktemp("data")
    pictures = resize(Noise.of(1, range(25)).uniform((3, 4, 4)) * 1.6 - 0.8, (16, 16), "bilinear")
    for i, picture in enumerate(pictures):
        folder = place / ("train" if i < 20 else "heldout")
        folder.mkdir(exist_ok=True)
        to_pil(picture).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(WORDS[i % len(WORDS)])
    return ["--data", str(place / "train"), "--heldout", str(place / "heldout"), "--n", "4"]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("judge") / "clip"
    tiny.clip(seed=8).save_pretrained(folder)
    return ["--judge", str(folder)]


def run(script: ModuleType, model: str, folder: Path, *arguments: str) -> dict[str, Any]:
    script.main([model, "-o", str(folder), *arguments])
    name = script.__name__.rpartition(".")[2]
    return json.loads((folder / f"{name}.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} in the JSON"))


def picture(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        assert min(image.size) >= 20 and len(set(image.convert("L").get_flattened_data())) > 20


def test_the_table(model: str, data: list[str], judge: list[str], tmp_path: Path) -> None:
    arguments = [*data, *judge, "--steps", "2", "--runs", str(tmp_path / "runs")]
    record = run(compare_priors, model, tmp_path, *arguments)
    assert set(record["numbers"]) == {f"{name}, {split}" for name in NAMES for split in compare_priors.SPLITS.values()}
    assert all(math.isfinite(v) for row in record["numbers"].values() for number in row.values() for v in number.values())
    heldout = {name: record["numbers"][f"{name}, held-out captions"] for name in NAMES}
    for name in (LINEAR, TEXT, CONTRASTIVE):  # which draw nothing
        assert heldout[name]["mean cosine of 8 draws"]["mean"] == pytest.approx(1, abs=1e-6)
    for name in (DIFFUSION, AR):
        assert heldout[name]["mean cosine of 8 draws"]["mean"] < 0.9999
    assert "cosine" not in heldout[CAPTION] and "wins in RGB" not in heldout[CAPTION]
    assert all(0 <= heldout[name]["wins in RGB"]["mean"] <= 1 for name in NAMES if name != CAPTION)
    assert {"KID", "precision", "recall", "CLIP score", "wins before the judge"} <= set(heldout[AR])
    cost = record["cost"]
    assert cost[AR]["parameters"] > 1000 and cost[AR]["training FLOPs"] > cost[LINEAR]["training FLOPs"] > 0
    assert cost[CAPTION]["seconds per embedding, batch 1"] is None and cost[AR]["seconds per embedding, batch 64"] > 0
    page = (tmp_path / "compare_priors.md").read_text()
    assert all(f"| {name} |" in page for name in NAMES) and page.count("\n|---") == 3
    # What was trained is there the next time, and everything comes out the same.
    again = run(compare_priors, model, tmp_path / "again", *arguments)
    assert again["numbers"] == record["numbers"]


def test_the_table_takes_the_checkpoints_own_ar_prior(model: str, data: list[str], tmp_path: Path) -> None:
    options = compare_priors.figures.base_parser("", n=4, what="")
    material.add_options(options)
    subject = material.subject_of(UnCLIP.from_pretrained(model), options.parse_args([model, *data]))
    own = contestants.fresh(subject, AR, seed=3)
    told = {"stages": {"ar_prior": {"training_runs": [{"samples": 7}, {"samples": 3}]}}}
    tiny.pipeline(provenance=told).save_pretrained(tmp_path / "m", ar_prior=own)
    subject = material.subject_of(UnCLIP.from_pretrained(tmp_path / "m"), options.parse_args([str(tmp_path / "m"), *data]))
    found = {c.name: c for c in contestants.contestants(subject, str(tmp_path / "m"), tmp_path / "runs", 1)}
    assert not (tmp_path / "runs" / "AR_prior").exists()
    assert found[AR].flops == pytest.approx(10 * contestants.training_flops(subject, own))
    assert (found[AR].candidates, found[DIFFUSION].candidates) == (1, 2)


def test_learning_curves(model: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--seeds", "2", "--steps", "1", "2", "--ratio", "3", "--runs", str(tmp_path / "runs")]
    record = run(prior_curves, model, tmp_path, *data, *few)
    picture(tmp_path / "prior_curves.png")
    runs = record["runs"]
    assert [(r["prior"], r["seed"]) for r in runs] == [(DIFFUSION, 0), (AR, 0), (DIFFUSION, 1), (AR, 1)]
    for one in runs:
        ratio = 3 if one["prior"] == DIFFUSION else 1
        assert [p["steps"] for p in one["points"]] == [ratio, 2 * ratio]
        assert [p["flops"] for p in one["points"]] == pytest.approx([one["flops"] * k * 128 for k in (ratio, 2 * ratio)])
    assert f"better than the AR prior? {record['verdict']}" in capsys.readouterr().out
    # Longer curves go on from the shorter ones' state.
    longer = [*few[:5], "3", *few[5:]]
    more = run(prior_curves, model, tmp_path / "more", *data, *longer)
    for before, after in zip(runs, more["runs"]):
        assert after["points"][:2] == before["points"] and len(after["points"]) == 3
    out = capsys.readouterr().out
    assert "continuing" in out and "1 steps" not in out


def points(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"flops": flops, "cosine": value, "R@5": value} for flops, value in pairs]


def record(name: str, *pairs: tuple[float, float]) -> dict[str, Any]:
    return {"prior": name, "parameters": 5, "points": points(*pairs)}


def test_curves_are_compared_at_equal_compute() -> None:
    better = [record(DIFFUSION, (1, 0.5), (100, 0.9 + e)) for e in (0, 0.01, -0.01)]
    worse = [record(AR, (10, 0.2), (1000, 0.9 + e)) for e in (0, 0.01, -0.01)]
    found = curves.compare([*better, *worse])
    assert found["verdict"] == "yes" and found["parameters"] == {AR: 5, DIFFUSION: 5}
    first, last = found["budgets"][0], found["budgets"][-1]
    assert (first["flops"], last["flops"]) == pytest.approx((10, 100))  # what both have reached
    assert first["cosine"]["diffusion"] == pytest.approx(0.7) and first["cosine"]["AR"] == pytest.approx(0.2)
    assert last["cosine"]["AR"] == pytest.approx(0.55) and last["cosine"]["difference"] == pytest.approx(0.35)
    # Welch's interval of the last: variances 1e-4 and 2.5e-5 over three seeds; 2.94 degrees of freedom, counted as 2.
    half = 4.303 * math.sqrt((1e-4 + 2.5e-5) / 3)
    assert last["R@5"]["high"] - last["R@5"]["difference"] == pytest.approx(half)
    swapped = [r | {"prior": {AR: DIFFUSION, DIFFUSION: AR}[r["prior"]]} for r in (*better, *worse)]
    assert curves.compare(swapped)["verdict"] == "no"
    noisy = [record(DIFFUSION, (1, 0.1), (100, x)) for x in (0.1, 0.9)] + [record(AR, (1, 0.1), (100, x)) for x in (0.2, 0.4)]
    assert curves.compare(noisy)["verdict"] == "undecided"
    with pytest.raises(ValueError, match="two seeds"):
        curves.compare([*better, worse[0]])


def test_a_tie_is_half_a_win(model: str, data: list[str]) -> None:
    options = compare_priors.figures.base_parser("", n=4, what="")
    material.add_options(options)
    subject = material.subject_of(UnCLIP.from_pretrained(model), options.parse_args([model, *data]))
    rows = subject.rows("heldout", 4)
    assert not set(subject.captions(rows)) - set(WORDS)
    true, far = subject.images[rows], torch.ones(4, 3, 16, 16)
    mixed: Tensor = torch.stack([true[0], far[1], true[2], far[3]])
    assert columns.wins(subject, true, far, rows)["wins in RGB"].mean == 1
    assert columns.wins(subject, far, true, rows)["wins in RGB"].mean == 0
    assert columns.wins(subject, mixed, far, rows)["wins in RGB"].mean == 0.75


def test_prior_importance(model: str, data: list[str], judge: list[str], tmp_path: Path) -> None:
    found = run(prior_importance, model, tmp_path, *data, *judge, "--rows", "2")
    picture(tmp_path / "prior_importance.png")
    assert list(found["numbers"]) == [CAPTION, TEXT, prior_importance.PRIOR, prior_importance.TRUE]
    assert "wins in RGB" in found["numbers"][TEXT] and "KID" in found["numbers"][CAPTION]


def test_best_of(model: str, data: list[str], tmp_path: Path) -> None:
    found = run(best_of, model, tmp_path, *data, "--candidates", "8", "1", "2", "--pictures", "4")["numbers"]
    picture(tmp_path / "best_of.png")
    nearness = [found[f"{DIFFUSION}, best of {k}"]["cosine to the caption"]["mean"] for k in (1, 2, 8)]
    assert nearness == sorted(nearness) and nearness[0] < nearness[2]  # the more candidates, the nearer the kept one


def test_guidance_sweep(model: str, data: list[str], judge: list[str], tmp_path: Path) -> None:
    few = ["--scales", "1", "3", "--prior-scales", "1", "2", "--draws", "2", "--few", "2"]
    found = run(guidance_sweep, model, tmp_path, *data, *judge, *few)["numbers"]
    picture(tmp_path / "guidance_sweep.png")
    assert len(found) == 6 and found["unCLIP, decoder 1"] != found["unCLIP, decoder 3"]
    assert found["diffusion prior, prior 1"]["cosine"] != found["diffusion prior, prior 2"]["cosine"]
    assert all(row[guidance_sweep.DIVERSITY]["mean"] > 0 for row in found.values())


def test_explained_variance(model: str, data: list[str], tmp_path: Path) -> None:
    tiny.clip(seed=5).save_pretrained(tmp_path / "other")
    found = run(explained_variance, model, tmp_path, *data, "--clips", f"other={tmp_path / 'other'}")
    picture(tmp_path / "explained_variance.png")
    for name in ("tiny", "other"):
        about, explained = found["numbers"][name], found["explained"][name]
        k = about["components for 99.0% of the variance"]["value"]
        assert explained[k - 1] >= 0.99 and (k == 1 or explained[k - 2] < 0.99)
        assert 1 <= about["effective rank"]["value"] <= tiny.EMBED
    assert found["explained"]["tiny"] != found["explained"]["other"]
    assert explained_variance.effective_rank(torch.ones(7, dtype=torch.float64)) == pytest.approx(7)


def test_bad_input_is_one_line(model: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for script, arguments, told in [
        (compare_priors, [model], "--data and --heldout"),
        (compare_priors, [model, *data[:2]], "belong together"),
        (compare_priors, [model, *data, "--n", "3"], "--n is 3"),
        (prior_curves, [model, *data, "--seeds", "1"], "--seeds is 1"),
        (prior_importance, [model, *data, "--rows", "0"], "--rows 0"),
        (best_of, [model, *data, "--candidates", "0"], "--candidates"),
        (guidance_sweep, [model, *data, "--draws", "1"], "--draws 1"),
        (explained_variance, [model, *data, "--clips", "x"], "NAME=FOLDER"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            script.main([*arguments, "-o", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1 and told in error, (arguments, error)
    assert not (tmp_path / "out").exists()

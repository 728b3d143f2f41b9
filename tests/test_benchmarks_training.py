"""The benchmark against dalle2-pytorch, without that package: our workers at a tiny size, their queue, tables and verdicts."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import training
from benchmarks.dalle2_pytorch import environment as training_environment
from benchmarks.dalle2_pytorch import ours as training_ours
from benchmarks.dalle2_pytorch import run as training_run
from benchmarks.dalle2_pytorch import tables as training_tables
from benchmarks.dalle2_pytorch.common import Ticks, shuffled
from benchmarks.dalle2_pytorch.data import synthetic
from benchmarks.dalle2_pytorch.jobs import Bench, Job, ablation_jobs, learning_jobs, speed_jobs
from benchmarks.dalle2_pytorch.run import Results, lanes, run_jobs
from benchmarks.dalle2_pytorch.settings import (
    ABLATIONS,
    EMOJI,
    LEARNERS,
    PACKAGE,
    PAIRS,
    RECIPE,
    STAGES,
    VERSION,
    Ours,
    small,
    small_ours,
)
from benchmarks.dalle2_pytorch.tables import OURS, THEIRS
from prior import DiffusionPrior
from unclip.data.files import cache_folder
from unclip.nn.unet import ResidualBlock, UNet
from unclip.runs.recipes import find

# Ours


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("training") / "material.safetensors"
    synthetic(EMOJI, path, n=24)
    return path


def job(folder: Path, material: Path, stage: str, **more: Any) -> tuple[Path, dict[str, Any]]:
    spec = {
        "stage": stage, "seed": 3, "threads": 1, "cores": [], "precision": "own", "material": str(material),
        "changes": list(small_ours(stage, Ours()).changes), "out": str(folder / "out.json"), "drawn": str(folder / "drawn.st"),
    } | more  # fmt: skip
    (folder / "job").write_text(json.dumps(spec))
    return folder / "job", spec


def test_a_step_of_ours_is_timed_and_counted(tmp_path: Path, material: Path) -> None:
    synthetic(PAIRS[0].data, wide := tmp_path / "wide.safetensors", n=8)
    path, spec = job(tmp_path, wide, "prior", task="speed", repeats=3, changes=list(small(PAIRS[0]).ours.changes))
    training_ours.main(str(path))
    found = json.loads(Path(spec["out"]).read_text())
    assert len(found["seconds"]) == 3 and min(found["seconds"]) > 0
    assert found["samples per second"] == pytest.approx(8 / sorted(found["seconds"])[1])
    recipe = find("emoji.prior").override(*spec["changes"])
    assert found["parameters"] == sum(p.numel() for p in DiffusionPrior(recipe.model).parameters())
    # Forward and backward: about 6 operations a weight and token, of the transformer's weights and 32 tokens.
    assert found["gflop"] == pytest.approx(6 * 12 * 512**2 * 32 / 1e9, rel=0.2)
    assert 0 < found["start"] <= found["peak"] < 20


@pytest.mark.parametrize(("stage", "shape"), [("prior", (5, 128)), ("decoder", (5, 3, 64, 64))])
def test_ours_learns_for_its_time_and_draws(stage: str, shape: tuple[int, ...], tmp_path: Path, material: Path) -> None:
    path, spec = job(tmp_path, material, stage, task="learn", seconds=0.5, rows=[0, 3, 5, 7, 9])
    training_ours.main(str(path))
    found = json.loads(Path(spec["out"]).read_text())
    assert found["updates"] >= training_ours.FIRST and found["samples"] == found["updates"] * (8 if stage == "prior" else 2)
    drawn = load_file(spec["drawn"])["averaged weights"]
    assert drawn.shape == shape and drawn.isfinite().all()


def test_training_is_stopped_at_its_time(tmp_path: Path, material: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the first steps promised far too many."""
    monkeypatch.setattr(training_ours, "AIM", 1000.0)
    _, spec = job(tmp_path, material, "prior")
    recipe, data = training_ours.recipe_of(spec), training_ours.Material(str(material), False)
    task = training_ours.task_of(recipe, data)
    before = time.process_time()
    updates, seconds = training_ours.train_for(task, data, recipe.train, 1.0, 1, tmp_path / "run")
    assert updates > training_ours.FIRST and 0.9 < seconds < 5  # not a thousand times as long
    assert time.process_time() - before < 60


def test_a_stopped_worker_tells_nothing(tmp_path: Path, material: Path) -> None:
    """What was cut off by somebody's signal is not taken for a training of its full time."""
    path, spec = job(tmp_path, material, "prior", task="learn", seconds=600.0, rows=[0])
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        timer.start()
        with pytest.raises(SystemExit) as ended:
            training_ours.main(str(path))
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143 and not Path(spec["out"]).exists()


def test_a_recipe_is_changed_and_seeded() -> None:
    spec = {"stage": "prior", "seed": 3, "changes": ["train.batch=64"], "precision": "float32"}
    train = training_ours.recipe_of(spec).train
    assert (train.batch, train.seed, train.precision, train.sample_every) == (64, 3, "float32", None)
    assert training_ours.recipe_of(spec | {"precision": "own"}).train.precision == find("emoji.prior").train.precision


def test_material_is_trained_on_by_its_flag(material: Path) -> None:
    data = training_ours.Material(str(material), True)
    batch = data.batch([2, 0])
    assert len(data) == 24 and batch.keys == ["2", "0"] and batch.text is not None and batch.images is not None
    raw = load_file(material)
    torch.testing.assert_close(batch.image_embed, raw["image_embed"][[2, 0]])
    torch.testing.assert_close((batch.images + 1) * 127.5, raw["pictures"][[2, 0]].float())
    assert batch.text.mask.all() and batch.captions == ["2", "0"]


# Both


def test_shuffled_epochs_hold_every_row_once() -> None:
    order = shuffled(10, 4, seed=1)
    drawn = torch.cat([next(order) for _ in range(5)])
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()
    assert next(shuffled(10, 4, seed=2)).tolist() != drawn[:4].tolist()


def test_laps_leave_out_the_first() -> None:
    ticks = Ticks()
    ticks.times = [0.0, 9.0, 10.0, 12.0]
    assert ticks.laps == [1.0, 2.0]
    ticks()
    assert ticks.peak > 0.01


def test_every_setting_fits_the_recipes() -> None:
    for stage in STAGES:
        for changes in ABLATIONS[stage].values():
            find(f"emoji.{stage}").override(*changes)
        assert next(iter(ABLATIONS[stage])) == RECIPE and not ABLATIONS[stage][RECIPE]
    for pair in PAIRS:
        recipe = find(f"emoji.{pair.stage}").override(*pair.ours.changes)
        if pair.judged:
            assert recipe.train.batch == pair.theirs.batch


def test_equal_rows_are_equal() -> None:
    """Of theirs the package's own counts: 24.8M weights of the prior of 512 x 6."""
    counts = {}
    for pair in PAIRS[:2]:
        recipe = find(f"emoji.{pair.stage}").override(*pair.ours.changes)
        with torch.device("meta"):
            model = DiffusionPrior(recipe.model)
        counts[pair.title, pair.stage] = sum(p.numel() for p in model.parameters()) / 1e6
    assert counts["equal width and parameters", "prior"] == pytest.approx(24.8, rel=0.05)
    unet = find("emoji.decoder").override(*PAIRS[2].ours.changes).model.unet
    with torch.device("meta"):
        blocks = sum(isinstance(module, ResidualBlock) for module in UNet(unet).modules())
    assert blocks == 21 and unet.channels == PAIRS[2].theirs.net["dim"]  # theirs has as many ResnetBlocks
    assert find("emoji.prior").override(*PAIRS[0].ours.changes).model.network.transformer.layers == PAIRS[0].theirs.net["depth"]


# Jobs and their queue


def parsed(*options: str, threads: int = 1) -> Any:
    return training.parse(["--threads", str(threads), *options])


def test_systems_take_turns(tmp_path: Path) -> None:
    jobs = speed_jobs(parsed("--rounds", "2", "--small"), tmp_path)
    assert [job.spec["system"] for job in jobs] == [THEIRS, OURS] * (len(jobs) // 2)
    assert len({job.name for job in jobs}) == len(jobs) == 2 * 2 * sum(len(pair.precisions) for pair in PAIRS)
    assert all(json.loads(json.dumps(job.spec)) for job in jobs)


def test_what_learners_are_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "material", "clip", {"prior": [1, 2], "decoder": [1]})
    jobs = learning_jobs(parsed("--seeds", "2", "--minutes-decoder", "7", "--their-steps", "9"), bench)
    by_name = {job.name: job.spec for job in jobs}
    assert len(by_name) == 2 * 2 + 2
    theirs = by_name["learn, decoder, theirs, README, dim 32, bfloat16, seed 0"]
    assert theirs["precision"] == "bfloat16"
    assert theirs["seconds"] == 420 and theirs["model"]["sample_timesteps"] == 9 and theirs["guidance"] == (2.0, 1.0)
    assert by_name["learn, prior, ours, recipe, seed 1"]["seconds"] == 600
    assert LEARNERS["decoder"]["README, dim 32"].model["sample_timesteps"] == 250  # unchanged
    names = [job.name for job in learning_jobs(parsed("--seeds", "1", "--settings", "prior.md", "README"), bench)]
    assert [name.split(", ", 2)[2] for name in names] == [
        "theirs, README, seed 0", "theirs, prior.md, seed 0", "ours, recipe, seed 0",
        "theirs, README, dim 32, bfloat16, seed 0", "ours, recipe, seed 0",
    ]  # fmt: skip
    assert [job.spec["title"] for job in ablation_jobs(parsed("--stages", "decoder"), bench)] == list(ABLATIONS["decoder"])


WORKER = """
import json, os, sys
spec = json.load(open(sys.argv[1]))
open(spec["runs"], "a").write(spec["title"] + "\\n")
if spec["title"] == "bad": sys.exit("it broke")
open(spec["drawn"], "w").write("drawn")
json.dump({"threads": os.environ["OMP_NUM_THREADS"], "cores": spec["cores"]}, open(spec["out"], "w"))
"""


def test_each_system_has_its_worker() -> None:
    assert set(training_run.WORKERS) == {OURS, THEIRS}
    assert all(importlib.util.find_spec(module) for module in training_run.WORKERS.values())


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Results]:
    """Runs jobs with a worker that leaves its title behind."""
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(training_run, "WORKERS", {OURS: "worker"})

    def run(*titles: str) -> Results:
        results = Results(tmp_path / "results.json")
        jobs = [
            Job(title, {"title": title, "system": OURS, "precision": "own", "runs": str(tmp_path / "runs")}) for title in titles
        ]
        run_jobs(jobs, results, [[]], 1, {OURS: Path(sys.executable)}, tmp_path, lambda job, drawn: {"there": drawn.exists()})
        return results

    return run


def test_ended_workers_are_kept_and_not_run_again(queue: Callable[..., Results], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="bad ended with status 1(.|\n)*it broke"):
        queue("one", "bad", "never")
    results = queue("one", "two")
    ran = (tmp_path / "runs").read_text().split()
    assert ran.count("one") == 1 and ran.count("two") == 1
    assert results.record["two"]["measured"] == {"there": True} and results.record["two"]["found"]["threads"] == "1"
    assert not list((tmp_path / "work").glob("*.safetensors"))  # what was drawn is measured, then gone


def test_other_settings_are_another_job(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    results.add(Job("a", {"seconds": 1.0, "rows": (1, 2)}), {"x": 1}, None)
    again = Results(tmp_path / "results.json")
    assert again.has(Job("a", {"seconds": 1.0, "rows": [1, 2]}))
    assert not again.has(Job("a", {"seconds": 2.0, "rows": [1, 2]})) and not again.has(Job("b", {}))
    assert again.of([Job("b", {}), Job("a", {"seconds": 1.0, "rows": [1, 2]})])["a"]["found"] == {"x": 1}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no pinning here")
def test_lanes_are_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5})
    assert lanes(2, 2) == [[0, 1], [2, 5]] and lanes(1, 1) == [[0]]
    with pytest.raises(ValueError, match="3 jobs of 2 threads each need 6 cores; there are 4"):
        lanes(3, 2)


THEIR_PYTHON = cache_folder() / f"{PACKAGE}-{VERSION}" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.skipif(not THEIR_PYTHON.exists(), reason="dalle2-pytorch's environment is made by benchmarks.training")
@pytest.mark.parametrize("section", ["speed", "learn"])
def test_theirs_does_the_same_jobs(section: str, tmp_path: Path) -> None:
    synthetic(EMOJI, path := tmp_path / "material", n=24)
    args = parsed(
        "--small", "--seeds", "1", "--rounds", "1", "--repeats", "1", "--minutes-prior", "0.01", "--minutes-decoder", "0.01"
    )
    if section == "speed":
        jobs = [job for job in speed_jobs(args, tmp_path) if job.spec["title"] == "own settings"]
        synthetic(EMOJI, Path(jobs[0].spec["material"]), n=24)
    else:
        jobs = learning_jobs(args, Bench(path, "", {"prior": [0, 2, 4], "decoder": [1, 3]}))
    jobs = [job for job in jobs if job.spec["system"] == THEIRS]
    results, shapes = Results(tmp_path / "results.json"), {}

    def shape(job: Job, drawn: Path) -> dict[str, Any]:
        for name, x in load_file(drawn).items():
            shapes[job.spec["stage"]] = (*x.shape, bool(x.isfinite().all()))
            assert name.startswith("last weights")  # the averaged ones are a copy so far
        return {}

    run_jobs(jobs, results, [[]], 1, {THEIRS: THEIR_PYTHON}, tmp_path, shape if section == "learn" else None)
    found = [results.record[job.name]["found"] for job in jobs]
    if section == "speed":
        assert len(found) == 2 and all(len(one["seconds"]) == 1 and one["gflop"] > 0 and one["peak"] > 0.3 for one in found)
    else:
        assert shapes == {"prior": (3, 128, True), "decoder": (2, 3, 64, 64, True)}
        assert all(one["updates"] > 0 and one["seconds"] >= 0.6 for one in found)


# Tables


def timed(system: str, seconds: float, peak: float, pair: Any = PAIRS[0], i: int = 0) -> tuple[str, dict[str, Any]]:
    spec = {"section": "speed", "stage": pair.stage, "title": pair.title, "precision": "float32", "system": system, "batch": 64}
    found = {"seconds": [seconds, 10 * seconds, seconds], "peak": peak, "start": 0.5, "parameters": 20_000_000, "gflop": 3.0}
    return f"{pair.title} {system} {i}", {"spec": spec, "found": found}


@pytest.mark.parametrize(("ours", "peak", "reached"), [(1.0, 1.0, True), (2.5, 1.0, False), (1.0, 1.5, False), (2.0, 1.2, True)])
def test_speed_is_judged(ours: float, peak: float, reached: bool) -> None:
    record = dict([timed(THEIRS, 2.0, 1.2), timed(OURS, ours, peak)])
    table = training_tables.speed(record)
    row = next(line for line in table.lines if line.startswith("prior, equal width and depth, float32")).split()
    assert float(row[6]) == pytest.approx(32.0) and float(row[7]) == pytest.approx(64 / ours, rel=1e-2)
    assert float(row[8]) == pytest.approx(2.0 / ours, abs=0.01) and float(row[9]) == 1.2 and float(row[10]) == peak
    assert table.reached == reached and row[-1] == ("reached" if reached else "MISSED")
    assert "theirs 0.50, ours 0.50" in table.lines[-1]


def test_own_settings_are_not_judged() -> None:
    pair = PAIRS[3]._replace(precisions=("float32",))
    table = training_tables.speed(dict([timed(THEIRS, 1.0, 1.0, pair), timed(OURS, 3.0, 2.0, pair)]), [pair])
    assert table.reached and not any("MISSED" in line for line in table.lines)


def learned(
    stage: str, system: str, title: str, measured: dict[str, dict[str, list[float]]], seed: int = 0, section: str = "learn"
) -> tuple[str, dict[str, Any]]:
    spec = {"section": section, "stage": stage, "system": system, "title": title, "seed": seed}
    found = {"seconds": 600.0, "updates": 100 + seed, "samples": 3200, "parameters": 5_000_000}
    return f"{section} {stage} {system} {title} {seed}", {"spec": spec, "found": found, "measured": measured}


def numbers(stage: str, **values: list[float]) -> dict[str, list[float]]:
    n = len(next(iter(values.values())))
    return {
        name: values.get(name.replace("@", "").replace(" ", "_").replace("-", "_"), [0.5] * n)
        for name in training_tables.SHOWN[stage]
    }  # noqa: E501


def test_the_best_of_theirs_counts_for_each_number() -> None:
    a = numbers("prior", cosine=[0.5, 0.6] * 20, R5=[0.0] * 40)
    b = numbers("prior", cosine=[0.4, 0.5] * 20, R5=[0.0, 1.0] * 20)
    ours = numbers("prior", cosine=[0.6, 0.8] * 20, R5=[1.0] * 40)
    record = dict(
        [
            learned("prior", THEIRS, "README", {"averaged weights": a, "last weights": b}),
            learned("prior", OURS, RECIPE, {"averaged weights": ours}, seed=0),
            learned("prior", OURS, RECIPE, {"averaged weights": ours}, seed=1),
        ]
    )
    table = training_tables.learning(record, {"prior": {"the text embedding, cosine": 0.25}}, ["prior"])
    text = "\n".join(table.lines)
    assert table.reached
    assert "prior, cosine: ours ahead by 0.150" in text and "prior, R@5: ours ahead by 0.500" in text
    by_cosine, by_recall = (line for line in table.lines if "ahead by" in line)
    assert by_cosine.endswith("(README, averaged weights)") and by_recall.endswith("(README, last weights)")
    assert "without training: the text embedding, cosine" in text and "(0.700-0.700)" in text


@pytest.mark.parametrize("ours", [[0.5, 0.6] * 20, [0.51, 0.6] + [0.5, 0.6] * 19])
def test_a_lead_within_chance_is_none(ours: list[float]) -> None:
    hits = numbers("decoder", nearest_top_5=[0.5, 0.6] * 20)
    record = dict(
        [
            learned("decoder", THEIRS, "README, dim 32", {"last weights": hits}),
            learned("decoder", OURS, RECIPE, {"averaged weights": numbers("decoder", nearest_top_5=ours)}),
        ]
    )
    table = training_tables.learning(record, {}, ["decoder"])
    assert not table.reached and any("ours level by" in line for line in table.lines)


@pytest.mark.parametrize(("recall", "told", "reached"), [([1.0] * 40, "level", True), ([0.0] * 40, "BEHIND", False)])
def test_the_second_number_must_not_fall_behind(recall: list[float], told: str, reached: bool) -> None:
    theirs, ours = numbers("prior", cosine=[0.5] * 40, R5=[1.0] * 40), numbers("prior", cosine=[0.6] * 40, R5=recall)
    record = dict([learned("prior", THEIRS, "a", {"x": theirs}), learned("prior", OURS, RECIPE, {"x": ours})])
    table = training_tables.learning(record, {}, ["prior"])
    assert table.reached == reached and any(f"R@5: ours {told} by" in line for line in table.lines)


def test_one_system_alone_reaches_nothing() -> None:
    record = dict([learned("decoder", OURS, RECIPE, {"averaged weights": numbers("decoder", nearest_top_5=[1.0] * 4)})])
    assert not training_tables.learning(record, {}, ["decoder"]).reached


def test_what_a_setting_takes_away() -> None:
    base = {"averaged weights": numbers("decoder", nearest_top_5=[1.0, 0.0] * 10)}
    worse = {"averaged weights": numbers("decoder", nearest_top_5=[0.0] * 20)}
    record = dict(
        [
            learned("decoder", OURS, RECIPE, base, section="ablation"),
            learned("decoder", OURS, "float32", worse, section="ablation"),
        ]
    )
    line = training_tables.ablation(record, ["decoder", "prior"]).lines[-2]
    assert line.startswith("decoder, float32 less the recipe: nearest top-5 -0.500 [-0.")


# Their environment and the command


def script(folder: Path, text: str) -> None:
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{text}\n")
    python.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for Python")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo 'No package metadata was found' >&2; exit 1", "has no dalle2-pytorch, or no torch: No package metadata was found"),
        ("echo 1.15.5 " + torch.__version__, f"has dalle2-pytorch 1.15.5 and torch {torch.__version__}".replace("+", r"\+")),
        ("echo 1.15.6 2.0.0", "dalle2-pytorch 1.15.6 and torch 2.0.0; compared are"),
        (None, "is not a virtual environment: it has no bin/python"),
    ],
)
def test_an_environment_that_does_not_fit(text: str | None, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    if text is None:
        folder.mkdir()
    else:
        script(folder, text)
    with pytest.raises(ValueError, match=message) as raised:
        training_environment.environment(folder)
    assert "--theirs" in str(raised.value)


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for Python")
def test_an_environment_that_fits(tmp_path: Path) -> None:
    script(tmp_path / "theirs", f"echo 1.15.6 {torch.__version__}")
    assert training_environment.environment(tmp_path / "theirs") == tmp_path / "theirs" / "bin" / "python"


def test_without_a_network_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The venv is made, and pip told to look nowhere."""
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_CONFIG_FILE", os.devnull), ("PIP_FIND_LINKS", str(tmp_path))):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        training.main(["--threads", "1", "--theirs", str(tmp_path / "theirs"), "--only", "speed"])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert "making" in told.out and "dalle2-pytorch==1.15.6` failed: " in told.err and "remove" in told.err
    (pointer,) = (tmp_path / "theirs").rglob("torch_of_unclip.pth")
    assert Path(pointer.read_text().strip()) == Path(torch.__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "0"], "--jobs must be at least 1, not 0"),
        (["--minutes-prior", "0"], "--minutes-prior must be above 0"),
        (["--only", "everything"], "invalid choice: 'everything'"),
        (["--captions", "1"], "--captions must be at least 2"),
    ],
)
def test_bad_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.parse(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("faster", "status"), [(2.0, 0), (0.5, 1)])
def test_the_verdict(
    faster: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command, with workers that only say how long they took."""

    def run_all(jobs: list[Job], results: Results, *rest: Any) -> None:
        for job in jobs:
            seconds = 1.0 if job.spec["system"] == OURS else faster
            found = {"seconds": [seconds], "peak": 1.0, "start": 0.5, "parameters": 10**7, "gflop": 2.0}
            results.add(job, found, None)

    monkeypatch.setattr(training, "run_jobs", run_all)
    monkeypatch.setattr(training, "environment", lambda folder: Path(sys.executable))
    monkeypatch.setattr(training, "versions", lambda python: "versions")
    monkeypatch.setattr(training, "header", lambda: "a machine")
    with pytest.raises(SystemExit) as ended:
        training.main(["--only", "speed", "--runs", str(tmp_path), "--threads", "1"])
    assert ended.value.code == status
    out = capsys.readouterr().out
    assert out.startswith("a machine\nversions\n") and out.rstrip().endswith("reached" if status == 0 else "MISSED")
    rows = [line for line in out.splitlines() if line.startswith(STAGES)]
    assert len(rows) == sum(len(pair.precisions) for pair in PAIRS)
    own = next(line for line in rows if "decoder, own settings" in line).split()
    batches = math.prod([32]), find("emoji.decoder").train.batch
    assert [float(x) for x in own[4:6]] == pytest.approx([batches[0] / faster, batches[1]], rel=1e-2)

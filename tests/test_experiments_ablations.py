"""Trainings of equal CPU time: the clock, what is measured of a lone part, and the whole command on tiny parts and data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import tiny
import torch
from torch import Tensor

from decoder import DecoderConfig
from experiments.emoji.ablations import ablations, equal_time
from experiments.emoji.ablations import table as ablations_table
from experiments.emoji.ablations.equal_time import FIRST, Spent, add, stood, train_for
from experiments.emoji.evaluation import measure_parts
from experiments.emoji.evaluation.measure_parts import Ground
from unclip.data.embeddings import Embeddings
from unclip.data.spec import DataSpec
from unclip.nn.unet import UNetConfig
from unclip.randomness import Noise
from unclip.runs import Training
from unclip.runs.recipes import find
from unclip.sampling import Sampling
from unclip.training import TrainConfig
from unclip.types import Batch, Cond, Prediction, Text
from upsamplers import UpsamplerConfig
from upsamplers.filters import resize

SIZE, COUNT = 16, 12


class Data:
    """Twelve smooth pictures, each with a made-up embedding and caption; every third is held out."""

    def __init__(self, split: Literal["train", "all"] = "all"):
        rows = [i for i in range(COUNT) if split == "all" or i % 3]
        self.keys = [f"k{i:02}" for i in rows]
        self.captions = [f"{'abcd'[i % 4]} {'light' if i < 6 else 'dark'} skin tone {i // 8}" for i in rows]
        self.pictures = resize(Noise.of(1, rows).uniform((3, 4, 4)) * 1.8 - 0.9, (SIZE, SIZE), "bilinear").clamp(-1, 1)
        noise = Noise.of(2, rows)
        states = noise.at("states").normal((tiny.CONTEXT, tiny.WIDTH))
        mask = torch.ones(len(rows), tiny.CONTEXT, dtype=torch.bool)
        text = Text(self.captions, mask.long(), noise.at("text").normal((tiny.EMBED,)), states, mask)
        self.embeddings = Embeddings(self.keys, noise.at("image").normal((tiny.EMBED,)), text)

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Any, noise: Noise | None = None) -> Batch:
        rows = list(indices)
        found = Batch([self.keys[i] for i in rows], self.pictures[rows], [self.captions[i] for i in rows])
        return self.embeddings.join(found)


class TinyData(DataSpec, frozen=True, kw_only=True):
    def open(self, classes: Sequence[str] | None = None) -> Data:
        return Data("train")


def recipe(**changes: Any) -> Training:
    train = TrainConfig(steps=1, batch=4, lr=1e-3, warmup=2, decay="constant", save_every="3600s", keep=1)
    return Training(model=tiny.decoder().config, data=TinyData(size=SIZE), train=train.replace(**changes))


def ground() -> Ground:
    return Ground(Data(), Data("train").keys)  # type: ignore[arg-type]


def test_steps_are_planned_from_what_they_cost() -> None:
    assert Spent().more(100) == FIRST
    assert Spent(steps=4, seconds=1.0).more(100) == FIRST - 4
    assert Spent(steps=10, seconds=10.0).more(100) == 80  # all but a tenth of the time
    assert Spent(steps=90, seconds=90.0).more(100) == 10  # and the rest
    assert Spent(steps=90, seconds=99.6).more(100) == 0
    assert Spent(steps=10, seconds=200.0).more(100) == 0  # a step that takes longer than expected ends it


def test_a_step_counts_from_its_start_to_the_next_one_s() -> None:
    assert add(Spent(), [], 9.0) == Spent()
    assert add(Spent(steps=1, seconds=1.0), [3.0], 5.0) == Spent(steps=2, seconds=3.0)
    # 100.0: a state was written after the last step, which counts like the others
    assert add(Spent(), [1.0, 2.0, 5.0], 100.0) == Spent(steps=3, seconds=6.0)


def test_training_ends_with_the_time_and_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = equal_time.train

    def cut(task: Any, data: Any, config: TrainConfig, run_dir: Path) -> Any:
        asked.append(config.steps)
        done = real(task, data, config, run_dir)
        if len(asked) == 1:
            raise SystemExit(143)  # what a signal ends in, after the state is saved
        return done

    monkeypatch.setattr(equal_time, "train", cut)
    ticks = itertools.count()  # a clock of its own: 10 ms each time it is looked at, on machines of every speed
    monkeypatch.setattr(equal_time, "time", SimpleNamespace(process_time=lambda: 0.01 * next(ticks)))
    with pytest.raises(SystemExit):
        train_for(recipe(), 0.5, tmp_path)
    assert asked == [FIRST] and stood(tmp_path).steps == FIRST and stood(tmp_path).seconds > 0
    task, spent = train_for(recipe(), 0.5, tmp_path)
    assert asked[1] > FIRST and spent == stood(tmp_path)  # the first steps are not done again
    assert 0.4 < spent.seconds < 0.6 and not task.model.training
    # The averaged weights are loaded, and a run whose time is up is not trained again.
    count = len(asked)
    again, same = train_for(recipe(), 0.5, tmp_path)
    assert len(asked) == count and same == spent
    for a, b in zip(task.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)
    # A state without its steps on the clock, by a crash between the two: time is counted by the state.
    (tmp_path / equal_time.FILE).write_text(Spent(steps=2 * spent.steps, seconds=8.0).to_json())
    assert stood(tmp_path) == Spent(steps=spent.steps, seconds=4.0)
    with pytest.raises(ValueError, match="train.decay=constant"):
        train_for(recipe(decay="cosine"), 0.5, tmp_path / "other")


class Exact:
    """A decoder that knows the pictures: its guesses are `truth` plus an error."""

    takes = ("image_embed",)

    def __init__(self, error: float):
        self.schedule, self.error, self.network = tiny.decoder().schedule, error, torch.nn.Identity()
        self.config = SimpleNamespace(sampling=Sampling(guidance=2.0))
        self.all = Data()

    def truth(self, cond: Cond) -> Tensor:
        assert cond.image_embed is not None
        distance = torch.cdist(cond.image_embed, self.all.embeddings.image_embed)
        return self.all.pictures[distance.argmin(1)] * (1 - self.error)

    def denoise(self, cond: Cond, count: int, sampling: Sampling) -> Any:
        truth = self.truth(cond)
        return lambda x_t, t: Prediction(truth, x_t)

    def sample(self, cond: Cond, *, noise: Noise, sampling: Sampling) -> Tensor:
        # Guidance does harm here, so that the two are told apart.
        return self.network(self.truth(cond) if sampling.guidance == 1 else -self.truth(cond))


def test_a_decoder_is_measured_against_the_truth() -> None:
    found, cost = measure_parts.decoder(ground(), Exact(0.0), 4, 3)
    assert cost.evaluations == 16 and cost.seconds >= 0
    for split in ("heldout", "train"):
        assert found[split]["unguided, nearest picture top-1"].tolist() == [1.0] * 4
        assert found[split]["unguided, RMS to the true picture"].max() < 1e-6
        assert found[split]["guided, nearest picture top-1"].sum() < 4
    assert all(x.max() == 0 for name, x in found["heldout"].items() if name.startswith("RMS error of x0"))
    half, _ = measure_parts.decoder(ground(), Exact(0.5), 4, 3)
    rows = ground().rows("heldout", 4)
    assert all(row % 3 == 0 for row in rows)
    size = Data().pictures[rows].double().square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(half["heldout"]["RMS error of x0 at t = 400"], size / 2)
    torch.testing.assert_close(half["heldout"]["RMS error of x0, mean over t"], size / 2)


@pytest.mark.parametrize("stage", ablations.STAGES)
def test_variants_change_what_they_say(stage: str) -> None:
    recipe_name, variants, _ = ablations.STAGES[stage]
    base = find(recipe_name).override(*ablations.COMMON)
    before, seen = json.loads(base.to_json()), set()
    for name, settings in variants.items():
        changed = base.override(*settings)  # configs check themselves
        assert changed.train.decay == "constant"
        model: Any = changed.model  # type: ignore[attr-defined]
        assert isinstance(model, (DecoderConfig, UpsamplerConfig)) and isinstance(model.unet, UNetConfig)
        assert (changed == base) == (name == ablations.BASELINE)  # a setting that is the recipe's own is no variant
        assert [path for path, _ in differences(before, json.loads(changed.to_json()))] == sorted(
            setting.partition("=")[0] for setting in settings
        )
        seen.add(changed.to_json())
    assert len(seen) == len(variants)


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for key in sorted(a):
        if a[key] != b[key]:
            whole = f"{path}{key}"
            if isinstance(a[key], dict) and isinstance(b[key], dict):
                yield from differences(a[key], b[key], f"{whole}.")
            else:
                yield whole, b[key]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The command on a tiny decoder and tiny data; threads are given back."""
    variants = {"baseline": (), "eps": ("model.predicts=eps",), "batch_2": ("train.batch=2",)}
    stage = ablations.Stage("tiny.decoder", variants, ablations.measure_decoder)  # type: ignore[arg-type]
    monkeypatch.setattr(ablations, "STAGES", {"decoder": stage})
    monkeypatch.setattr(ablations, "find", lambda name: recipe())
    monkeypatch.setattr(ablations, "ground", lambda seed: ground())
    threads = torch.get_num_threads()
    yield ["--seconds", "0.2", "--n", "4", "--steps", "2", "--run-dir", str(tmp_path / "runs"), "-o", str(tmp_path)]
    torch.set_num_threads(threads)


def test_the_command(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ablations_decoder.json"
    ablations.main([*command, "--variants", "eps", "baseline"])
    record = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in the JSON"))
    assert list(record["variants"]) == ["baseline", "eps"]  # in the list's order
    assert (record["CPU seconds"], record["n"], record["sampling steps"], record["seed"]) == (0.2, 4, 2, 0)
    assert record["recipe"]["train"]["decay"] == "constant"
    for name, settings in (("baseline", []), ("eps", ["model.predicts=eps"])):
        found = record["variants"][name]
        assert found["settings"] == settings and found["commit"] and found["machine"]
        assert found["pictures"] == 4 * found["updates"] and found["updates"] >= FIRST
        assert found["ms per picture"] == pytest.approx(1000 * found["CPU seconds"] / found["pictures"], rel=0.5)
        for rows in found["numbers"].values():
            for row in rows.values():
                assert row["low"] <= row["mean"] <= row["high"] and row["n"] == len(row["values"]) == 4
    assert max(map(len, path.read_text().splitlines())) < 200
    capsys.readouterr()

    # The rest, without touching what is there.
    trained: list[Path] = []
    real = ablations.train_for
    monkeypatch.setattr(ablations, "train_for", lambda recipe, s, folder: (trained.append(folder), real(recipe, s, folder))[1])
    ablations.main(command)
    more = json.loads(path.read_text())
    assert [folder.name for folder in trained] == ["batch_2"]
    assert {name: more["variants"][name] for name in ("baseline", "eps")} == record["variants"]
    assert more["variants"]["batch_2"]["pictures"] == 2 * more["variants"]["batch_2"]["updates"]
    printed = capsys.readouterr().out
    assert "baseline: done" in printed and "| eps (`model.predicts=eps`) |" in printed and "| batch_2 |" in printed
    ablations.main([*command, "--table"])
    assert capsys.readouterr().out in printed


def test_a_training_that_diverges_is_told_and_the_others_go_on(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = ablations.train_for

    def diverges(given: Recipe, seconds: float, folder: Path) -> Any:
        if folder.name == "eps":
            raise FloatingPointError("not finite")
        return real(given, seconds, folder)

    monkeypatch.setattr(ablations, "train_for", diverges)
    ablations.main([*command, "--variants", "eps", "batch_2"])
    record = json.loads((tmp_path / "ablations_decoder.json").read_text())
    assert record["variants"]["eps"]["failed"] == "not finite" and "numbers" in record["variants"]["batch_2"]
    assert "failed: not finite" in capsys.readouterr().out


def test_what_another_process_works_at_is_left_to_it(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ablations.claimed(tmp_path / "runs" / "decoder" / "eps" / "lock") as free:
        assert free
        ablations.main([*command, "--variants", "eps", "baseline"])
    assert list(json.loads((tmp_path / "ablations_decoder.json").read_text())["variants"]) == ["baseline"]
    assert "eps: another process is at it" in capsys.readouterr().out


def test_records_of_other_settings_are_not_mixed(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ablations.main([*command, "--variants", "baseline"])
    for wrong, told in (
        (["--seconds", "0.3"], "CPU seconds 0.2, not 0.3"),
        (["--n", "3"], "n 4, not 3"),
        (["--variants", "epsilon"], "no variant epsilon of decoder; there are baseline, eps, batch_2"),
        (["--n", "1"], "--n must be at least 2"),
    ):
        with pytest.raises(SystemExit) as stopped:
            ablations.main([*command, *wrong])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and told in error and error.count("\n") == 1


def made_up(values: list[float], top5: list[float]) -> dict[str, Any]:
    row = lambda x: {"mean": sum(x) / len(x), "low": 0.0, "high": 1.0, "n": len(x), "values": x}  # noqa: E731
    shares = {f"{name}, nearest picture top-{k}": row(top5) for name in ("guided", "unguided") for k in (1, 5)}
    errors = {f"RMS error of x0 at t = {t}": row(values) for t in (200, 800)} | {"RMS error of x0, mean over t": row(values)}
    heldout = {**shares, **errors, "guided, RMS to the true picture": row(values)}
    return {"updates": 1234, "pictures": 5678, "ms per picture": 1.0, "ms per evaluation": 2.0} | {
        "numbers": {"heldout": heldout, "train": shares}
    }


def test_differences_are_of_the_same_pictures(tmp_path: Path) -> None:
    """An error that is 0.1 larger on every picture differs surely, however much the pictures differ among themselves."""
    base = [0.1, 0.5, 0.9, 1.7]
    variants = {"baseline": made_up(base, [1, 1, 0, 0]), "worse": made_up([x + 0.1 for x in base], [1, 0, 0, 1])}
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"stage": "decoder", "CPU seconds": 5.0, "n": 4, "variants": variants}))
    lines = ablations_table.markdown(path).splitlines()
    (baseline, _), (worse, by_t) = ([line for line in lines if line.startswith(f"| {name}")] for name in ("baseline", "worse"))
    assert "1,234 | 5,678" in baseline and "(" not in baseline and "50 / 50 %" in baseline
    assert "0.900 (**+0.100 [+0.100, +0.100]**)" in worse and "50 / 50 % (+0 [" in worse
    assert by_t.count("0.900 (**+0.100 [+0.100, +0.100]**)") == 2
    assert {line.count("|") for line in lines if line.startswith("|")} == {12, 4}
    with pytest.raises(ValueError, match="nothing has been measured"):
        ablations_table.markdown(tmp_path / "none.json")

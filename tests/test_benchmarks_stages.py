"""The benchmark of the stages' steps: what is timed, a process that is told when, and the comparison of two checkouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import stages
from benchmarks.stage_step import Case, build
from benchmarks.stages import ROOT, STAGES, Side


@pytest.mark.parametrize(
    ("case", "shape"),
    [
        (Case("prior", 64, None, 2), (2, 128)),
        (Case("decoder", 64, 16, 1), (1, 3, 16, 16)),
        (Case("upsampler_256", 32, 32, 2), (2, 3, 32, 32)),
        (Case("upsampler_1024", 32, 32, 1), (1, 3, 32, 32)),
    ],
)
def test_a_step_of_each_stage(case: Case, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        assert build(case)().shape == shape


def test_every_stage_has_its_own_size_first_and_changes_one_thing_at_a_time() -> None:
    for stage in STAGES:
        base, *others = stages.cases([stage])
        assert base.batch == 1 and others
        assert all(sum(a != b for a, b in zip(base, other)) == 1 for other in others)


def test_a_process_takes_steps_when_told_and_its_end_is_told() -> None:
    side = Side(ROOT)
    assert side.ask([*Case("prior", 64, None, 1), False]) > 0 and side.ask(3) > 0
    side.process.kill()
    with pytest.raises(SystemExit, match=f"the process in {ROOT} ended with status -9 when asked for 3"):
        side.ask(3)


@pytest.mark.parametrize(("ratio", "status"), [(1.02, 0), (1.05, 1)])
def test_the_verdict(
    ratio: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Path] = []

    class Told:
        """Both become slower and slower, as on a machine that gets busy; the ratio stays."""

        def __init__(self, checkout: Path):
            self.checkout, self.seconds = checkout, 1e-3 * (ratio if checkout == ROOT else 1.0)

        def ask(self, what: list[object] | int) -> float:
            asked.append(self.checkout)
            self.seconds *= 1.01
            return self.seconds

        def end(self) -> None:
            asked.append(self.checkout)

    (tmp_path / "unclip").mkdir()
    (tmp_path / "unclip/__init__.py").touch()
    monkeypatch.setattr(stages, "Side", Told)
    monkeypatch.setattr(stages, "header", lambda: "a machine")
    with pytest.raises(SystemExit) as ended:
        stages.main(["--against", str(tmp_path), "--stages", "prior", "--rounds", "1", "--turns", "3"])
    assert ended.value.code == status
    assert asked[:8] == [tmp_path, ROOT] * 4 and asked[-2:] == [tmp_path, ROOT]
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("prior")]
    assert len(rows) == 2 * len(list(stages.cases(["prior"]))) + 2 and all(f"{ratio:.3f}" in row for row in rows)


def test_what_is_no_checkout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        stages.main(["--against", str(tmp_path)])
    assert "no checkout of unclip" in capsys.readouterr().err

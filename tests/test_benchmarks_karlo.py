"""The benchmark of Karlo, end to end at a tiny size: its workers, its tables, its verdict, and that both sides are as large."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch

from benchmarks import karlo
from benchmarks.karlo import DTYPES, SMALL, STEPS, SYSTEMS


def here(*words: str, small: bool, repeats: int) -> dict[str, Any]:
    """A worker without a process of its own."""
    assert small
    system, stage, dtype = words
    if stage == "memory":
        told = karlo.hold_all(system, SMALL, DTYPES[dtype])
    else:
        told = karlo.time_steps(system, stage, SMALL, DTYPES[dtype], repeats)
    found: dict[str, Any] = json.loads(json.dumps(told))
    return found


def ask(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(karlo, "header", lambda: "a machine")
    monkeypatch.setattr(sys, "argv", ["karlo.py", *options])
    karlo.main()


def test_the_whole_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(karlo, "worker", here)
    ask(monkeypatch, "--small", "--rounds", "1", "--repeats", "2")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a machine" and "diffusers" in lines[1] and "made tiny" in lines[2]
    rows = [line.split() for line in lines if line.split()[:1] in ([stage] for stage in (*STEPS, "picture"))]
    assert [row[:2] for row in rows if row[0] != "picture:"] == [[s, d] for d in DTYPES for s in (*STEPS, "picture")]
    for row in rows:
        if row[0] != "picture:":
            assert float(row[4]) == pytest.approx(float(row[2]) / float(row[3]), rel=0.05) and float(row[3]) > 0
    assert any("EXTRAPOLATED" in line for line in lines) and lines[-1] == "targets: not judged at this size"
    peaks = [line.split() for line in lines if line.split()[:1] in (["float32"], ["bfloat16"])]
    assert len(peaks) == 2 and all(float(part) > 0 for row in peaks for part in row[1:])


def test_a_worker_is_a_process() -> None:
    told = karlo.worker("ours", "prior", "bfloat16", small=True, repeats=2)
    assert len(told["seconds"]) == 2 and told["weights"] > 9e5


@pytest.mark.parametrize(("faster", "least", "status"), [(20.0, 0.3, 0), (1.2, 0.3, 1), (20.0, 0.6, 1)])
def test_the_verdict(
    faster: float, least: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def worker(*words: str, small: bool, repeats: int) -> dict[str, Any]:
        times = [1.0 if words[0] == "ours" else faster] * repeats
        return {"seconds": times, "once": 0.5, "weights": 10**9, "peak": 10 * least if words[0] == "offload" else 10.0}

    monkeypatch.setattr(karlo, "worker", worker)
    with pytest.raises(SystemExit) as ended:
        ask(monkeypatch, "--dtypes", "float32")
    assert ended.value.code == status
    out = capsys.readouterr().out
    assert ("reached" if status == 0 else "MISSED") in out.splitlines()[-1]
    picture = next(line.split() for line in out.splitlines() if line.startswith("picture    "))
    assert [float(x) for x in picture[2:4]] == pytest.approx([57 * faster, 57 + 1.5], rel=1e-3)


@pytest.mark.parametrize("stage", list(STEPS))
def test_both_sides_are_as_large(stage: str) -> None:
    """Ours has the projections of the conditions besides; diffusers' prior counts its statistics as parameters."""
    sizes = {system: karlo.time_steps(system, stage, SMALL, torch.float32, 1)["weights"] for system in SYSTEMS}
    assert 0.999 < sizes["ours"] / sizes["diffusers"] < 1.02

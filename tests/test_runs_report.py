"""`unclip report`: what a log says, in words and in curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from unclip.cli.report import report as command
from unclip.runs.report import describe, draw, panels, read, report


def run(folder: Path, steps: int = 5, loss: float = 1.0, held: tuple[float, ...] = (0.9, 0.5, 0.4)) -> Path:
    """A run folder with a log as training writes it."""
    rows: list[dict[str, Any]] = []
    for k in range(1, steps + 1):
        row = {"step": 10 * k, "samples": 320 * k, "loss": loss / k, "loss_q1": loss / k, "loss_q2": None, "grad_norm": 0.1 * k}
        row |= {"skipped": 0, "lr": 1e-3, "ema": 0.9, "seconds": 7200.0 * k, "samples_per_second": 50.0}
        rows.append(row)
    for k, value in enumerate(held, 1):
        row = {"step": 10 * k, "event": "validated", "loss": value, "cosine": 0.2 * k, "cosine/text": 0.3, "cosine/other": 0.1}
        rows.append(row | {"R@1": None, "change_image": 0.2, "change_text": 0.0})
    rows.append({"step": 7, "event": "skipped", "loss": "nan", "grad_norm": "inf"})
    rows.append({"step": 20, "event": "resumed"})
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_log_becomes_curves(tmp_path: Path) -> None:
    curves = read(run(tmp_path / "a"))
    assert curves.train["loss"].steps == [10, 20, 30, 40, 50] and curves.train["loss"].values[1] == 0.5
    assert curves.validated["cosine"].values == pytest.approx([0.2, 0.4, 0.6]) and "loss_q2" not in curves.train
    assert (curves.skipped, curves.resumed, curves.last["step"], curves.judged["step"]) == ([7], [20], 50, 30)
    assert "R@1" not in curves.validated, "nothing was measured"


def test_the_words(tmp_path: Path) -> None:
    text = describe(read(run(tmp_path / "a")))
    assert text.startswith("a: step 50, 1,600 samples, 10.0 hours, 50 samples a second")
    assert "better than the text embedding (0.3)" in text and "better than another sample's (0.1)" in text
    assert "1 steps skipped: 7" in text and "resumed 1 times, after step 20" in text
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("    ")}
    assert lines["grad_norm"] == ["0.1", "0.5"] and lines["cosine"][0] == "0.6:"
    assert "change_text is 0: this condition is ignored" in text and "change_image is" not in text
    assert "WARNING: the training loss" not in text and "overfitting" not in text
    worse = describe(read(run(tmp_path / "b", loss=-1.0, held=(0.9, 0.4, 0.6))))
    assert "the training loss has not fallen" in worse
    assert "held-out loss was lowest at step 20 and has risen since" in worse


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    a, b = read(run(tmp_path / "a")), read(run(tmp_path / "b", loss=2.0))
    titles = [panel.title for panel in panels([a])]
    assert titles[:2] == ["loss", "loss by timestep quartile"] and "cosine (held out)" in titles
    assert "held-out loss by timestep quartile" not in titles and "ema (training)" not in titles
    report([tmp_path / "a"], tmp_path / "out" / "a.png")
    report([tmp_path / "a", tmp_path / "b"], tmp_path / "both.png")
    one, two = (Image.open(tmp_path / name).convert("RGB") for name in ("out/a.png", "both.png"))
    assert one.size == two.size and one.size[0] > 1000 and len(one.getcolors(10**7)) > 50
    assert one.tobytes() != two.tobytes()
    assert draw([a, b]) == (tmp_path / "both.png").read_bytes(), "the same logs give the same bytes"
    # What is drawn: baselines dashed, resumptions dotted, skipped steps as crosses.
    from matplotlib.figure import Figure

    from unclip.runs.report import _diagram

    axes = Figure().add_subplot()
    _diagram(axes, next(panel for panel in panels([a]) if panel.title == "cosine (held out)"), [a])
    styles = {line.get_label(): line.get_linestyle() for line in axes.get_lines()}
    assert (styles["cosine"], styles["text"], styles["other"]) == ("-", "-.", "--")
    assert ":" in styles.values() and any(line.get_marker() == "x" for line in axes.get_lines())
    axes = Figure().add_subplot()
    _diagram(axes, panels([a, b])[0], [a, b])
    labels = [line.get_label() for line in axes.get_lines() if not line.get_label().startswith("_")]
    assert labels == ["a: loss", "a: held out", "b: loss", "b: held out"] and axes.get_yscale() == "log"


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(tmp_path / "a")
    with pytest.raises(ValueError, match="has no log"):
        report([tmp_path / "nothing"])
    for name in ("a.gif", "a.svg", "a.html", "a"):
        with pytest.raises(ValueError, match=rf"written as PNG, and .*{name} does not end in .png: name it .*/a.png"):
            report([folder], tmp_path / name)
    assert not list(tmp_path.glob("a.*"))
    with pytest.raises(ValueError, match="no run was given"):
        report([])
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert report([folder]).startswith("a: step 50"), "words need no matplotlib"
    with pytest.raises(ValueError, match="pip install matplotlib"):
        report([folder], tmp_path / "a.png")


def test_a_run_that_was_killed_in_the_middle_of_a_line_is_reported(tmp_path: Path) -> None:
    folder = run(tmp_path / "a")
    expected = report([folder])
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 60, "lo')
    assert report([folder]) == expected


def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    app = typer.Typer()
    app.command()(command)
    a, b = run(tmp_path / "x" / "run"), run(tmp_path / "y" / "run")
    done = CliRunner().invoke(app, [str(a), str(b), "-o", str(tmp_path / "c.png")])
    assert done.exit_code == 0 and "x/run: step 50" in done.output and "y/run: step 50" in done.output
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG") and not list(tmp_path.glob(".*"))
    assert CliRunner().invoke(app, [str(tmp_path)]).exit_code == 2

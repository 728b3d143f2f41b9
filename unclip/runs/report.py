"""Training reports: logs as a page of text and as curves, several runs over each other."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unclip.checks import path_of
from unclip.files import check_files, write_files
from unclip.training.evaluation import cost, judge
from unclip.training.log import read_log

DASHES = ("--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))  # of baselines
VALIDATED = ("validated", "examined")  # events; the second is that of unclip 0.1.0
BOOKKEEPING = {"step", "samples", "seconds", "ema", "skipped", "event"}


class Curve(NamedTuple):
    steps: list[int]
    values: list[float]


class Curves(NamedTuple):
    """A run's log by name: of the training, of validations on held-out samples, and the steps where something happened."""

    name: str
    train: dict[str, Curve]
    validated: dict[str, Curve]
    skipped: list[int]
    resumed: list[int]
    last: dict[str, Any]  # the last line of the training
    judged: dict[str, Any]  # the last validation


class Panel(NamedTuple):
    """One diagram: names of training curves, of validated ones, and whether its values span powers of ten."""

    title: str
    train: tuple[str, ...]
    validated: tuple[str, ...] = ()
    logarithmic: bool = False


def report(runs: Sequence[str | Path], output: str | Path | None = None, overwrite: bool = True) -> str:
    """A page of text about the runs in these folders; with `output`, a .png file, also their curves.

    ValueError: a folder without a log, an output with another ending, or one that is there already unless `overwrite`.
    """
    output = None if output is None else path_of(output)
    if output is not None and output.suffix.lower() != ".png":
        raise ValueError(f"curves are written as PNG, and {output} does not end in .png: name it {output.with_suffix('.png')}")
    if output is not None:
        check_files([output], overwrite)
    if not runs:
        raise ValueError("no run was given: name one or more run folders")
    curves = [read(run, name) for run, name in zip(runs, _names([path_of(run) for run in runs]))]
    text = "\n\n".join(describe(one) for one in curves)
    if output is not None:
        write_files([(output, draw(curves))], overwrite)
    return text


def read(run: str | Path, name: str | None = None) -> Curves:
    """The log of a run."""
    rows = read_log(run)
    if not rows:
        raise ValueError(f"{run} has no log (log.jsonl): is it a run folder, and has the run logged anything yet?")
    lines = [row for row in rows if "event" not in row]
    validated = [row for row in rows if row.get("event") in VALIDATED]
    events = [row for row in rows if row.get("event") not in (None, *VALIDATED)]
    return Curves(
        name or path_of(run).resolve().name,
        _curves(lines),
        _curves(validated),
        [row["step"] for row in events if row["event"] == "skipped"],
        [row["step"] for row in events if row["event"] in ("resumed", "continued")],
        lines[-1] if lines else {},
        validated[-1] if validated else {},
    )


def describe(run: Curves) -> str:
    """What a reader without pictures should know."""
    lines = [f"{run.name}: {_standing(run)}"]
    for title, curves in (("training", run.train), ("held out", run.validated)):
        shown = {name: curve for name, curve in curves.items() if "/" not in name and name not in BOOKKEEPING}
        if shown:
            lines.append(f"  {title:28} {'first':>10} {'best':>10} {'last':>10}")
        for name, curve in shown.items():
            judged = title == "held out" or name.startswith("loss")  # of a gradient norm nobody knows which is best
            best = _number(min(zip((cost(name, value) for value in curve.values), curve.values))[1]) if judged else ""
            lines.append(f"    {name:26} {_number(curve.values[0]):>10} {best:>10} {_number(curve.values[-1]):>10}")
    judgements = judge(run.judged)
    lines += [f"  against baselines, step {run.judged.get('step')}:"] if judgements else []
    lines += [f"    {one}" for one in judgements]
    lines += [f"  {len(run.skipped)} steps skipped: {_steps(run.skipped)}"] if run.skipped else []
    lines += [f"  resumed {len(run.resumed)} times, after step {_steps(run.resumed)}"] if run.resumed else []
    lines += [f"  {warning}" for warning in warnings(run)]
    return "\n".join(lines)


def warnings(run: Curves) -> list[str]:
    """What looks wrong: a loss that does not fall, held-out losses that rise, conditions that are ignored."""
    lines = []
    loss, held = run.train.get("loss"), run.validated.get("loss")
    if loss and len(loss.values) >= 4 and loss.values[-1] >= loss.values[0]:
        lines.append("WARNING: the training loss has not fallen")
    if held and len(held.values) >= 3 and held.values[-1] > 1.05 * min(held.values):
        best = held.steps[held.values.index(min(held.values))]
        lines.append(f"WARNING: the held-out loss was lowest at step {best} and has risen since: overfitting")
    for name, value in run.judged.items():
        if name.startswith("change_") and value is not None and value < 1e-4:
            lines.append(f"WARNING: {name} is {value:.2g}: this condition is ignored")
    if run.last.get("samples") and len(run.skipped) > 0.01 * run.last["step"]:
        lines.append("WARNING: more than one step in a hundred was skipped: look at the learning rate and the data")
    return lines


def panels(runs: Sequence[Curves]) -> list[Panel]:
    """The diagrams that these runs have curves for."""
    train = {name: None for run in runs for name in run.train}
    validated = {name: None for run in runs for name in run.validated}
    quartiles = tuple(f"loss_q{q}" for q in range(1, 5))
    first = [
        Panel("loss", ("loss",), tuple(n for n in validated if n.partition("/")[0] == "loss"), logarithmic=True),
        Panel("loss by timestep quartile", quartiles, logarithmic=True),
        Panel("held-out loss by timestep quartile", (), quartiles, logarithmic=True),
        Panel("gradient norm", ("grad_norm",), logarithmic=True),
        Panel("learning rate", ("lr",)),
        Panel("samples per second", ("samples_per_second",)),
    ]
    named = {name for panel in first for name in (*panel.train, *panel.validated)}
    heads = {name.partition("/")[0]: None for name in validated if name not in named}
    rest = [Panel(f"{head} (held out)", (), tuple(n for n in validated if n.partition("/")[0] == head)) for head in heads]
    rest += [Panel(f"{name} (training)", (name,)) for name in train if name not in named | BOOKKEEPING and name != "mse"]
    return [p for p in first + rest if any(n in train for n in p.train) or any(n in validated for n in p.validated)]


def draw(runs: Sequence[Curves]) -> bytes:
    """All diagrams on one picture, a PNG.  ValueError: matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("curves are drawn by matplotlib, which is not installed: pip install matplotlib") from None

    shown = panels(runs)
    columns = min(3, max(1, len(shown)))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.3 * rows + 0.5), layout="constrained")
    for k, panel in enumerate(shown):
        _diagram(figure.add_subplot(rows, columns, k + 1), panel, runs)
    figure.suptitle(", ".join(run.name for run in runs))
    target = io.BytesIO()
    # Without matplotlib's name and version the same logs give the same bytes.
    figure.savefig(target, format="png", dpi=100, metadata={"Software": None})
    return target.getvalue()


def _diagram(axes: Any, panel: Panel, runs: Sequence[Curves]) -> None:
    many, drawn = len(runs) > 1, []
    for r, run in enumerate(runs):
        names = [(n, run.train[n], False) for n in panel.train if n in run.train]
        names += [(n, run.validated[n], True) for n in panel.validated if n in run.validated]
        for i, (name, curve, held) in enumerate(names):
            baseline = "/" in name
            # Runs have a colour each; one run alone has one for each curve.
            colour = f"C{(r if many else i) % 10}"
            label = f"{name.partition('/')[2]}" if baseline else "held out" if held and panel.train else name
            label = f"{run.name}: {label}" if many and len(names) > 1 else run.name if many else label
            dash = DASHES[i % len(DASHES)] if baseline else (0, (4, 1)) if held and panel.train else "-"
            alone = "o" if len(curve.values) == 1 else "." if held and not baseline else None
            shade = 0.55 if baseline else 0.3 + 0.7 * (i + 1) / len(names) if many and name.startswith("loss_q") else 1.0
            axes.plot(curve.steps, curve.values, ls=dash, color=colour, alpha=shade, marker=alone, lw=1.4, label=label)
            drawn.append(curve)
        for step in run.resumed:
            axes.axvline(step, color=f"C{r % 10}" if many else "grey", ls=":", lw=0.8)
        if run.skipped:
            height = [0.02] * len(run.skipped)
            axes.plot(run.skipped, height, "x", color=f"C{r}" if many else "red", transform=axes.get_xaxis_transform(), ms=5)
    if panel.logarithmic and all(value > 0 for curve in drawn for value in curve.values):
        axes.set_yscale("log")
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(alpha=0.25)
    if len(drawn) > 1:
        axes.legend(fontsize=7, framealpha=0.6)


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    names = {name: None for row in rows for name in row if name not in ("step", "event")}
    curves = {}
    for name in names:
        points = [(row["step"], float(row[name])) for row in rows if _is_number(row.get(name))]
        if points:
            curves[name] = Curve([step for step, _ in points], [value for _, value in points])
    return curves


def _standing(run: Curves) -> str:
    last = run.last
    if not last:
        return f"no line of the training yet, validated at step {run.judged.get('step')}"
    parts = [f"step {last['step']:,}"]
    parts += [f"{last['samples']:,} samples"] if "samples" in last else []
    parts += [f"{last['seconds'] / 3600:.1f} hours"] if "seconds" in last else []
    parts += [f"{last['samples_per_second']:.4g} samples a second"] if "samples_per_second" in last else []
    return ", ".join(parts)


def _names(runs: Sequence[Path]) -> list[str]:
    """Folder names, with as much of the path as tells them apart."""
    paths = [run.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _steps(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:8])) + (" ..." if len(steps) > 8 else "")


def _number(value: float) -> str:
    return f"{value:.4g}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

"""What `training.py` prints, from the record of its workers, and whether the targets are reached."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.dalle2_pytorch.settings import PAIRS, RECIPE, Pair
from unclip.metrics import Interval, interval

Record = Mapping[str, Mapping[str, Any]]  # a worker's name -> its "spec", "found" and, of a learner, "measured"
OURS, THEIRS = "ours", "theirs"
# What decides, by stage, the first before all; the larger the better.
METRICS = {"prior": ("cosine", "R@5"), "decoder": ("nearest top-5",)}
SHOWN = {"prior": ("cosine", "R@1", "R@5"), "decoder": ("nearest top-1", "nearest top-5", "top-5, siblings as one", "RMS")}


class Table(NamedTuple):
    lines: list[str]
    reached: bool


class Rate(NamedTuple):
    """Of one system in a row of the table of speeds; medians of its processes."""

    per_second: float
    peak: float
    start: float  # GB held before the model was made
    parameters: int
    gflop: float


def rate(found: Sequence[Mapping[str, Any]], batch: int) -> Rate:
    seconds = statistics.median(lap for one in found for lap in one["seconds"])
    middle = {name: statistics.median(one[name] for one in found) for name in ("peak", "start", "parameters", "gflop")}
    return Rate(batch / seconds, middle["peak"], middle["start"], int(middle["parameters"]), middle["gflop"])


def speed(record: Record, pairs: Iterable[Pair] = PAIRS) -> Table:
    """A line for each pair and precision that both systems have run."""
    head = f"{'':46} {'samples / second':^25} {'peak GB':^15} {'million weights':^15} {'GFLOP / sample':^15}"
    names = f"{'stage, settings, precision':46} {'theirs':>8} {'ours':>8} {'times':>7}"
    names += f" {'theirs':>7} {'ours':>7}" * 3 + "  target"
    lines, reached = [head, names], True
    for pair in pairs:
        for precision in pair.precisions:
            runs = {system: _found(record, "speed", pair.stage, pair.title, precision, system) for system in (THEIRS, OURS)}
            if not all(runs.values()):
                continue
            theirs, ours = (
                rate([one["found"] for one in runs[system]], runs[system][0]["spec"]["batch"]) for system in (THEIRS, OURS)
            )
            times = ours.per_second / theirs.per_second
            kept = times >= 1 and ours.peak <= theirs.peak
            reached &= kept or not pair.judged
            text = ("reached" if kept else "MISSED") if pair.judged else ""
            line = f"{f'{pair.stage}, {pair.title}, {precision}':46} {theirs.per_second:8.3g} {ours.per_second:8.3g} {times:7.2f}"
            line += f" {theirs.peak:7.2f} {ours.peak:7.2f} {theirs.parameters / 1e6:7.1f} {ours.parameters / 1e6:7.1f}"
            lines.append(f"{line} {theirs.gflop:7.2f} {ours.gflop:7.2f}  {text}".rstrip())
    starts = {
        system: [one["found"]["start"] for one in _found(record, "speed") if one["spec"]["system"] == system]
        for system in (THEIRS, OURS)
    }
    if all(starts.values()):
        text = ", ".join(f"{system} {statistics.median(values):.2f}" for system, values in starts.items())
        lines.append(f"of the peak, GB that a process holds once its modules are imported: {text}")
    return Table(lines, reached)


class Learner(NamedTuple):
    """One setting and set of weights, over its seeds."""

    system: str
    setting: str
    weights: str
    found: list[Mapping[str, Any]]
    measured: list[Mapping[str, Sequence[float]]]  # of each seed: numbers per held-out sample, by name

    def values(self, metric: str) -> torch.Tensor:
        """Per sample, the mean over seeds."""
        return torch.tensor([one[metric] for one in self.measured]).double().mean(0)

    def mean(self, metric: str) -> float:
        return float(self.values(metric).mean())


def learners(record: Record, section: str, stage: str) -> list[Learner]:
    """In the order in which they stand in the record; of each set of weights that a worker drew with."""
    groups: dict[tuple[str, str, str], Learner] = {}
    for one in _found(record, section, stage):
        spec = one["spec"]
        for weights, measured in one["measured"].items():
            key = (spec["system"], spec["title"], weights)
            groups.setdefault(key, Learner(*key, [], []))
            groups[key].found.append(one["found"])
            groups[key].measured.append(measured)
    return list(groups.values())


def best(rivals: Sequence[Learner], metric: str) -> Learner:
    return max(rivals, key=lambda learner: learner.mean(metric))


def lead(ours: Learner, theirs: Learner, metric: str) -> Interval:
    """Ours less theirs, a bootstrap over the held-out samples of the means over seeds."""
    return interval(ours.values(metric) - theirs.values(metric))


def learning(record: Record, costless: Mapping[str, Mapping[str, float]], stages: Sequence[str]) -> Table:
    """A line for each setting and set of weights, then how far ours is ahead of the best of theirs in each number.

    The target is to be ahead in a stage's first number, by more than the interval, and not behind in the other.
    """
    lines, reached = [], True
    for stage in stages:
        rows = learners(record, "learn", stage)
        if not rows:
            continue
        lines += [*_learned(rows, stage), *_costless(costless.get(stage, {}), stage), ""]
        ours, theirs = [row for row in rows if row.system == OURS], [row for row in rows if row.system == THEIRS]
        if not ours or not theirs:
            reached = False
            continue
        for metric in METRICS[stage]:
            rival = best(theirs, metric)
            ahead = lead(ours[0], rival, metric)
            text = "ahead" if ahead.low > 0 else "BEHIND" if ahead.high < 0 else "level"
            reached &= text == "ahead" or (text == "level" and metric != METRICS[stage][0])
            by = f"{text} by {ahead.mean:.3f} [{ahead.low:.3f}, {ahead.high:.3f}]"
            lines.append(f"{stage}, {metric}: ours {by} of theirs ({rival.setting}, {rival.weights})")
        lines.append("")
    return Table(lines, reached)


def ablation(record: Record, stages: Sequence[str]) -> Table:
    """Our recipe with one thing as theirs has it, against the recipe in the same time."""
    lines = []
    for stage in stages:
        rows = learners(record, "ablation", stage)
        if not rows:
            continue
        lines += _learned(rows, stage)
        base = next((row for row in rows if row.setting == RECIPE), None)
        for row in rows if base else []:
            assert base is not None
            if row is not base:
                ahead = [lead(row, base, metric) for metric in METRICS[stage]]
                text = ", ".join(f"{m} {x.mean:+.3f} [{x.low:+.3f}, {x.high:+.3f}]" for m, x in zip(METRICS[stage], ahead))
                lines.append(f"{stage}, {row.setting} less the recipe: {text}")
        lines.append("")
    return Table(lines, True)


def _learned(rows: Sequence[Learner], stage: str) -> list[str]:
    shown = SHOWN[stage]
    head = f"{stage + ', ' + str(len(rows[0].values(shown[0]))) + ' held-out samples':62} {'seeds':>5} {'minutes':>7}"
    lines = [f"{head} {'updates':>8} {'samples':>8} {'M weights':>9}" + "".join(f" {name:>22}" for name in shown)]
    for row in rows:
        minutes, updates, samples, weights = (
            statistics.mean(one[name] for one in row.found) for name in ("seconds", "updates", "samples", "parameters")
        )
        line = f"{f'{row.system}: {row.setting}, {row.weights}':62} {len(row.found):5} {minutes / 60:7.1f}"
        line += f" {updates:8.0f} {samples:8.0f} {weights / 1e6:9.1f}"
        for name in shown:
            seeds = [float(torch.tensor(one[name]).double().mean()) for one in row.measured]
            span = f" ({min(seeds):.3f}-{max(seeds):.3f})" if len(seeds) > 1 else ""
            line += f" {row.mean(name):.3f}{span}".rjust(23)
        lines.append(line)
    return lines


def _costless(numbers: Mapping[str, float], stage: str) -> list[str]:
    """What takes no training, under the column that it belongs to."""
    return [f"{f'without training: {name}':62} {value:.3f}" for name, value in numbers.items()]


def _found(record: Record, section: str, *rest: str) -> list[Mapping[str, Any]]:
    """The entries of a section and, as far as named, of a stage, title, precision and system."""
    fields = ("section", "stage", "title", "precision", "system")
    wanted = dict(zip(fields, (section, *rest)))
    return [one for one in record.values() if all(one["spec"].get(name) == value for name, value in wanted.items())]

"""Which workers `training.py` runs, as values: what is said to each of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.dalle2_pytorch.settings import (
    ABLATIONS,
    LEARNERS,
    PAIRS,
    RECIPE,
    USUAL,
    Ours,
    Pair,
    small,
    small_ours,
    small_theirs,
)
from benchmarks.dalle2_pytorch.tables import OURS, THEIRS
from unclip.runs.recipes import find


class Bench(NamedTuple):
    """What learners share: the material's file, its CLIP's short name, and the rows that are drawn for, by stage."""

    path: Path
    clip: str
    rows: dict[str, list[int]]


class Job(NamedTuple):
    """A worker to run: its name in the record, and what it is told."""

    name: str
    spec: dict[str, Any]


def speed_jobs(args: argparse.Namespace, runs: Path) -> list[Job]:
    """Alone, on all the cores that learners share."""
    jobs, threads = [], args.jobs * args.threads
    for pair in pairs(args):
        material = speed_data(pair, runs)
        for precision in pair.precisions:
            for i in range(args.rounds):
                for system in (THEIRS, OURS):
                    common = {
                        "task": "speed", "section": "speed", "stage": pair.stage, "title": pair.title, "system": system,
                        "precision": precision, "repeats": pair.repeats or args.repeats, "threads": threads, "seed": i,
                        "material": str(material), "small": args.small,
                    }  # fmt: skip
                    if system == THEIRS:
                        spec = pair.theirs._asdict() | common
                        spec["runs in"] = pair.theirs.precision if precision == "own" else precision
                    else:
                        spec = common | {"changes": list(pair.ours.changes), "batch": batch_of(pair.stage, pair.ours)}
                    jobs.append(Job(f"speed, {pair.stage}, {pair.title}, {precision}, {system}, round {i}", spec))
    return jobs


def speed_data(pair: Pair, runs: Path) -> Path:
    """Where made-up data of a pair's shapes lie."""
    return runs / f"speed-{'-'.join(map(str, pair.data))}.safetensors"


def pairs(args: argparse.Namespace) -> list[Pair]:
    chosen = [pair for pair in PAIRS if pair.stage in args.stages]
    return [small(pair) for pair in chosen] if args.small else chosen


def batch_of(stage: str, ours: Ours) -> int:
    return find(f"emoji.{stage}").override(*ours.changes).train.batch


def learning_jobs(args: argparse.Namespace, bench: Bench) -> list[Job]:
    jobs = []
    for stage in args.stages:
        seeds = args.seeds if stage == "prior" else args.decoder_seeds
        named = [title for title in LEARNERS[stage] if title in (args.settings or ())]
        for seed in range(seeds):
            common = _learner(args, bench, stage, "learn", seed, getattr(args, f"minutes_{stage}"))
            for title in named or USUAL[stage]:
                theirs = LEARNERS[stage][title]
                spec = common | theirs._asdict() | {"system": THEIRS, "title": title}
                if stage == "decoder":
                    spec["model"] = theirs.model | {"sample_timesteps": args.their_steps}
                if args.small:
                    spec |= small_theirs(stage, theirs)._asdict()
                jobs.append(Job(f"learn, {stage}, {THEIRS}, {title}, seed {seed}", spec))
            ours = small_ours(stage, Ours()) if args.small else Ours()
            spec = common | {"system": OURS, "title": RECIPE, "precision": "own", "changes": list(ours.changes)}
            jobs.append(Job(f"learn, {stage}, {OURS}, {RECIPE}, seed {seed}", spec))
    return jobs


def ablation_jobs(args: argparse.Namespace, bench: Bench) -> list[Job]:
    jobs = []
    for stage in args.stages:
        common = _learner(args, bench, stage, "ablation", 0, args.minutes_ablation)
        for title, changes in ABLATIONS[stage].items():
            ours = small_ours(stage, Ours(changes)) if args.small else Ours(changes)
            spec = common | {"system": OURS, "title": title, "precision": "own", "changes": list(ours.changes)}
            jobs.append(Job(f"ablation, {stage}, {title}", spec))
    return jobs


def _learner(args: argparse.Namespace, bench: Bench, stage: str, section: str, seed: int, minutes: float) -> dict[str, Any]:
    """What is said to every learner."""
    return {
        "task": "learn", "section": section, "stage": stage, "seed": seed, "seconds": 60 * minutes, "threads": args.threads,
        "material": str(bench.path), "clip": bench.clip, "rows": bench.rows[stage], "small": args.small,
    }  # fmt: skip

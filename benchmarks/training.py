"""Training side by side with dalle2-pytorch, the implementation that people know: `python -m benchmarks.training`.

speed     samples per second and peak memory of a training step (data, forward, backward, optimiser, averaged weights), at equal
          width, batch and precision, then each system at its own settings.  A process each, in turn (theirs, ours, theirs, ours).
learning  the emoji, the shipped CLIP frozen, equal time: a prior (--minutes-prior, --seeds) by the cosine of drawn to true
          embeddings and R@5 among all pictures, a decoder (--minutes-decoder) from true embeddings by how often the true picture
          is among the five nearest of all in RGB.  Held-out captions.
ablation  what explains it: our recipe with one thing as theirs has it, in --minutes-ablation.

Each system runs in an environment of its own, with one and the same torch: theirs is made in --theirs when it is not there (a
venv into which pip installs dalle2-pytorch, 200 MB, and which finds torch and what both need where this one does).  Their
settings are those that its README writes; of their settings, averaged or last weights, and guidance the best result counts, for
each number by itself.  See dalle2_pytorch/settings.py.

Time is the CPU time of a process divided by its threads: what a core was busy with it, neither pauses nor what else the machine
does.  It counts training alone: neither imports nor sampling nor measuring.  --jobs learners run side by side, each on --threads
cores of its own: of equal numbers of both systems, since they are started in turn.  A learner that has ended is kept in
--runs, so that the same command goes on where it was cut off.  Needs the prepared emoji: `python -m experiments.emoji.data
prepare`.  Ends with status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.dalle2_pytorch import tables
from benchmarks.dalle2_pytorch.data import Emoji, synthetic
from benchmarks.dalle2_pytorch.environment import environment, versions
from benchmarks.dalle2_pytorch.jobs import ablation_jobs, learning_jobs, pairs, speed_data, speed_jobs
from benchmarks.dalle2_pytorch.run import Results, lanes, run_jobs
from benchmarks.dalle2_pytorch.settings import LEARNERS, PACKAGE, STAGES, USUAL, VERSION
from benchmarks.dalle2_pytorch.tables import OURS, THEIRS
from benchmarks.machine import header
from unclip.data.files import cache_folder

SECTIONS = ("speed", "learning", "ablation")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__, formatter_class=formatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--theirs", type=Path, default=cache_folder() / f"{PACKAGE}-{VERSION}", help="environment (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/training"), help="of what was found (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="learners side by side (%(default)s)")
    parser.add_argument("--threads", type=int, help="of each learner; speed has those of all (default: all cores, shared out)")
    parser.add_argument("--rounds", type=int, default=2, help="speed: processes of each system (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="speed: timed steps of each process, after one (%(default)s)")
    parser.add_argument("--minutes-prior", type=float, default=10, help="of each prior (%(default)s)")
    parser.add_argument("--minutes-decoder", type=float, default=30, help="of each decoder (%(default)s)")
    parser.add_argument("--minutes-ablation", type=float, default=5, help="of each variant of our recipes (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of each prior (%(default)s)")
    parser.add_argument("--decoder-seeds", type=int, default=1, help="of each decoder (%(default)s)")
    parser.add_argument("--captions", type=int, default=100, help="held-out pictures drawn by each decoder (%(default)s)")
    parser.add_argument("--their-steps", type=int, default=50, help="of their decoder's DDIM; its README has 250 (%(default)s)")
    every = [name for names in LEARNERS.values() for name in names]
    usual = [name for names in USUAL.values() for name in names]
    parser.add_argument("--settings", nargs="+", choices=every, metavar="NAME", help=f"of theirs, of {every} (default: {usual})")
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that everything runs; targets mean nothing")
    args = parser.parse_args(arguments)
    if args.threads is None:
        args.threads = max(1, cores // max(1, args.jobs))
    for name in ("threads", "jobs", "rounds", "repeats", "seeds", "decoder_seeds", "their_steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    for name in ("minutes_prior", "minutes_decoder", "minutes_ablation"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}")
    if args.captions < 2:
        parser.error("--captions must be at least 2")
    return args


def sections(args: argparse.Namespace, python: Path) -> Iterator[tuple[str, tables.Table]]:
    """Run what is asked for and not there yet; title and table of each section."""
    runs, pythons = args.runs.resolve(), {THEIRS: python, OURS: Path(sys.executable)}
    results = Results(runs / "results.json")
    if "speed" in args.only:
        chosen, jobs = pairs(args), speed_jobs(args, runs)
        for pair in chosen:
            synthetic(pair.data, speed_data(pair, runs))
        threads = args.jobs * args.threads
        run_jobs(jobs, results, lanes(1, threads), threads, pythons, runs)
        title = f"speed: {threads} threads, {args.rounds} processes of each system in turn, alone"
        yield title, tables.speed(results.of(jobs), chosen)
    if {"learning", "ablation"}.isdisjoint(args.only):
        return
    emoji = Emoji(runs / "material.safetensors")
    bench, cores = emoji.bench(args.captions), lanes(args.jobs, args.threads)
    alone = f"{args.jobs} processes side by side, {args.threads} threads each, on cores of its own"
    if "learning" in args.only:
        jobs = learning_jobs(args, bench)
        run_jobs(jobs, results, cores, args.threads, pythons, runs, emoji.measure)
        yield f"learning: {alone}", tables.learning(results.of(jobs), emoji.costless(), args.stages)
    if "ablation" in args.only:
        jobs = ablation_jobs(args, bench)
        run_jobs(jobs, results, cores, args.threads, pythons, runs, emoji.measure)
        yield f"ablation: {args.minutes_ablation:g} minutes, {alone}", tables.ablation(results.of(jobs), args.stages)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    try:
        lanes(args.jobs, args.threads)
        python = environment(args.theirs)
        print(header(), flush=True)
        print(versions(python), flush=True)
        reached = True
        for title, table in sections(args, python):
            print("\n" + "\n".join([title, "", *table.lines]).rstrip(), flush=True)
            reached &= table.reached
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if args.small:
        print("\ntargets: not judged at this size")
        return
    print("\ntargets: " + ("reached" if reached else "MISSED"))
    raise SystemExit(0 if reached else 1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that its workers end with it
    main()

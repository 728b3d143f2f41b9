"""What a step of each stage costs over batch, resolution and width: `python -m benchmarks.stages`.

The networks of the shipped model with random weights, changed along one axis at a time.  A step is one forward pass of a
sampler: for the prior the new tokens of a cached one, for a guided decoder a batch of two per picture.  `width`: of the
prior's transformer, or the UNet's channels, whose weights are channels_last.  bfloat16 is autocast, as in the pipeline.
Medians.

`--against CHECKOUT` compares with another checkout of this repository, each in a process of its own, in turn: A B A B.
The time of this one over the time of the other is taken turn by turn, so that what else the machine does meets both.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import stage_step
from benchmarks.machine import header, median, quartiles
from benchmarks.stage_step import Case, Step, build

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("prior", "decoder", "upsampler_256", "upsampler_1024")
SLOWER = 1.03  # how much longer than the other checkout's a step may take
TURN = 0.1  # seconds of a turn, at least


def cases(stages: list[str]) -> Iterator[Case]:
    """Each stage's own size with batch 1, then along one axis after the other."""
    axes: dict[str, tuple[Case, list[int], list[int], list[int]]] = {  # base, then batches, pixels, widths
        "prior": (Case("prior", 256, None, 1), [2, 8, 64], [], [512, 1024, 2048]),
        "decoder": (Case("decoder", 128, 64, 1), [2, 4, 16], [128, 256], [64, 256]),
        "upsampler_256": (Case("upsampler_256", 64, 256, 1), [4], [128, 512], [32, 128]),
        "upsampler_1024": (Case("upsampler_1024", 64, 1024, 1), [2], [512, 2048], [32, 128]),
    }
    for stage in stages:
        base, batches, pixels, widths = axes[stage]
        yield base
        yield from (base._replace(batch=batch) for batch in batches)
        yield from (base._replace(pixels=side) for side in pixels)
        yield from (base._replace(width=width) for width in widths)


def gflop(step: Step) -> float:
    """Products and convolutions of a step, a multiplication with its addition as two."""
    # Under autograd unclip.nn.cpu.linear uses the operators that the counter knows.
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        step()
    return counter.get_total_flops() / 1e9


@torch.no_grad()
def table(chosen: list[Case], repeats: int) -> None:
    """Prints what a step of each case takes here."""
    print(f"\n{'':47} {'float32':>19} {'bfloat16':>19}")
    print(f"{'stage':15} {'width':>6} {'pixels':>6} {'batch':>6} {'GFLOP':>10}" + f" {'ms':>9} {'GFLOP/s':>9}" * 2, flush=True)
    for case in chosen:
        step = build(case)
        work = gflop(step)
        line = f"{case.stage:15} {case.width:6} {case.pixels or '-':>6} {case.batch:6} {work:10.3f}"
        for half in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                seconds = median(step, repeats)
            line += f" {1e3 * seconds:9.1f} {work / seconds:9.0f}"
        print(line, flush=True)


class Side:
    """A process that takes steps in a checkout when it is told to, and sleeps otherwise."""

    def __init__(self, checkout: Path):
        self.checkout = checkout
        program = Path(stage_step.__file__).read_text()
        # The same program for both; what it imports is the checkout's.
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: list[object] | int) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(what), file=self.process.stdin, flush=True)
            return float(json.loads(self.process.stdout.readline()))
        except (BrokenPipeError, json.JSONDecodeError):
            sys.exit(f"the process in {self.checkout} ended with status {self.process.wait()} when asked for {what}")

    def end(self) -> None:
        self.process.communicate()  # it ends with its input


def compare(against: Path, chosen: list[Case], rounds: int, turns: int) -> bool:
    """Prints for each case and stage how much longer a step takes here than there; whether every one keeps the limit."""
    print(f"\nhere {ROOT}, there {against.resolve()}; {rounds} times built anew, {turns} turns each")
    columns = f"{'stage':15} {'width':>6} {'pixels':>6} {'batch':>6} {'dtype':9}"
    print(f"{columns} {'there, ms':>9} {'here, ms':>9} {'ratio':>6}  quartiles", flush=True)
    kept, of_stage = True, dict[tuple[str, str], list[float]]()
    there, here = sides = Side(against), Side(ROOT)
    try:
        for case in chosen:
            for dtype in ("float32", "bfloat16"):
                seconds: dict[Side, list[float]] = {there: [], here: []}
                for _ in range(rounds):
                    first = [side.ask([*case, dtype == "bfloat16"]) for side in sides]
                    steps = math.ceil(TURN / min(first))
                    for _ in range(turns):
                        for side in sides:
                            seconds[side].append(side.ask(steps))
                ratios = [b / a for a, b in zip(seconds[there], seconds[here])]
                of_stage.setdefault((case.stage, dtype), []).extend(ratios)
                ratio = statistics.median(ratios)
                kept &= ratio <= SLOWER
                times = " ".join(f"{1e3 * statistics.median(seconds[side]):9.2f}" for side in sides)
                row = f"{case.stage:15} {case.width:6} {case.pixels or '-':>6} {case.batch:6} {dtype:9} {times}"
                print(f"{row} {ratio:6.3f}  {quartiles(ratios)}", flush=True)
    finally:
        for side in sides:
            side.end()
    print("\nall turns of a stage")
    for (stage, dtype), ratios in of_stage.items():
        print(f"{stage:15} {dtype:9} {statistics.median(ratios):6.3f}  {quartiles(ratios)}")
    print(f"no step takes more than {SLOWER} times as long as there: {'kept' if kept else 'BROKEN'}")
    return kept


def main(arguments: list[str] | None = None) -> None:
    start = time.perf_counter()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="compare with another checkout, side by side")
    parser.add_argument("--rounds", type=int, default=2, help="with --against: how often a case is built (%(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="with --against: turns of both after each time (%(default)s)")
    args = parser.parse_args(arguments)
    if args.against and not (args.against / "unclip" / "__init__.py").exists():
        parser.error(f"--against {args.against}: no checkout of unclip, it has no unclip/__init__.py")
    print(header(), flush=True)
    kept, chosen = True, list(cases(args.stages))
    if args.against:
        kept = compare(args.against, chosen, args.rounds, args.turns)
    else:
        table(chosen, args.repeats)
    print(f"\nmeasured in {time.perf_counter() - start:.0f} s")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()

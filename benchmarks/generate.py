"""`unclip generate` from the start of the process to the end of it: `python -m benchmarks.generate`.

Wall time and peak memory of the command as a user types it, then where the time goes, from runs that look at the clock at
the command's joints.  Every run is a process of its own; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.command import CAPTION, arguments, command, run

LIMITS: dict[int, tuple[float, float | None]] = {64: (8.0, None), 1024: (20.0, 2.5)}  # seconds, GB


def breakdown(model: str, size: int, dtype: str, png: Path) -> dict[str, float]:
    """Seconds of each step of a traced run, in their order."""
    options = ["--model", model, "--sizes", str(size), "--dtype", dtype, "--output", str(png)]
    measured = run(["-m", "benchmarks.generate", "--trace", *options])
    before = measured.started
    steps: dict[str, float] = {}
    marks = json.loads(png.with_suffix(".json").read_text())
    for name, clock in [*marks, ("end of the process", measured.started + measured.seconds)]:
        steps[name] = steps.get(name, 0.0) + clock - before  # a stage reports each of its chunks
        before = clock
    return steps


def trace(options: list[str], png: Path) -> None:
    """The command itself in this process, with a look at the clock at its joints; the times go to a file beside `png`."""
    marks = [("interpreter", time.time())]

    def mark(name: str) -> None:
        marks.append((name, time.time()))

    import unclip.cli

    mark("import unclip.cli")
    load = unclip.cli.generate.load_any

    def load_timed(*args: Any) -> Any:
        # The imports that loading would make, one by one.
        import torch  # noqa: F401

        mark("import torch")
        import open_clip  # noqa: F401

        mark("import open_clip")
        import decoder  # noqa: F401
        import prior  # noqa: F401
        import unclip.clip  # noqa: F401
        import upsamplers  # noqa: F401
        from unclip.pipelines.generation import Generation
        from unclip.pipelines.unclip import UnCLIP
        from unclip.types import Step

        mark("import unclip, prior, ...")
        generate, save = UnCLIP.generate, Generation.save

        def generate_timed(pipe: UnCLIP, captions: list[str], *, callback: Callable[..., None], **settings: Any) -> Generation:
            def report(step: Step) -> None:
                callback(step)
                if step.step == step.steps:
                    mark("text, prior" if step.stage == "prior" else step.stage)

            return generate(pipe, captions, callback=report, **settings)

        def save_timed(generation: Generation, path: Path) -> list[Path]:
            paths = save(generation, path)
            mark("PNG")
            png.with_suffix(".json").write_text(json.dumps(marks))
            return paths

        UnCLIP.generate, Generation.save = generate_timed, save_timed  # type: ignore
        pipe = load(*args)
        mark("load, check the CLIP")
        return pipe

    unclip.cli.generate.load_any = load_timed  # type: ignore
    sys.argv = ["unclip", *options]
    unclip.cli.main()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="emoji", help="a shipped name or a folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--runs", type=int, default=5, help="of the command")
    parser.add_argument("--traces", type=int, default=3, help="runs for the breakdown")
    parser.add_argument("--trace", action="store_true", help=argparse.SUPPRESS)  # this process is such a run
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    model = str(Path(args.model).resolve()) if Path(args.model).is_dir() else args.model
    if args.trace:
        return trace(arguments(model, args.sizes[0], args.dtype, args.output), args.output)
    from benchmarks.machine import header

    print(header(), flush=True)
    print(f'\nunclip generate "{CAPTION}" --model {args.model} --dtype {args.dtype}: medians of {args.runs} runs')
    print(f"{'pixels':>8} {'seconds':>8} {'fastest':>8} {'slowest':>8} {'limit':>6} {'peak GB':>8} {'limit':>6}", flush=True)
    kept, columns = True, {}
    with tempfile.TemporaryDirectory() as folder:
        png = Path(folder) / "picture.png"
        for size in args.sizes:
            runs = [command(model, size, args.dtype, png) for _ in range(args.runs + 1)][1:]  # the first fills disk caches
            seconds, memory = [r.seconds for r in runs], statistics.median(r.gigabytes for r in runs)
            limit, most = LIMITS.get(size, (None, None))
            median = statistics.median(seconds)
            kept &= (limit is None or median <= limit) and (most is None or memory <= most)
            times = f"{median:8.2f} {min(seconds):8.2f} {max(seconds):8.2f} {limit or '':>6}"
            print(f"{size:8} {times} {memory:8.2f} {most or '':>6}", flush=True)
        for size in args.sizes:
            traces = [breakdown(model, size, args.dtype, png) for _ in range(args.traces)]
            columns[size] = {name: statistics.median(t[name] for t in traces) for name in traces[0]} if traces else {}
    print(f"\n{'where it goes, seconds':32}" + "".join(f"{f'{size} px':>10}" for size in args.sizes))
    for name in max(columns.values(), key=len):
        print(f"{name:32}" + "".join(f"{steps[name]:10.2f}" if name in steps else " " * 10 for steps in columns.values()))
    print("\nlimits: " + ("kept" if kept else "BROKEN"))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()

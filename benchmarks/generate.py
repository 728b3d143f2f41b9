"""`unclip generate` from the start of the process to the end of it: `python benchmarks/generate.py`.

Wall time and peak memory of the command as a user types it, then where the time goes, from a process that takes the same
steps and looks at the clock in between.  Every run is a process of its own; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CAPTION = "red heart"
LIMITS: dict[int, tuple[float, float | None]] = {64: (8.0, None), 1024: (20.0, 2.5)}  # seconds, GB
COMMAND = "from unclip.cli import main; main()"  # what the console script `unclip` runs


class Run(NamedTuple):
    seconds: float
    gigabytes: float  # peak resident memory
    output: str
    started: float  # time.time()


def run(arguments: list[str]) -> Run:
    """One process, start to end.  Its warnings and errors go to the terminal."""
    started, start = time.time(), time.perf_counter()
    child = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)  # the memory of this child alone; subprocess would not tell
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"`{' '.join(arguments)}` ended with status {child.returncode}")
    return Run(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9, output, started)


def command(model: str, size: int, dtype: str, png: Path) -> Run:
    """`unclip generate`, and a look at what it left."""
    from PIL import Image

    png.unlink(missing_ok=True)
    options = ["-o", str(png), "--model", model, "--size", str(size), "--dtype", dtype]
    measured = run(["-c", COMMAND, "generate", CAPTION, *options])
    with Image.open(png) as picture:
        if picture.size != (size, size):
            sys.exit(f"asked for {size} pixels, {png} is {picture.size}")
    return measured


def breakdown(model: str, size: int, dtype: str, png: Path) -> dict[str, float]:
    """Seconds of each step of a traced run, in their order."""
    measured = run([__file__, "--trace", "--model", model, "--sizes", str(size), "--dtype", dtype, "--output", str(png)])
    before, steps = measured.started, {}
    for name, clock in [*json.loads(measured.output), ("end of the process", measured.started + measured.seconds)]:
        steps[name] = clock - before
        before = clock
    return steps


def trace(model: str, size: int, dtype: str, png: Path) -> None:
    """The steps of `unclip generate`; prints what time it was after each as JSON."""
    marks = [("interpreter", time.time())]

    def mark(name: str, done: int = 1, total: int = 1) -> None:
        if done == total:
            marks.append((name, time.time()))

    import torch

    mark("import torch")
    import open_clip  # noqa: F401 (CLIP would import it while it is built)

    mark("import open_clip, torchvision")
    import decoder  # noqa: F401
    import prior  # noqa: F401
    import unclip.cli
    import unclip.clip
    import upsamplers  # noqa: F401
    from unclip.pipeline import UnCLIP

    mark("import unclip, prior, ...")
    pipe = UnCLIP.from_pretrained(model).to("cpu", getattr(torch, dtype))
    mark("load, check the CLIP")
    result = pipe.generate(CAPTION, size=size, progress=mark)
    result.save(png)
    mark("PNG")
    print(json.dumps(marks))


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
        return trace(model, args.sizes[0], args.dtype, args.output)
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

"""How long imports take: `python -m benchmarks.import_time`.

`import unclip` must take at most 0.3 s and must not import torch.  The other lines say what a first use then pays.  Each
import in a process of its own, timed inside it, so without the start of the interpreter.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 0.3
STATEMENTS = (
    "import unclip",
    "import unclip.cli",
    "import torch",
    "import torch, unclip.pipelines.unclip, unclip.clip, prior, decoder, upsamplers",
    "import torch, torchvision",
    "import torch, open_clip",
)
CHILD = """
import sys, time
start = time.perf_counter()
{}
print(time.perf_counter() - start, len(sys.modules), "torch" in sys.modules)
"""


def measure(statement: str) -> tuple[float, int, bool]:
    """Seconds, modules loaded in all, and whether torch is among them."""
    child = [sys.executable, "-c", CHILD.format(statement)]
    answer = subprocess.run(child, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    return float(answer[0]), int(answer[1]), answer[2] == "True"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    from benchmarks.machine import header

    print(header(), flush=True)
    print(f"\n{'statement':72} {'seconds':>8} {'fastest':>8} {'slowest':>8} {'modules':>8}  torch")
    kept = True
    for statement in STATEMENTS:
        measure(statement)  # files into the cache
        seconds, modules, torch = zip(*(measure(statement) for _ in range(args.runs)))
        median = statistics.median(seconds)
        times = f"{median:8.3f} {min(seconds):8.3f} {max(seconds):8.3f}"
        print(f"{statement:72} {times} {modules[0]:8}  {'yes' if any(torch) else 'no'}", flush=True)
        if statement == "import unclip":
            kept = median <= LIMIT and not any(torch)
    print(f"\nimport unclip: at most {LIMIT} s and without torch: {'kept' if kept else 'BROKEN'}")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()

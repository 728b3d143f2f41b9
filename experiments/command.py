"""`unclip generate` from the start of a process to the end of it: seconds and peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CAPTION = "red heart"
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


def arguments(model: str, size: int, dtype: str, png: Path) -> list[str]:
    return ["generate", CAPTION, "-o", str(png), "--model", model, "--size", str(size), "--dtype", dtype]


def command(model: str, size: int, dtype: str, png: Path) -> Run:
    """`unclip generate`, and a look at what it left."""
    from PIL import Image

    png.unlink(missing_ok=True)
    measured = run(["-c", COMMAND, *arguments(model, size, dtype, png)])
    with Image.open(png) as picture:
        if picture.size != (size, size):
            sys.exit(f"asked for {size} pixels, {png} is {picture.size}")
    return measured

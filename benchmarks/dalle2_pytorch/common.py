"""What the workers of `training.py` share: their job, the clock, peak memory.  Runs in either system's environment."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import memory

Spec = dict[str, Any]


def begin(path: str) -> Spec:
    """Read the job, keep to its cores and threads, seed torch."""
    spec: Spec = json.loads(Path(path).read_text())
    if spec["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, spec["cores"])
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    return spec


def finish(spec: Spec, found: dict[str, Any], drawn: dict[str, Tensor] | None = None) -> None:
    """Write what was found, and the samples drawn beside it."""
    from safetensors.torch import save_file

    if drawn is not None:
        save_file({name: x.float().contiguous() for name, x in drawn.items()}, spec["drawn"])
    out = Path(spec["out"])
    aside = out.with_suffix(".part")
    aside.write_text(json.dumps(found | {"torch": torch.__version__}))
    os.replace(aside, out)


class Ticks:
    """The clock at the start of each step, and the peak memory then."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.peak = 0.0

    def __call__(self) -> None:
        self.peak = memory()
        self.times.append(time.perf_counter())

    @property
    def laps(self) -> list[float]:
        """Seconds of whole steps, from start to start; the first, which allocates, is left out."""
        return [b - a for a, b in zip(self.times, self.times[1:])][1:]


class Clock:
    """CPU seconds of this process divided by its threads: what a core was busy with it, whatever else the machine does."""

    def __init__(self, threads: int):
        self.threads, self.wall = threads, time.perf_counter()
        self.began = time.process_time()

    def seconds(self) -> float:
        return (time.process_time() - self.began) / self.threads


def shuffled(n: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Batches of indices in endless shuffled epochs, which follow each other without a gap."""
    generator = torch.Generator().manual_seed(seed)
    rest = torch.empty(0, dtype=torch.long)
    while True:
        while len(rest) < batch:
            rest = torch.cat([rest, torch.randperm(n, generator=generator)])
        yield rest[:batch]
        rest = rest[batch:]


def speed_of(ticks: Ticks, batch: int, start: float, parameters: int, gflop: float) -> dict[str, Any]:
    """What a worker tells of a step: times, GB before the model was made and at the peak, sizes."""
    rate = batch / statistics.median(ticks.laps)
    results = {"seconds": ticks.laps, "samples per second": rate, "start": start, "peak": ticks.peak}
    return results | {"parameters": parameters, "gflop": gflop}

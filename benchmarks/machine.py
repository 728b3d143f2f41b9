"""What the numbers were measured on: `python -m benchmarks.machine`.  The other benchmarks print it first."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.machine import describe


class Speed(NamedTuple):
    """What this machine reaches on the plain operations that the stages are made of."""

    product: dict[str, float]  # GFLOP/s by dtype: 1536 x 1536 times 1536 x 1536
    convolution: dict[str, float]  # GFLOP/s by dtype: 3 x 3, 128 to 128 channels, 64 x 64 pixels, two pictures
    memory: float  # GB/s: reading 512 MB once


def memory(field: str = "VmHWM") -> float:
    """GB that this process has held at most ("VmHWM") or holds now ("VmRSS")."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split(f"{field}:")[1].split()[0]) * 1024 / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def busy(seconds: float = 1.0) -> float | None:
    """The part of all cores that others use while this process sleeps; None where /proc cannot tell."""

    def read() -> tuple[int, int]:
        numbers = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]  # all, idle and waiting for disks

    if not Path("/proc/stat").exists():
        return None
    total, idle = read()
    time.sleep(seconds)
    total_after, idle_after = read()
    return 1 - (idle_after - idle) / max(1, total_after - total)


def median(run: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after one that does not count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@torch.no_grad()
def speed(repeats: int = 7) -> Speed:
    """Measure products, convolutions and memory; about two seconds on two cores."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    a, b = draw(1536, 1536), draw(1536, 1536)
    x, weight = draw(2, 128, 64, 64), draw(128, 128, 3, 3)
    product, convolution = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        left, right = a.to(dtype), b.to(dtype)
        image, kernel = (y.to(dtype, memory_format=torch.channels_last) for y in (x, weight))
        product[name] = 2 * 1536**3 / median(lambda: left @ right, repeats) / 1e9  # noqa: B023 (called at once)
        flop = 2 * x.numel() * 128 * 9
        convolution[name] = flop / median(lambda: torch.conv2d(image, kernel, padding=1), repeats) / 1e9  # noqa: B023
    large = torch.ones(2**27)
    return Speed(product, convolution, large.nbytes / median(large.sum, repeats) / 1e9)


def header() -> str:
    """The lines above every table: when, on what, how fast it is, and whether it was free."""
    others = busy()
    rates = speed()
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {describe()}",
        f"matrix product {_rates(rates.product)}; convolution {_rates(rates.convolution)}; memory {rates.memory:.0f} GB/s read",
    ]
    if others is not None and others > 0.05:
        lines.append(f"BUSY: other work takes {100 * others:.0f} % of the cores, so the times below are too long")
    return "\n".join(lines)


def _rates(by_dtype: dict[str, float]) -> str:
    return ", ".join(f"{rate:.0f} GFLOP/s {dtype}" for dtype, rate in by_dtype.items())


if __name__ == "__main__":
    print(header())


def quartiles(ratios: list[float]) -> str:
    """Lower and upper quartile, as text; nothing of a single number."""
    if len(ratios) < 2:
        return ""
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{low:.3f} {high:.3f}"

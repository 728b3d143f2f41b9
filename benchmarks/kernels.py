"""What each CPU kernel of `unclip.nn.cpu` gains on Karlo at full size: `python -m benchmarks.kernels`.

Random weights of the public model's shapes.  In one process, step by step in turn: as it is, then without the kernel; the ratio
of each such pair is taken by itself, so that what else the machine does meets both.  A kernel that gains nothing is in the way.
The shipped model is too small for any of them but the linear layers' and the upsampling convolutions'.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from benchmarks import karlo
from benchmarks.machine import header, quartiles
from unclip.nn.cpu import attention, convolution, linear, switch

NEVER = 2**62
# What turns a kernel off: a module's number, beyond which it is taken, or the switch of them all.
KERNELS: dict[str, tuple[ModuleType, str, Any]] = {
    "winograd": (convolution.Conv3x3, "_many", lambda self, x: False),  # type: ignore[dict-item]
    "one product": (convolution, "SMALL", 0),
    "upsampling": (convolution.Conv3x3, "doubled", lambda self, x: self(torch.nn.functional.interpolate(x, scale_factor=2))),  # type: ignore[dict-item]
    "attention": (attention, "LONG", NEVER),
    "linear": (linear, "plain", lambda x: False),
}


@contextlib.contextmanager
def without(kernel: str) -> Iterator[None]:
    """The kernel, or "all" of them, are not taken inside the block."""
    if kernel == "all":
        before = os.environ.get(switch.OFF)
        os.environ[switch.OFF] = "1"
        try:
            yield
        finally:
            os.environ.pop(switch.OFF) if before is None else os.environ.update({switch.OFF: before})
        return
    owner, name, off = KERNELS[kernel]
    before = getattr(owner, name)
    setattr(owner, name, off)
    try:
        yield
    finally:
        setattr(owner, name, before)


def gains(step: Callable[[], object], kernel: str, turns: int) -> list[float]:
    """How many times longer a step takes without the kernel, turn by turn."""
    ratios = []
    for _ in range(turns):
        taken = karlo.clock(step)
        with without(kernel):
            ratios.append(karlo.clock(step) / taken)
    return ratios


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that everything runs; gains mean nothing")
    parser.add_argument("--stages", nargs="+", default=list(karlo.STEPS), choices=list(karlo.STEPS))
    parser.add_argument("--dtypes", nargs="+", default=list(karlo.DTYPES), choices=list(karlo.DTYPES))
    parser.add_argument("--kernels", nargs="+", default=["all", *KERNELS], choices=["all", *KERNELS])
    parser.add_argument("--turns", type=int, default=5, help="pairs of steps of each kernel (%(default)s)")
    args = parser.parse_args(arguments)
    print(header(), flush=True)
    size = karlo.SMALL if args.small else karlo.FULL
    print(f"\n{'stage':10} {'dtype':9} {'without':12} {'times as long':>13}  quartiles", flush=True)
    for stage in args.stages:
        for dtype in args.dtypes:
            kind = karlo.DTYPES[dtype]
            step = karlo.our_step(karlo.our_part(stage, size, kind), size, kind).step
            for kernel in args.kernels:
                with without(kernel):
                    step()  # both ways once, not counted
                step()
                ratios = gains(step, kernel, args.turns)
                print(f"{stage:10} {dtype:9} {kernel:12} {statistics.median(ratios):13.3f}  {quartiles(ratios)}", flush=True)
            del step
    sys.stdout.flush()


if __name__ == "__main__":
    main()

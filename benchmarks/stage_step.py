"""A step of a stage, built from the shipped model's configs: what `stages.py` times, here and in another checkout.

`stages.py --against` runs this text in both checkouts, so it uses nothing but torch, the public names of `unclip` and the
networks' own methods, as older checkouts have them too.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

Step = Callable[[], Tensor]
CONTEXT, EMBED = 24, 128  # tokens of a caption; width of an embedding and of a token's state


class Case(NamedTuple):
    stage: str
    width: int  # of the prior's transformer, or the UNet's channels
    pixels: int | None  # the side of the picture; the prior has none
    batch: int


@functools.cache
def shipped() -> Any:
    from unclip import UnCLIP

    return UnCLIP.from_pretrained("emoji")


@torch.no_grad()
def build(case: Case) -> Step:
    """The network of a case with random weights, its conditions encoded."""
    from unclip import Cond, Text

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(case.batch, *shape, generator=generator)

    ones = torch.ones(case.batch, CONTEXT, dtype=torch.int64)
    text = Text(["a caption"] * case.batch, ones, draw(EMBED), draw(CONTEXT, EMBED), ones.bool())
    t = torch.full((case.batch,), 500)
    if case.stage == "prior":
        part = shipped().prior
        inner = part.config.network.transformer.replace(width=case.width, heads=case.width // 64)
        network = type(part)(part.config.replace(network=part.config.network.replace(transformer=inner))).eval().network
        cache, x = network.encode(network.prompt(text)), draw(EMBED)
        return lambda: network(x, t, cache)
    assert case.pixels is not None
    pipe = shipped()
    part = {"decoder": pipe.decoder, "upsampler_256": pipe.upsamplers[0], "upsampler_1024": pipe.upsamplers[1]}[case.stage]
    network = type(part)(part.config.replace(unet=part.config.unet.replace(channels=case.width))).eval().network
    network.to(memory_format=torch.channels_last)
    x = draw(3, case.pixels, case.pixels)
    if case.stage == "decoder":
        encoded = network.encode(Cond(draw(EMBED), text), case.batch)
    else:
        encoded = network.encode(draw(3, case.pixels // part.config.scale, case.pixels // part.config.scale))
    return lambda: network(x, t, encoded)


def clock(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


@torch.no_grad()
def serve() -> None:
    """Answers lines of JSON with seconds: [*case, bfloat16] is built and run twice, n is n steps of it, by their median."""
    answers, sys.stdout = sys.stdout, sys.stderr  # nobody else's words among the answers
    with ExitStack() as precision:
        for line in sys.stdin:
            asked = json.loads(line)
            if isinstance(asked, list):
                precision.close()
                step = build(Case(*asked[:-1]))
                precision.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=asked[-1]))
            times = [clock(step) for _ in range(2 if isinstance(asked, list) else asked)]
            # The first of several meets caches that others have filled.
            print(json.dumps(statistics.median(times[1:] or times)), file=answers, flush=True)


if __name__ == "__main__":
    serve()

"""What a step of each stage costs over batch, resolution and width: `python -m benchmarks.stages`.

The networks of the emoji recipes with random weights, changed along one axis at a time.  A step is one forward pass of a
sampler: for the prior the new tokens of a cached one, for a guided decoder a batch of two per picture.  `width`: of the
prior's transformer, or the UNet's channels, whose weights are channels_last.  bfloat16 is autocast, as in the pipeline.
Medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import header, median
from decoder import Decoder
from experiments.recipes import emoji
from prior import DiffusionPrior
from unclip.types import Cond, Text
from upsamplers import Upsampler

Step = Callable[[], Tensor]


class Case(NamedTuple):
    stage: str
    width: int
    pixels: int | None  # the side of the picture; the prior has none
    batch: int


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


def build(case: Case) -> Step:
    """The network of a case, its conditions encoded."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(case.batch, *shape, generator=generator)

    t = torch.full((case.batch,), 500)
    text = Text(
        strings=["a caption"] * case.batch,
        tokens=torch.ones(case.batch, emoji.CONTEXT, dtype=torch.int64),
        embed=draw(emoji.EMBED),
        states=draw(emoji.CONTEXT, emoji.WIDTH),
        mask=torch.ones(case.batch, emoji.CONTEXT, dtype=torch.bool),
    )
    with torch.no_grad():
        if case.stage == "prior":
            config = emoji.prior().model
            transformer = config.network.transformer.replace(width=case.width, heads=case.width // 64)
            model = DiffusionPrior(config.replace(network=config.network.replace(transformer=transformer))).eval()
            cache, x = model.network.encode(model.network.prompt(text)), draw(emoji.EMBED)
            return lambda: model.network(x, t, cache)
        assert case.pixels is not None
        x = draw(3, case.pixels, case.pixels)
        if case.stage == "decoder":
            recipe = emoji.decoder().model
            drawer = Decoder(recipe.replace(unet=recipe.unet.replace(channels=case.width))).eval()
            drawer.to(memory_format=torch.channels_last)
            encoded = drawer.network.encode(Cond(draw(emoji.EMBED), text), case.batch)
            return lambda: drawer.network(x, t, encoded)
        sized = (emoji.upsampler_256() if case.stage == "upsampler_256" else emoji.upsampler_1024()).model
        upsampler = Upsampler(sized.replace(unet=sized.unet.replace(channels=case.width))).eval()
        upsampler.to(memory_format=torch.channels_last)
        low = upsampler.network.encode(draw(3, case.pixels // sized.scale, case.pixels // sized.scale))
        return lambda: upsampler.network(x, t, low)


def gflop(step: Step) -> float:
    """Products and convolutions of a step, a multiplication with its addition as two."""
    # Under autograd unclip.nn.cpu.linear uses the operators that the counter knows.
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        step()
    return counter.get_total_flops() / 1e9


@torch.no_grad()
def main() -> None:
    start = time.perf_counter()
    stages = ["prior", "decoder", "upsampler_256", "upsampler_1024"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", default=stages, choices=stages)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(header(), flush=True)
    print(f"\n{'':47} {'float32':>19} {'bfloat16':>19}")
    print(f"{'stage':15} {'width':>6} {'pixels':>6} {'batch':>6} {'GFLOP':>10}" + f" {'ms':>9} {'GFLOP/s':>9}" * 2, flush=True)
    for case in cases(args.stages):
        step = build(case)
        work = gflop(step)
        line = f"{case.stage:15} {case.width:6} {case.pixels or '-':>6} {case.batch:6} {work:10.3f}"
        for half in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                seconds = median(step, args.repeats)
            line += f" {1e3 * seconds:9.1f} {work / seconds:9.0f}"
        print(line, flush=True)
    print(f"\nmeasured in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()

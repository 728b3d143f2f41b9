"""One guided step of a full-size prior, cached against uncached: `python -m benchmarks.prior_step`.

Random weights, one caption that fills the context, float32.  Medians.  "BLAS" computes every layer by F.linear, "oneDNN"
as unclip.nn.cpu.linear does.  GB/s: the transformer's weights, each read once, over the time of a step.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.machine import header, median
from prior import PriorNetwork, PriorNetworkConfig
from unclip.nn.cpu.linear import Linear
from unclip.nn.transformer import TransformerConfig
from unclip.trees import tree_map
from unclip.types import Text


def build(width: int, layers: int, context: int) -> PriorNetwork:
    """A network with random weights of the usual sizes, drawn once."""
    transformer = TransformerConfig(width=width, layers=layers, heads=width // 64)
    with torch.device("meta"):
        network = PriorNetwork(PriorNetworkConfig(transformer=transformer, embed_dim=768, context=context, states_width=768))
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, p in network.named_parameters():
        if "norm" in name:
            p.data.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            p.data.normal_(std=p.shape[-1] ** -0.5 if p.ndim == 2 else 0.02, generator=generator)
    return network.eval()


@contextmanager
def blas() -> Iterator[None]:
    """Within, Linear is nn.Linear."""
    ours, Linear.forward = Linear.forward, nn.Linear.forward  # type: ignore
    try:
        yield
    finally:
        Linear.forward = ours  # type: ignore


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--context", type=int, default=77)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    network = build(args.width, args.layers, args.context)
    weights = sum(p.numel() * p.element_size() for p in network.transformer.parameters())
    generator = torch.Generator().manual_seed(1)
    states, embed = torch.randn(1, args.context, 768, generator=generator), torch.randn(1, 768, generator=generator)
    mask = torch.ones(1, args.context, dtype=torch.bool)
    prompt = network.prompt(Text(["a caption"], mask.long(), embed, states, mask))
    both = tree_map(lambda a, b: torch.cat([a, b]), prompt, network.null(args.context))
    cache = network.encode(both)
    noised, t = torch.randn(8, 768, generator=generator), torch.full((8,), 500)

    def whole() -> Tensor:
        return network(noised[:2], t[:2], both)

    def step(candidates: int) -> Callable[[], Tensor]:
        return lambda: network(noised[: 2 * candidates], t[: 2 * candidates], cache)

    print(header(), flush=True)
    print(f"\nprior {args.width} x {args.layers}, {weights / 4e9:.2f}B weights, guided, {args.context} text positions")
    print(f"{'':36} {'seconds':>8} {'GB/s':>6}")
    times = {}

    def measure(name: str, run: Callable[[], Tensor], repeats: int) -> None:
        times[name] = median(run, repeats)
        print(f"{name:36} {times[name]:8.3f} {weights / times[name] / 1e9:6.1f}", flush=True)

    with blas():
        measure("uncached, BLAS", whole, 3)
        measure("cached, BLAS", step(1), args.repeats)
    measure("uncached, oneDNN", whole, 3)
    for n in (1, 2, 4):
        measure(f"cached, oneDNN, candidates: {n}", step(n), args.repeats)
    measure("text and z_t, once per caption", lambda: network.encode(both).layers[-1].k, 3)
    expected = whole()
    error = float((step(1)() - expected).abs().max() / expected.square().mean().sqrt())

    steps = times["text and z_t, once per caption"] + 64 * times["cached, oneDNN, candidates: 2"]
    print(f"{'64 steps, 2 candidates':36} {steps:8.1f}")
    print(f"cached against uncached: maximum difference {error:.1e} of the output's RMS (at most 1e-4)")
    step_time = times["cached, oneDNN, candidates: 1"]
    ratio = min(times["uncached, BLAS"], times["uncached, oneDNN"]) / step_time
    plain = times["uncached, BLAS"] / step_time
    print(f"a cached step is {ratio:.1f} times faster than the fastest uncached forward (at least 5), ", end="")
    print(f"{plain:.1f} times faster than one by F.linear")
    sys.exit(0 if ratio >= 5 and error <= 1e-4 and math.isfinite(error) else 1)


if __name__ == "__main__":
    main()

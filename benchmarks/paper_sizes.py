"""Parameters of every stage at the paper's size against the paper: `python -m benchmarks.paper_sizes`.

The recipes of experiments/recipes/paper.py and glide.py on the meta device: nothing is allocated or trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from decoder import Decoder
from experiments.recipes import glide, paper
from prior import ARPrior, DiffusionPrior
from unclip.clip.encoder import CLIP
from upsamplers import Upsampler


class Row(NamedTuple):
    stage: str
    part: str  # a submodule, "" = the whole
    ours: int
    paper: float | None  # what the paper prints, rounded by it to two digits at most


# What unCLIP's Table 3 and, for its decoder's parts and GLIDE's two models, GLIDE 4 say.  CLIP's size is printed in neither.
TEXT = "network.conditions.text"
PAPER: dict[str, tuple[Callable[[], nn.Module], dict[str, float | None]]] = {
    "clip": (lambda: CLIP(paper.clip().model), {"": None, "network.visual": None}),
    "prior": (lambda: DiffusionPrior(paper.prior().model), {"": 1e9, "network.transformer": 1e9}),
    "decoder": (
        lambda: Decoder(paper.decoder().model),
        {"": 3.5e9, "network.unet": 2.3e9, TEXT: 1.2e9, f"{TEXT}.encoder.transformer": 1.2e9},
    ),
    "upsampler_256": (lambda: Upsampler(paper.upsampler_256().model), {"": 7e8}),
    "upsampler_1024": (lambda: Upsampler(paper.upsampler_1024().model), {"": 3e8}),
    "ar_prior": (
        lambda: ARPrior(paper.ar_prior().model),
        {"": 1e9, "network.text_transformer": None, "network.transformer": None},
    ),
    "glide.base": (
        lambda: Decoder(glide.base().model),
        {"": 3.5e9, "network.unet": 2.3e9, f"{TEXT}.encoder.transformer": 1.2e9},
    ),
    "glide.upsampler": (
        lambda: Upsampler(glide.upsampler().model),
        {"": 1.5e9, "network.unet": None, f"{TEXT}.encoder.transformer": None},
    ),
}


def rows() -> list[Row]:
    """Parameter counts, built on the meta device."""
    counted = []
    for stage, (build, parts) in PAPER.items():
        with torch.device("meta"):
            model = build()
        for part, printed in parts.items():
            count = sum(p.numel() for p in model.get_submodule(part).parameters())
            counted.append(Row(stage, part, count, printed))
    return counted


def main() -> None:
    start = time.perf_counter()
    print(f"{'stage':16} {'part':26} {'parameters':>14} {'paper':>7} {'difference':>11}")
    for stage, part, ours, printed in rows():
        name = "" if printed is None else f"{printed / 1e9:.1f}B" if printed >= 1e9 else f"{printed / 1e6:.0f}M"
        difference = "" if printed is None else f"{100 * (ours / printed - 1):+.1f} %"
        print(f"{stage:16} {part or 'whole':26} {ours:14,} {name:>7} {difference:>11}")
    print("The AR prior's text encoder (24 x 2048) and latent decoder (24 x 1664), both in Table 3, hold twice its '1B'.")
    print("The prior's 24 blocks of width 2048, which Table 3 states, hold 1.21B; its '1B' is rounded or leaves something out.")
    print(f"built on the meta device in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()

"""Previews: a small picture of what is being drawn, written again and again while it is."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from unclip.files import check_output, write_files
from unclip.images import grid
from unclip.types import Step

SHARE = 0.01  # of the time, at most


class Preview:
    """A callback that rewrites a PNG with the clean pictures as they are predicted, every few steps; changes no bit of them.

    every: steps between two, and the last of a stage; more where writing would take over a hundredth of the time.  side: pixels
    of a picture alone; of several, at most `most`, each has half of it.  The file is replaced as a whole; it stays when the run
    is cancelled.
    """

    def __init__(self, path: str | Path, every: int = 3, side: int = 256, most: int = 16):
        self.path = check_output(path, folder=False)
        if every < 1 or side < 2 or most < 1:
            raise ValueError(f"every is {every}, side {side} and most {most}; steps, pixels and pictures are at least 1, 2 and 1")
        self.every, self.side, self.most = every, side, most
        self.ready = 0.0  # when the next may be written

    def __call__(self, step: Step) -> None:
        began = time.perf_counter()
        due = step.step % self.every == 0 or step.step == step.steps
        if step.x0.ndim != 4 or not due or began < self.ready:
            return
        images = (step._replace(x0=step.x0[: self.most])).images()
        assert images is not None
        try:
            write_files([(self.path, grid(small(images, self.side if len(images) == 1 else self.side // 2)))])
        except ValueError as error:  # of a full disk: the drawing goes on
            warnings.warn(f"no more previews: {error}", stacklevel=2)
            self.ready = float("inf")
            return
        now = time.perf_counter()
        self.ready = now + (now - began) / SHARE


def small(images: Float[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 s s"]:
    """Pictures of about `side` pixels: larger ones averaged, smaller ones with each pixel repeated."""
    size = images.shape[-1]
    if size > side:
        return adaptive_avg_pool2d(images, (side, side))
    return interpolate(images, scale_factor=side // size, mode="nearest")

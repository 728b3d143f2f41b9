"""Batches of noise in the shape of those that a training will meet."""

from __future__ import annotations

from typing import NamedTuple

import torch

from unclip.randomness import Noise
from unclip.types import Batch, Text


class Shapes(NamedTuple):
    """Of one sample; `shapes.batch` is the example that `plan` asks for.

    size: of the pictures, in pixels.  words: of the captions, as long as they may get.  embed_dim, with it context and
    states_width: for a task without a CLIP, which finds CLIP's answers in its batches.
    """

    size: int | None = None
    words: int = 75
    embed_dim: int | None = None
    context: int = 77
    states_width: int = 1

    def batch(self, rows: int) -> Batch:
        noise, captions = Noise.of(0, range(rows)), [" ".join(["a"] * self.words)] * rows
        batch = Batch([f"{i}" for i in range(rows)], captions=captions, labels=torch.zeros(rows, dtype=torch.int64))
        if self.size is not None:
            images = noise.at("images").normal((3, self.size, self.size)).clamp(-1, 1)
            batch = batch._replace(images=images)
        if self.embed_dim is not None:
            tokens = torch.ones(rows, self.context, dtype=torch.int64)
            embed = noise.at("text").normal((self.embed_dim,))
            states = noise.at("states").normal((self.context, self.states_width))
            text = Text(captions, tokens, embed, states, torch.ones(rows, self.context, dtype=torch.bool))
            batch = batch._replace(image_embed=noise.at("image").normal((self.embed_dim,)), text=text)
        return batch

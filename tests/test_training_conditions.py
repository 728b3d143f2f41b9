"""Conditions of a training batch: holes drawn at random."""

from __future__ import annotations

import torch

from unclip.randomness import Noise
from unclip.training.conditions import random_keep


def test_random_keep_draws_a_row_by_its_own_noise_alone() -> None:
    noise = Noise.of(4, range(6))
    whole = random_keep(noise, 32, 48)
    assert whole.shape == (6, 1, 32, 48) and whole.dtype == torch.bool
    assert torch.equal(random_keep(noise[2:4], 32, 48), whole[2:4])


def test_random_keep_leaves_something_to_see_and_something_to_draw() -> None:
    keep = random_keep(Noise.of(0, range(400)), 16, 16)
    kept = keep.float().mean((1, 2, 3))
    assert kept.min() > 0 and kept.max() < 1 and 0.4 < kept.mean() < 0.75
    corners = keep[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]].sum(1)
    inner, outer, cut = (float((corners == count).float().mean()) for count in (4, 0, 2))
    assert inner > 0.3  # a rectangle or a stroke is missing
    assert outer > 0.1  # a rectangle is all there is
    assert cut > 0.15  # one side


def test_random_keep_is_the_same_at_every_size() -> None:
    """A stage larger has the same hole, but for its edge."""
    small, large = (random_keep(Noise.of(1, range(20)), size, size) for size in (32, 128))
    assert (small.repeat_interleave(4, 2).repeat_interleave(4, 3) != large).float().mean() < 0.02

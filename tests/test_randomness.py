"""Seeded streams: bit-equal whatever the batch, independent whatever the names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from unclip.randomness import Noise

GOLDEN = [[-0.3274680, -0.6011152, 0.6231737], [0.5334777, 0.3768855], [347, 774, 281]]


def test_the_numbers_never_change() -> None:
    """A picture of a seed stays the same over versions and machines."""
    noise = Noise.of(7, 3).at("decoder").at("x_T")
    assert noise.paths == ("7/3/decoder/x_T",)
    drawn = [noise.normal((3,))[0].tolist(), noise.uniform((2,))[0].tolist(), noise.integers(0, 1000, (3,))[0].tolist()]
    assert drawn[0] == pytest.approx(GOLDEN[0], abs=1e-6)
    assert drawn[1] == pytest.approx(GOLDEN[1], abs=1e-6)
    assert drawn[2] == GOLDEN[2]


def test_a_row_does_not_depend_on_its_batch() -> None:
    many, alone = Noise.of(5, range(10)), Noise.of(5, [4])
    assert torch.equal(many.normal((3, 2))[4:5], alone.normal((3, 2)))
    assert torch.equal(many.normal((3, 2))[4:5], alone.normal((3, 2)))  # streams go on together
    assert torch.equal(many[4:6].normal((2,))[:1], Noise.of(5, 4).normal((2,)))  # rows are fresh
    assert torch.equal(Noise.of(5, np.int64(4)).normal(), Noise.of(5, 4).normal())


def test_children_depend_on_the_path_alone() -> None:
    noise = Noise.of(0, range(3))
    before = noise.at("prior").normal((5,))
    noise.normal((100,))
    noise.at("decoder").normal((100,))
    assert torch.equal(noise.at("prior").normal((5,)), before)
    candidates = noise.repeat(2)
    assert candidates.paths == ("0/0#0", "0/0#1", "0/1#0", "0/1#1", "0/2#0", "0/2#1") and len(candidates) == 6
    assert torch.equal(candidates.normal((5,))[3:4], Noise(["0/1#1"]).normal((5,)))


def test_different_paths_are_independent() -> None:
    streams = [
        Noise.of(0, 0),
        Noise.of(0, 1),
        Noise.of(1, 0),
        Noise.of(0, 0).at("a"),
        Noise.of(0, 0).at("b"),
        Noise.of(0, 0).repeat(1),
    ]
    drawn = torch.cat([noise.normal((20_000,)) for noise in streams])
    off = torch.corrcoef(drawn) - torch.eye(len(drawn))
    assert off.abs().max() < 4 / math.sqrt(20_000)


def test_distributions() -> None:
    noise = Noise.of(2, range(4))
    x = noise.normal((50_000,))
    assert x.dtype == torch.float32 and abs(float(x.mean())) < 0.01 and abs(float(x.std()) - 1) < 0.01
    assert abs(float((x**4).mean()) - 3) < 0.1
    u = noise.uniform((50_000,))
    assert u.min() >= 0 and u.max() < 1 and abs(float(u.mean()) - 0.5) < 0.01
    i = noise.integers(1, 5, (50_000,))
    assert i.dtype == torch.int64 and i.unique().tolist() == [1, 2, 3, 4]
    assert noise.normal().shape == (4,) and noise.integers(0, 2).shape == (4,)


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr] # noqa: NPY002
    Noise.of(0, range(3)).at("x").normal((4,))
    assert torch.equal(torch.get_rng_state(), before) and (np.random.get_state()[1] == numpys).all()  # type: ignore[index] # noqa: NPY002


def test_rows_are_taken_by_slices() -> None:
    noise: Any = Noise.of(0, range(3))
    with pytest.raises(TypeError, match="slice"):
        noise[1]
    with pytest.raises(TypeError):
        list(noise)

"""The order of training: a pure function of (seed, k) that goes through every sample once per epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from unclip.data.order import _shares_once, indices, slice_for


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (7, 7), (5, 12), (1, 4)])
def test_epochs_are_permutations_across_their_borders(n: int, batch: int) -> None:
    stream = [i for k in range(4 * n) for i in indices(n, batch, 3, k)]
    for start in range(0, len(stream) - n + 1, n):
        assert sorted(stream[start : start + n]) == list(range(n))


def test_a_batch_depends_on_nothing_but_its_number() -> None:
    forwards = [indices(11, 4, 0, k) for k in range(30)]
    assert [indices(11, 4, 0, k) for k in reversed(range(30))] == forwards[::-1]
    assert all(type(i) is int for i in forwards[0])


def test_seeds_and_epochs_differ() -> None:
    assert indices(100, 100, 0, 0) != indices(100, 100, 1, 0)
    assert indices(100, 100, 0, 0) != indices(100, 100, 0, 1)
    assert indices(100, 100, 0, 0) != list(range(100))


def test_the_batch_size_cuts_the_same_stream() -> None:
    small = [i for k in range(12) for i in indices(9, 2, 5, k)]
    large = [i for k in range(4) for i in indices(9, 6, 5, k)]
    assert small == large


def test_weights_give_their_share_in_every_epoch() -> None:
    weights = [1.0, 3.0, 0.0, 2.5, 1.5]
    expected = np.array(weights) / np.mean(weights)
    total = Counter[int]()
    for epoch in range(400):
        drawn = Counter(indices(5, 5, 1, epoch, weights))
        assert all(abs(drawn[i] - expected[i]) < 1 for i in range(5))
        total += drawn
    assert total[2] == 0
    np.testing.assert_allclose([total[i] / 400 for i in range(5)], expected, atol=0.08)


def test_equal_weights_are_a_permutation() -> None:
    assert sorted(indices(1000, 1000, 2, 7, [0.1] * 1000)) == list(range(1000))


def test_weights_that_cannot_change_are_looked_at_once() -> None:
    listed = [1.0, 3.0, 0.0, 2.5, 1.5]
    frozen, free = np.array(listed), np.array(listed)
    frozen.setflags(write=False)
    before = _shares_once.cache_info()
    for k in range(6):
        assert indices(5, 4, 1, k, frozen) == indices(5, 4, 1, k, free) == indices(5, 4, 1, k, listed)
    after = _shares_once.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 5)
    free[:] = [0, 0, 1, 0, 0]
    assert indices(5, 4, 1, 0, free) == [2, 2, 2, 2]
    other = np.array([0.0, 0, 0, 0, 1])
    other.setflags(write=False)
    assert indices(5, 4, 1, 0, other) == [4, 4, 4, 4]


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be 2 finite numbers"):
        indices(2, 1, 0, 0, weights)


def test_processes_share_a_batch() -> None:
    batch = indices(50, 12, 0, 3)
    assert [i for rank in range(4) for i in batch[slice_for(12, rank, 4)]] == batch
    with pytest.raises(ValueError, match="cannot be shared equally by 5"):
        slice_for(12, 0, 5)
    with pytest.raises(ValueError, match="rank is 2 of 2"):
        slice_for(12, 2, 2)


def test_an_order_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n=0"):
        indices(0, 4, 0, 0)

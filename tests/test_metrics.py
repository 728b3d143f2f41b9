"""Metrics against direct formulas and distributions whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unclip.metrics import (
    clip_score,
    frechet_distance,
    interval,
    mmd,
    paired_mmd,
    polynomial_kernel,
    precision_recall,
    psnr,
    ranks,
    recall_at,
    sharpness,
)
from unclip.randomness import Noise


def draw(seed: int, n: int, d: int = 8) -> Tensor:
    return Noise.of(seed).normal((n, d))[0]


def kernel(a: Tensor, b: Tensor) -> float:
    return (float(a.double() @ b.double()) / len(a) + 1) ** 3


def test_mmd_equals_the_double_loop() -> None:
    x, y = draw(0, 5, 4), draw(1, 7, 4) + 0.5
    within_x = sum(kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    within_y = sum(kernel(y[i], y[j]) for i in range(7) for j in range(7) if i != j) / 42
    across = sum(kernel(a, b) for a in x for b in y) / 35
    assert mmd(x, y) == pytest.approx(within_x + within_y - 2 * across, rel=1e-9)
    assert float(polynomial_kernel(x, y)[1, 2]) == pytest.approx(kernel(x[1], y[2]), rel=1e-9)


def test_paired_mmd_equals_the_double_loop_without_the_pairs() -> None:
    x = draw(0, 6, 4)
    y = x + 0.1 * draw(1, 6, 4)
    h = [
        kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])
        for i in range(6) for j in range(6) if i != j
    ]  # fmt: skip
    assert paired_mmd(x, y).mean == pytest.approx(sum(h) / 30, rel=1e-9)


def test_mmd_of_equal_distributions_is_zero_on_average_and_below_it_half_the_time() -> None:
    found = [mmd(draw(2 * i, 20), draw(2 * i + 1, 20)) for i in range(300)]
    mean, error = sum(found) / 300, (torch.tensor(found).std() / math.sqrt(300)).item()
    assert abs(mean) < 3 * error  # the biased estimator would be off by tens of errors
    assert 0.3 < sum(value < 0 for value in found) / 300 < 0.8


def test_mmd_grows_with_the_shift() -> None:
    x, y = draw(0, 200), draw(1, 200)
    found = [mmd(x, y + shift) for shift in (0, 0.3, 0.6, 1.2)]
    assert found == sorted(found) and found[1] > 5 * abs(found[0])


def test_pairs_do_not_make_the_mmd_smaller() -> None:
    """Of correlated pairs from one distribution the estimate stays around zero; counting the pairs would make it negative."""
    paired, unpaired = [], []
    for i in range(200):
        x = draw(3 * i, 20)
        y = 0.9 * x + math.sqrt(1 - 0.81) * draw(3 * i + 1, 20)
        paired.append(paired_mmd(x, y, draws=2).mean)
        unpaired.append(mmd(x, y))
    error = (torch.tensor(paired).std() / math.sqrt(200)).item()
    assert abs(sum(paired) / 200) < 3 * error
    assert sum(unpaired) / 200 < -5 * error


def test_the_interval_of_the_paired_mmd_holds_the_true_value() -> None:
    def sample(seed: int, n: int) -> tuple[Tensor, Tensor]:
        return draw(2 * seed, n, 4), draw(2 * seed + 1, n, 4) + 0.7

    truth = mmd(*sample(1000, 4000))
    held = [(found := paired_mmd(*sample(i, 60), draws=300)).low <= truth <= found.high for i in range(100)]
    assert 0.85 <= sum(held) / 100 <= 1.0


def test_frechet_of_gaussians() -> None:
    """Of N(m, A A^T) and N(0, I): |m|^2 + tr(A A^T) + d - 2 sum of A's singular values."""
    a = torch.tensor([[1.0, 0.5, 0], [0, 2, 0], [0.3, 0, 0.5]])
    m = torch.tensor([1.0, -2, 0.5])
    x, y = draw(0, 200_000, 3) @ a.T + m, draw(1, 200_000, 3)
    expected = float(m.square().sum() + a.square().sum() + 3 - 2 * torch.linalg.svdvals(a).sum())
    assert frechet_distance(x, y) == pytest.approx(expected, abs=0.05)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    flat = torch.cat([y, y[:, :1]], dim=1)  # singular covariance
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)


def test_frechet_refuses_small_samples() -> None:
    x = draw(0, 2000, 2)
    frechet_distance(x, x)
    with pytest.raises(ValueError, match="at least 2000 rows .* has 1999"):
        frechet_distance(x, x[1:])


def test_precision_and_recall_of_points_on_a_line() -> None:
    real = torch.tensor([0.0, 1, 2, 3, 4])[:, None]  # third neighbours at 3, 2, 2, 2, 3
    inside, tight, far = torch.tensor([[0.5], [6.9]]), torch.tensor([[2.0], [2.1], [2.2], [2.3]]), real + 100
    found = precision_recall(real, torch.cat([inside, torch.tensor([[7.1], [-3.1]])]))
    assert found.precision.tolist() == [True, True, False, False]
    found = precision_recall(real, tight)  # all are real, and only 2 is near enough to them: their radii are 0.3 and 0.2
    assert found.precision.all() and found.recall.tolist() == [False, False, True, False, False]
    found = precision_recall(real, far)
    assert not found.precision.any() and not found.recall.any()
    found = precision_recall(real, real)
    assert found.precision.all() and found.recall.all()


def test_precision_and_recall_need_neighbours() -> None:
    with pytest.raises(ValueError, match="3-th neighbour needs at least 4 rows"):
        precision_recall(draw(0, 3), draw(1, 9))


def test_ranks_count_better_candidates() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.7, 0.1], [0.2, 0.2, 0.3, 0.1]])
    found = ranks(scores, torch.tensor([2, 3]))
    assert found.tolist() == [1, 3]
    assert [recall_at(found, k).mean().item() for k in (1, 2, 4)] == [0, 0.5, 1]
    assert ranks(scores, torch.tensor([0, 1])).tolist() == [0, 1]  # a tie is no miss


def test_ranks_of_groups() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.7, 0.1], [0.8, 0.9, 0.7, 0.1]])
    groups = torch.tensor([0, 0, 1, 2])
    # row 0: group 0 beats candidate 2 once; row 1: candidates 0 and 1, both better, are one
    assert ranks(scores, torch.tensor([2, 2]), groups).tolist() == [1, 1]
    assert ranks(scores, torch.tensor([1, 0]), groups).tolist() == [0, 0]  # the sibling is a hit


def test_clip_score_is_the_cosine() -> None:
    images, texts = torch.tensor([[3.0, 0], [1, 1]]), torch.tensor([[0.0, 2], [5, 5]])
    assert clip_score(images, texts).tolist() == pytest.approx([0, 1])


def test_interval_covers_the_mean_and_narrows_with_n() -> None:
    few, many = interval([0.0, 1.0] * 20), interval([0.0, 1.0] * 500)
    assert few.mean == many.mean == 0.5 and (few.n, many.n) == (40, 1000)
    assert few.low < 0.5 < few.high
    # a fair coin's mean has a standard error of 0.5 / sqrt(n)
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(1000), rel=0.15)
    with pytest.raises(ValueError, match="no values"):
        interval([])


def test_the_interval_holds_the_true_mean_in_about_95_of_100_cases() -> None:
    held = [(found := interval(draw(i, 50, 1), draws=400)).low <= 0 <= found.high for i in range(300)]
    assert 0.90 <= sum(held) / 300 <= 0.98


def test_psnr_and_sharpness() -> None:
    x = torch.zeros(2, 3, 8, 8)
    assert psnr(x, x + torch.tensor([0.2, 2.0]).reshape(2, 1, 1, 1)).tolist() == pytest.approx([20.0, 0.0], abs=1e-4)
    assert psnr(x, x).tolist() == [math.inf, math.inf]
    ramp = torch.linspace(-1, 1, 9).expand(1, 3, 9, 9)
    assert sharpness(ramp).tolist() == pytest.approx([0.125], abs=1e-6)  # 0.25 across, 0 down

"""Linear regression of z_i from z_t: against exact solutions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from prior import LinearPrior, LinearPriorConfig
from prior.linear_prior import RIDGES
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.types import Text

D = 6


def normal(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def text(embed: Tensor, strings: list[str] | None = None) -> Text:
    n = len(embed)
    strings = strings or [f"caption {i}" for i in range(n)]
    return Text(strings, torch.ones(n, 2, dtype=torch.int64), embed, torch.zeros(n, 2, 3), torch.ones(n, 2, dtype=torch.bool))


def fitted(image: Tensor, caption: Tensor) -> tuple[LinearPrior, float]:
    prior = LinearPrior(LinearPriorConfig(embed_dim=D))
    return prior, prior.fit(image, caption)


def test_a_linear_map_is_found() -> None:
    turn, _ = torch.linalg.qr(normal(D, 1))
    caption = normal(200)
    image = 3 * normalize(caption, dim=-1) @ turn  # directions turned, all of length 3
    prior, ridge = fitted(image, caption)
    new = normal(20, 7)
    drawn = prior.sample(text(new), noise=Noise.of(0, range(20)), n=2)
    assert drawn.shape == (20, 2, D) and torch.equal(drawn[:, 0], drawn[:, 1])
    torch.testing.assert_close(drawn[:, 0], 3 * normalize(new, dim=-1) @ turn, atol=1e-4, rtol=1e-4)
    assert ridge == RIDGES[0]  # there is no noise to be careful of
    noise = Noise.of(0, range(20))
    assert prior.loss(3 * normalize(new, dim=-1) @ turn, text(new), noise=noise).total.max() < 1e-8
    assert prior.loss(-3 * normalize(new, dim=-1) @ turn, text(new), noise=noise).total.min() > 0.1


def test_the_ridge_has_the_least_leave_one_out_error() -> None:
    image, caption = normal(12, 1) + 0.5, normal(12, 2)  # unrelated: the more ridge the better
    prior, ridge = fitted(image, caption)
    y, x = prior.scaling.scale(image).double(), prior.scaling.text(caption).double()
    total = (x - x.mean(0)).square().sum() / D  # mean of the squared singular values

    def error(ridge: float) -> float:
        left = []
        for i in range(12):
            rest = [j for j in range(12) if j != i]
            # The penalty is on the slope, not on the mean; it stays that of all rows.
            a, b = x[rest] - x[rest].mean(0), y[rest] - y[rest].mean(0)
            slope = torch.linalg.solve(a.T @ a + ridge * total * torch.eye(D, dtype=torch.float64), a.T @ b)
            left.append(y[i] - y[rest].mean(0) - (x[i] - x[rest].mean(0)) @ slope)
        return float(torch.stack(left).square().mean())

    assert ridge == min(RIDGES, key=error) == RIDGES[-1]


def test_a_blank_caption_gets_the_mean() -> None:
    caption = normal(50, 3)
    image = caption + 2
    prior, _ = fitted(image, caption)
    blank = prior.sample(text(normal(2, 5), ["", "a cat"]), noise=Noise.of(0, range(2)))[:, 0]
    mean = normalize(image, dim=-1).mean(0)
    assert torch.cosine_similarity(blank[0], mean, dim=0) > 0.9999
    assert torch.cosine_similarity(blank[1], mean, dim=0) < 0.9999
    torch.testing.assert_close(blank.norm(dim=1), image.norm(dim=1).mean().expand(2))


def test_saved_and_loaded(tmp_path: Path) -> None:
    prior, _ = fitted(normal(30), normal(30, 1))
    prior.save_pretrained(tmp_path / "prior")
    again = LinearPrior.from_pretrained(tmp_path / "prior")
    given = text(normal(3, 2))
    assert torch.equal(*(p.sample(given, noise=Noise.of(0, range(3))) for p in (prior, again)))
    half = LinearPrior.from_pretrained(tmp_path / "prior", torch.bfloat16).sample(given, noise=Noise.of(0, range(3)))
    torch.testing.assert_close(half.float(), again.sample(given, noise=Noise.of(0, range(3))), atol=0.05, rtol=0.05)


def test_bad_input() -> None:
    prior, _ = fitted(normal(30), normal(30, 1))
    noise = Noise.of(0, range(1))
    with pytest.raises(ValueError, match="draws nothing"):
        prior.sample(text(normal(1)), noise=noise, sampling=Sampling(guidance=2.0))
    with pytest.raises(ValueError, match="n is 0"):
        prior.sample(text(normal(1)), noise=noise, n=0)
    with pytest.raises(ValueError, match="have 3 dimensions"):
        prior.sample(text(normal(1)[:, :3]), noise=noise)
    with pytest.raises(ValueError, match="at least 3"):
        prior.fit(normal(2), normal(2))
    with pytest.raises(ValueError, match="NaN or infinity"):
        prior.fit(normal(9), normal(9) / 0)
    with pytest.raises(ValueError, match="zero, or hold NaN"):
        prior.fit(normal(9) * 0, normal(9))

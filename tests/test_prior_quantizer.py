"""The quantiser: components against numpy's, buckets by their width, and back again after saving."""

import math

import numpy as np
import pytest
import torch

from prior.quantizer import Buckets, Quantizer, QuantizerConfig, count_dims
from unclip.metrics import principal


def data(n=500, d=6):
    """Correlated, off centre, of falling variance: nothing is symmetric by accident."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, 0.1])[:d]
    return torch.randn(n, d, generator=generator) @ mix.T + torch.arange(d)


def fitted(x, **changes):
    quantizer = Quantizer(x.shape[1], QuantizerConfig(**{"dims": x.shape[1], "buckets": 64, **changes}))
    quantizer.fit(x)
    return quantizer


def test_components_are_those_of_numpy():
    x = data()
    mean, variances, components = principal(x)
    centred = x.double().numpy() - x.double().numpy().mean(0)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(variances, singular**2 / len(x))
    assert (variances.diff() < 0).all()  # the largest first
    assert torch.allclose(mean, x.double().mean(0))
    assert np.allclose(np.abs((rows * components.numpy().T).sum(1)), 1)  # the same axes, up to the sign
    assert torch.allclose(components.T @ components, torch.eye(6, dtype=torch.float64))
    largest = components.gather(0, components.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()
    # The data in components: independent, with those variances.
    z = (x.double() - mean) @ components
    assert torch.allclose(z.T @ z / len(z), torch.diag(variances), atol=1e-9)


def test_explained_variance():
    x = data()
    curve = fitted(x, dims=2).explained()
    expected = np.linalg.eigvalsh(np.cov(x.double().numpy().T))[::-1].cumsum()
    assert np.allclose(curve, expected / expected[-1], atol=1e-6)
    for share in (0.5, 0.9, 0.99, 1.0):
        dims = count_dims(x, share)
        assert curve[dims - 1] >= share - 1e-6 and (dims == 1 or curve[dims - 2] < share)
    assert count_dims(x, 1.0) == 6


@pytest.mark.parametrize("edges", ["uniform", "quantile"])
def test_round_trip_errs_by_a_bucket_at_most(edges):
    x = data()
    quantizer = fitted(x, edges=edges)
    symbols = quantizer.encode(x)
    assert symbols.shape == (500, 6) and symbols.dtype == torch.int64
    assert symbols.amin(0).tolist() == [0] * 6 and symbols.amax(0).tolist() == [63] * 6
    z = ((x.double() - quantizer.mean) @ quantizer.components.double()).T
    width = quantizer.buckets.edges.diff(dim=1).gather(1, symbols.T)
    error = (quantizer.buckets.decode(symbols).T - z).abs()
    assert (error <= (width / 2 if edges == "uniform" else width) + 1e-4).all()
    # Axes are orthonormal, so errors of components are errors of embeddings.
    assert torch.allclose((quantizer.decode(symbols) - x).norm(dim=1), error.norm(dim=0).float(), atol=1e-4)
    assert torch.equal(quantizer.encode(quantizer.decode(symbols)), symbols)


def test_uniform_buckets_are_equally_wide_and_quantile_ones_equally_full():
    x = data(n=6400)
    uniform, quantile = fitted(x), fitted(x, edges="quantile")
    z = (x.double() - uniform.mean) @ uniform.components.double()
    width = (z.amax(0) - z.amin(0)) / 64
    assert torch.allclose(uniform.buckets.edges.diff(dim=1), width[:, None].float().expand(6, 64), rtol=1e-3)
    assert torch.allclose(uniform.buckets.centres, (uniform.buckets.edges[:, 1:] + uniform.buckets.edges[:, :-1]) / 2, atol=1e-5)
    for column in quantile.encode(x).T:
        assert (column.bincount(minlength=64) - 100).abs().max() <= 2
    inside = z[quantile.encode(x)[:, 2] == 5, 2]
    assert quantile.buckets.centres[2, 5] == pytest.approx(float(inside.mean()), rel=1e-3)


def test_what_is_beyond_the_range_goes_to_the_end_buckets():
    buckets = Buckets(2, 8)
    buckets.fit(torch.tensor([[0.0, -1.0], [8.0, 1.0]]))
    outside = torch.tensor([[-100.0, math.inf], [8.0, -math.inf], [0.0, -1.5], [99.0, 1.0], [3.0, 0.0], [2.99, 0.1]])
    assert buckets.encode(outside).tolist() == [[0, 7], [7, 0], [0, 0], [7, 7], [3, 4], [2, 4]]
    assert buckets.decode(torch.tensor([[0, 0], [7, 7]])).tolist() == [[0.5, -0.875], [7.5, 0.875]]


def test_dropping_components_costs_their_variance():
    x = data()
    for dims in (1, 3, 6):
        quantizer = fitted(x, dims=dims, buckets=1024)
        lost = (quantizer.decode(quantizer.encode(x)) - x).square().sum(1).mean() / (x - x.mean(0)).square().sum(1).mean()
        assert lost == pytest.approx(1 - float(quantizer.explained()[dims - 1]), abs=1e-4)


def test_half_precision_autocast_does_not_blur_the_symbols():
    x = data()
    quantizer = fitted(x, buckets=1024)
    symbols = quantizer.encode(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(x), symbols)
        assert quantizer.decode(symbols).dtype == torch.float32


def test_statistics_are_in_the_state():
    x = data()
    one, other = fitted(x, dims=3), Quantizer(6, QuantizerConfig(dims=3, buckets=64))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.encode(x), other.encode(x)) and torch.equal(one.explained(), other.explained())


def test_what_cannot_be_done_is_refused():
    x = data()
    for wrong in ({"dims": 0}, {"dims": 1.5}, {"dims": 0.0}, {"dims": True}, {"buckets": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            QuantizerConfig(**wrong)
    with pytest.raises(ValueError, match="resolve"):
        Quantizer(6, QuantizerConfig())
    with pytest.raises(ValueError, match="7.*6 dimensions"):
        Quantizer(6, QuantizerConfig(dims=7))
    quantizer = Quantizer(6, QuantizerConfig(dims=4, buckets=8))
    for use in (lambda: quantizer.encode(x), lambda: quantizer.decode(torch.zeros(1, 4, dtype=torch.int64)), quantizer.explained):
        with pytest.raises(ValueError, match="fit"):
            use()
    for bad, told in (
        (x[:4], "vary in 3 directions"),
        (x[:1], "at least two"),
        (x[:, :5], r"\(n, 6\)"),
        (x * math.nan, "finite"),
    ):
        with pytest.raises(ValueError, match=told):
            quantizer.fit(bad)
    with pytest.raises(ValueError, match="all the same"):
        quantizer.fit(torch.ones(9, 6))
    assert quantizer.mean.abs().sum() == 0 and quantizer.buckets.edges.isnan().all()  # all or nothing
    with pytest.raises(ValueError, match=r"column \[1\]"):
        Buckets(2, 4).fit(torch.tensor([[0.0, 3.0], [1.0, 3.0]]))

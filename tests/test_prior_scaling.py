"""Scaling of embeddings: the paper's constants, there and back, statistics refused when missing."""

import pytest
import torch

from prior.scaling import Scaling


def embeddings(n=500, d=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator) * torch.linspace(0.2, 3, d) + torch.linspace(-2, 2, d)


def test_paper_constants():
    x = torch.nn.functional.normalize(torch.randn(4, 1024), dim=-1)
    assert torch.allclose(Scaling(1024, "std", "unit").scale(3 * x), 17.2 * x, atol=1e-5)
    assert torch.allclose(Scaling(1024, "sqrt_d", "unit").scale(3 * x), 32 * x, atol=1e-5)
    assert Scaling(768, "std", "unit").scale(x[:, :768]).norm(dim=-1)[0] == pytest.approx(14.9, abs=0.05)


@pytest.mark.parametrize("embedding", ["unit", "raw"])
@pytest.mark.parametrize("kind", ["std", "sqrt_d", "statistics"])
def test_there_and_back(kind, embedding):
    raw, scaling = embeddings(), Scaling(32, kind, embedding)
    scaling.fit(raw)
    x, back = scaling.scale(raw), scaling.unscale(scaling.scale(raw))
    if embedding == "raw":
        assert torch.allclose(back, raw, atol=1e-4)
    else:  # the direction, at the mean length
        assert torch.allclose(torch.cosine_similarity(back, raw), torch.ones(len(raw)), atol=1e-5)
        assert torch.allclose(back.norm(dim=-1), raw.norm(dim=-1).mean().expand(len(raw)), atol=1e-3)
    expected = {"std": 0.5375, "sqrt_d": 1.0, "statistics": 1.0}[kind]
    assert x.square().mean().sqrt() == pytest.approx(expected, rel=0.05)
    if kind == "statistics":
        assert torch.allclose(x.mean(0), torch.zeros(32), atol=1e-4)
        assert torch.allclose(x.std(0, unbiased=False), torch.ones(32), atol=1e-4)


@pytest.mark.parametrize("kind, embedding", [("statistics", "unit"), ("statistics", "raw"), ("std", "raw"), ("sqrt_d", "raw")])
def test_missing_statistics_are_refused(kind, embedding):
    scaling = Scaling(32, kind, embedding)
    for use in (scaling.scale, scaling.unscale):
        with pytest.raises(ValueError, match="fit"):
            use(embeddings())
    scaling.fit(embeddings())
    scaling.scale(embeddings())
    broken = scaling.std if kind == "statistics" else scaling.norm
    for value in (float("nan"), 0.0):
        broken.view(-1)[0] = value
        with pytest.raises(ValueError, match="zero or not finite"):
            scaling.scale(embeddings())


def test_useless_data_is_refused():
    scaling, raw = Scaling(32, "statistics", "raw"), embeddings()
    constant = raw.clone()
    constant[:, 5] = 0.3
    for wrong, message in (
        (constant, r"dimension \[5\]"),
        (raw[:1], "n > 1"),
        (raw[:, :31], r"\(n, 32\)"),
        (raw * float("nan"), "NaN"),
        (raw * 0, "zero"),
    ):
        with pytest.raises(ValueError, match=message):
            scaling.fit(wrong)
    assert scaling.norm == 0 and (scaling.std == 0).all()  # nothing half-written


def test_text_embeddings():
    raw = embeddings(4)
    assert Scaling(32, "std", "raw").text(raw) is raw
    assert torch.allclose(Scaling(32, "std", "unit").text(raw).square().mean(1), torch.ones(4), atol=1e-5)

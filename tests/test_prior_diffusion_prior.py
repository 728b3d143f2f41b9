"""The diffusion prior: training, sampling, guidance, analytic variance; against exact denoisers where there is one."""

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from prior import DiffusionPrior, PriorConfig, PriorNetworkConfig, PriorTask
from unclip.nn.transformer import TransformerConfig
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.types import Batch, Prior, Text, best_of

CONFIG = PriorConfig(
    network=PriorNetworkConfig(
        transformer=TransformerConfig(width=32, layers=2, heads=4), embed_dim=8, context=6, states_width=12
    ),
    sampling=Sampling(sampler="ddim", steps=10),
)


def make(**changes):
    torch.manual_seed(0)
    return DiffusionPrior(CONFIG.replace(**changes)).eval()


def make_text(b, strings=None):
    generator = torch.Generator().manual_seed(1)
    return Text(
        strings or [f"caption {i}" for i in range(b)],
        torch.zeros(b, 6, dtype=torch.int64),
        torch.randn(b, 8, generator=generator),
        torch.randn(b, 6, 12, generator=generator),
        torch.arange(6) < 2 + torch.arange(b)[:, None] % 4,
    )


def count_rows(prior):
    """The rows of every call of the network from here on."""
    rows = []
    prior.network.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    return rows


def test_keeps_the_contract():
    assert isinstance(make(), Prior)


def test_overfits_and_samples_what_it_learnt():
    torch.manual_seed(0)
    prior, text = make(scaling="sqrt_d", text_drop=0.0), make_text(6)
    raw = 3 * nn.functional.normalize(torch.randn(6, 8), dim=-1)
    prior.fit(raw)
    assert prior.scaling.norm == pytest.approx(3)
    optimizer = torch.optim.Adam(prior.parameters(), lr=2e-3)
    task = PriorTask(prior.train())
    batch = Batch(keys=[str(i) for i in range(24)], image_embed=raw.repeat_interleave(4, 0), text=text.repeat(4))
    history = []
    for step in range(200):
        loss = task(batch, Noise.of(step, range(24))).total.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert sum(history[-20:]) / 20 < history[0] / 4
    prior.eval()
    for sampling in (None, Sampling(sampler="ddpm", steps=20), Sampling(sampler="dpmpp_2m", steps=10, guidance=1.5)):
        drawn = prior.sample(text, noise=Noise.of(0, range(6)), n=2, sampling=sampling)
        assert drawn.shape == (6, 2, 8)
        assert torch.allclose(drawn.norm(dim=-1), torch.full((6, 2), 3.0), atol=1e-4)
        nearest = torch.cdist(drawn.flatten(0, 1), raw).argmin(1)
        assert (nearest == torch.arange(6).repeat_interleave(2)).float().mean() > 0.9
    assert best_of(drawn, text.embed).shape == (6, 8)


def test_every_parameter_learns():
    prior = make()
    prior.loss(torch.randn(4, 8), make_text(4), noise=Noise.of(0, range(4))).total.sum().backward()
    still = [name for name, p in prior.named_parameters() if p.grad is None]
    assert not still


def test_loss_drops_captions_by_the_stream():
    text, raw, noise = make_text(64), torch.randn(64, 8), Noise.of(3, range(64))
    never, always, some = make(text_drop=0.0), make(text_drop=1.0), make(text_drop=0.1)
    kept, dropped = (p.loss(raw, text, noise=noise).total for p in (never, always))
    mixed = some.loss(raw, text, noise=noise).total
    is_null = torch.isclose(mixed, dropped) & ~torch.isclose(mixed, kept)
    assert 1 <= is_null.sum() <= 16
    assert (torch.isclose(mixed, kept) | is_null).all()
    blank = never.loss(raw, text._replace(strings=[""] * 64), noise=noise).total
    assert torch.allclose(blank, dropped)  # a blank caption is the null
    # A sample's loss does not depend on its neighbours.
    part = some.loss(raw[10:20], text.rows(slice(10, 20)), noise=noise[10:20])
    assert torch.allclose(part.total, mixed[10:20], atol=1e-5)


def test_min_snr_weights():
    text, raw, noise = make_text(8), torch.randn(8, 8), Noise.of(0, range(8))
    plain, weighted = (make(weighting=w).loss(raw, text, noise=noise) for w in ("none", "min_snr"))
    snr = make().schedule.snr(plain.t).clamp(max=5).float()
    assert torch.allclose(weighted.total, plain.total * snr, rtol=1e-4)


def test_guidance_costs_one_pass_and_changes_the_sample():
    prior, text, noise = make(), make_text(3), Noise.of(0, range(3))
    rows = count_rows(prior)
    plain = prior.sample(text, noise=noise)
    assert rows == [3] * 10
    rows.clear()
    guided = prior.sample(text, noise=noise, sampling=prior.config.sampling.replace(guidance=3.0))
    assert rows == [6] * 10
    assert not torch.allclose(plain, guided, atol=1e-3)
    rows.clear()
    prior.sample(text, noise=noise, n=4, sampling=prior.config.sampling.replace(guidance=3.0, interval=(0, 500)))
    assert set(rows) == {12, 24} and len(rows) == 10
    # Guidance 0 is the null alone, that is, a blank caption.
    null = prior.sample(text, noise=noise, sampling=prior.config.sampling.replace(guidance=0.0))
    blank = prior.sample(text._replace(strings=["", "", ""]), noise=noise)
    assert torch.allclose(null, blank, atol=1e-5)


def test_prefix_is_computed_once_per_caption():
    prior, text = make(), make_text(3)
    tokens = []
    prior.network.transformer.register_forward_hook(lambda m, args, out: tokens.append(out[0].shape[:2]))
    sampling = prior.config.sampling.replace(guidance=2.0)
    prior.sample(text, noise=Noise.of(0, range(3)), n=2, sampling=sampling)
    longest = int(text.mask.sum(1).max())
    assert tokens == [(4, longest + 1)] + [(12, 3)] * 10  # three captions and one null; then three tokens per row


def test_same_seed_same_sample_whatever_the_batch():
    prior, text = make(), make_text(5)
    sampling = Sampling(sampler="ddpm", steps=8, guidance=2.0)
    whole = prior.sample(text, noise=Noise.of(7, range(5)), n=3, sampling=sampling)
    assert torch.equal(whole, prior.sample(text, noise=Noise.of(7, range(5)), n=3, sampling=sampling))
    alone = prior.sample(text.rows(slice(2, 3)), noise=Noise.of(7, 2), n=3, sampling=sampling)
    assert torch.allclose(alone, whole[2:3], atol=1e-4)
    fewer = prior.sample(text, noise=Noise.of(7, range(5)), n=1, sampling=sampling)
    assert torch.allclose(fewer, whole[:, :1], atol=1e-4)
    other = prior.sample(text, noise=Noise.of(8, range(5)), n=3, sampling=sampling)
    assert not torch.allclose(other, whole, atol=1e-2)
    assert not torch.allclose(whole[:, 0], whole[:, 1], atol=1e-2)


class Gaussian(nn.Module):
    """The exact E[x0 | x_t] of x0 ~ N(0, s^2)."""

    def __init__(self, prior, s):
        super().__init__()
        self.schedule, self.s = prior.schedule, s
        self.unused = nn.Parameter(torch.zeros(()))  # a part knows its device by its parameters
        self.prompt, self.encode = prior.network.prompt, prior.network.encode

    def forward(self, x_t, t, cond):
        alpha, sigma = self.schedule.at(t, x_t)
        return alpha * self.s**2 / (alpha**2 * self.s**2 + sigma**2) * x_t


def test_analytic_variance_of_a_gaussian():
    prior, n = make(embedding="raw"), 4000
    raw = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    prior.fit(raw)
    x0 = prior.scaling.scale(raw)
    s = float(x0.square().mean().sqrt())
    prior.network = Gaussian(prior, s)  # type: ignore[assignment]
    text, noise = make_text(n), Noise.of(0, range(n))
    prior.measure_variance(raw, text, 20, noise, batch=1500)
    visited = [t for t in prior.timesteps(Sampling(steps=20)) if t > 0]
    schedule = prior.schedule
    var_t = schedule.sigma[visited] ** 2
    expected = s**2 * var_t / (schedule.alpha[visited] ** 2 * s**2 + var_t)
    inner = schedule.alpha[visited] > 0.3  # nearer to pure noise, sampling noise grows until the bound takes over
    assert torch.allclose(prior.x0_variance[visited].double()[inner], expected[inner], rtol=0.06)
    assert (prior.x0_variance[visited] <= prior.x0_bound).all()
    assert prior.x0_bound == pytest.approx(s**2, rel=1e-5)
    assert prior.x0_variance.isnan().sum() == schedule.T + 1 - 20
    # With the variance that is right for this data, few steps still give the right spread; the small one falls short.
    spread = {}
    for variance in ("analytic", "small", "large"):
        drawn = prior.sample(text, noise=noise, sampling=Sampling(sampler="ddpm", steps=20, variance=variance))
        spread[variance] = float(prior.scaling.scale(drawn[:, 0]).std())
    assert spread["analytic"] == pytest.approx(s, rel=0.02)
    assert spread["small"] < 0.97 * s < spread["analytic"]


def test_analytic_variance_must_be_measured():
    prior, text = make(), make_text(2)
    analytic = Sampling(sampler="ddpm", steps=5, variance="analytic")
    with pytest.raises(ValueError, match="measure_variance"):
        prior.sample(text, noise=Noise.of(0, range(2)), sampling=analytic)
    prior.measure_variance(torch.randn(2, 8), text, 5, Noise.of(0, range(2)))
    prior.sample(text, noise=Noise.of(0, range(2)), sampling=analytic)
    with pytest.raises(ValueError, match="of the 7 timesteps"):
        prior.sample(text, noise=Noise.of(0, range(2)), sampling=analytic.replace(steps=7))


def test_state_survives_safetensors_and_half():
    prior, text = make(scaling="statistics"), make_text(4)
    raw = torch.randn(50, 8)
    prior.fit(raw)
    prior.measure_variance(raw[:4], text, 5, Noise.of(0, range(4)))
    copy = DiffusionPrior(prior.config).eval()
    copy.load_state_dict(load(save(prior.state_dict())))
    sampling, noise = Sampling(sampler="ddpm", steps=5, variance="analytic"), Noise.of(0, range(4))
    assert torch.equal(copy.x0_variance.isnan(), prior.x0_variance.isnan())
    expected = prior.sample(text, noise=noise, sampling=sampling)
    assert torch.equal(copy.sample(text, noise=noise, sampling=sampling), expected)
    half = copy.bfloat16().sample(text, noise=noise, sampling=sampling)
    assert half.dtype == torch.float32 and torch.cosine_similarity(half, expected, dim=-1).min() > 0.9


def test_missing_statistics_are_refused():
    prior = make(scaling="statistics")
    with pytest.raises(ValueError, match="fit"):
        prior.loss(torch.randn(2, 8), make_text(2), noise=Noise.of(0, range(2)))
    with pytest.raises(ValueError, match="fit"):
        prior.sample(make_text(2), noise=Noise.of(0, range(2)))


@torch.no_grad()
def test_clamp_bounds_the_prediction():
    prior, text = make(clamp=0.3), make_text(2)
    x = torch.randn(2, 8)
    prediction = prior.denoise(text, Sampling(guidance=3.0))(x, torch.tensor([700, 700]))
    assert prediction.x0.abs().max() == pytest.approx(0.3)
    alpha, sigma = prior.schedule.at(torch.tensor([700, 700]), x)
    assert torch.allclose(alpha * prediction.x0 + sigma * prediction.eps, x, atol=1e-5)


def test_empty_caption_as_null():
    prior = make(network=CONFIG.network.replace(null="empty"))
    empty = make_text(1, strings=[""])
    prior.set_null(empty)
    copy = DiffusionPrior(prior.config).eval()
    copy.load_state_dict(load(save(prior.state_dict())))
    sampling, noise = prior.config.sampling.replace(guidance=0.0), Noise.of(0, 0)
    null = copy.sample(make_text(3).rows(slice(2, 3)), noise=noise, sampling=sampling)
    as_caption = prior.sample(empty._replace(strings=["said"]), noise=noise)
    assert torch.allclose(null, as_caption, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"text_drop": 1.5},
        {"clamp": 0.0},
        {"sampling": Sampling(sampler="ddpm", variance="learned")},
        {"sampling": Sampling(threshold="static")},
        {"sampling": Sampling(steps=1001)},
    ],
)
def test_bad_configs_are_refused(wrong):
    with pytest.raises(ValueError):
        CONFIG.replace(**wrong)
    assert PriorConfig.from_json(CONFIG.to_json()) == CONFIG


def test_bad_input_is_refused():
    prior, text = make(), make_text(2)
    with pytest.raises(ValueError, match="another CLIP"):
        prior.loss(torch.randn(2, 9), text, noise=Noise.of(0, range(2)))
    with pytest.raises(ValueError, match="2 captions need a noise stream each, got 3"):
        prior.sample(text, noise=Noise.of(0, range(3)))
    with pytest.raises(ValueError, match="3 embeddings need a noise stream each, got 2"):
        prior.measure_variance(torch.randn(3, 8), text, 5, Noise.of(0, range(2)))

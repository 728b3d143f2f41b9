import math

import pytest
import torch
from oracles import gaussian

from unclip.diffusion import variance as V
from unclip.diffusion.denoiser import Denoiser, absolute_error, loss_weight
from unclip.diffusion.schedule import NoiseSchedule, spaced
from unclip.randomness import Noise
from unclip.types import Prediction

SCHEDULE = NoiseSchedule.cosine()
T = torch.tensor([1, 250, 700, 990])
NOTHING = Prediction(torch.zeros(1), torch.zeros(1))  # fixed variances do not read it


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(4, 3, 2, 2, generator=generator) for _ in range(2))
    alpha, sigma = SCHEDULE.at(T, x0)
    return x0, eps, alpha, sigma, alpha * x0 + sigma * eps


@pytest.mark.parametrize("predicts", ["x0", "eps", "v"])
def test_target_and_prediction_undo_each_other(case, predicts):
    x0, eps, alpha, sigma, x_t = case
    target = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[predicts]
    denoiser = Denoiser(lambda x, t, cond: target, SCHEDULE, predicts)
    out = denoiser(x_t, T)
    assert torch.allclose(out.x0, x0, atol=2e-3) and torch.allclose(out.eps, eps, atol=2e-3)
    assert float(denoiser.loss(x0, T, eps).total.max()) < 1e-9


@pytest.mark.parametrize("predicts", ["x0", "eps", "v"])
def test_min_snr_weighs_x0_errors_alike_whatever_is_predicted(case, predicts):
    # an error d in x0 is an error of d * alpha / sigma in eps and of d / sigma in v (Salimans & Ho 2022)
    snr = SCHEDULE.snr(T)
    factor = {"x0": 1.0, "eps": snr, "v": snr + 1}[predicts]
    assert torch.allclose(loss_weight(SCHEDULE, T, predicts, "min_snr").double() * factor, snr.clamp(max=5.0), rtol=1e-5)
    assert torch.allclose(loss_weight(SCHEDULE, T, predicts, "clamped_snr").double() * factor, snr.clamp(1.0, 5.0), rtol=1e-5)


def test_learned_variance_is_finite_for_any_output_at_every_step():
    outputs = torch.tensor([-1e30, -5.0, -1.0, 0.0, 1.0, 5.0, 1e30, math.inf, -math.inf])
    for steps in (1000, 250, 25, 2):
        times = spaced(1000, steps)
        for t, s in zip(times, times[1:]):
            if s > 0:
                var = V.learned(SCHEDULE, t, s, Prediction(outputs, outputs, outputs))
                assert torch.isfinite(var).all() and (var > 0).all(), (t, s)


def test_learned_variance_runs_from_small_to_large():
    mix = torch.tensor([-1.0, 1.0])
    low, high = V.learned(SCHEDULE, 500, 480, Prediction(mix, mix, mix)).tolist()
    assert low == pytest.approx(V.small(SCHEDULE, 500, 480, NOTHING), rel=1e-5)
    assert high == pytest.approx(V.large(SCHEDULE, 500, 480, NOTHING), rel=1e-5)


def test_analytic_variance_is_the_posterior_of_a_gaussian():
    std = 0.6
    gamma = SCHEDULE.sigma**2 / (SCHEDULE.alpha**2 * std**2 + SCHEDULE.sigma**2)
    for t, s in [(1000, 900), (500, 300), (20, 10)]:
        alpha_s, sigma_s = float(SCHEDULE.alpha[s]), float(SCHEDULE.sigma[s])
        a, post = float(SCHEDULE.alpha[t]) / alpha_s, SCHEDULE.posterior(t, s)
        marginal = alpha_s**2 * std**2 + sigma_s**2  # Var x_s; x_t = a x_s + noise of var_ts
        exact = marginal - (a * marginal) ** 2 / (a**2 * marginal + post.var_ts)
        assert V.Analytic(gamma, 10.0)(SCHEDULE, t, s, NOTHING) == pytest.approx(exact, rel=1e-6)
    # the bound caps what x0 can be uncertain by
    assert V.Analytic(0 * gamma, 0.0)(SCHEDULE, 500, 300, NOTHING) == V.small(SCHEDULE, 500, 300, NOTHING)


def test_vlb_has_the_closed_form_kl_and_its_minimum_at_the_true_posterior(case):
    x0, _, _, _, x_t = case
    times = T.clamp(min=2)
    right = V.vlb_terms(SCHEDULE, x0, x_t, times, Prediction(x0, x0, torch.full_like(x0, -1.0)))
    assert torch.allclose(right, torch.zeros(4), atol=1e-5)
    for mix in (0.0, 1.0):
        assert (V.vlb_terms(SCHEDULE, x0, x_t, times, Prediction(x0, x0, torch.full_like(x0, mix))) > right - 1e-6).all()
    wrong = V.vlb_terms(SCHEDULE, x0, x_t, times, Prediction(x0 + 0.3, x0, torch.full_like(x0, -1.0)))
    for i, t in enumerate(times.tolist()):
        post = SCHEDULE.posterior(t, t - 1)
        kl = (0.3 * post.from_x0) ** 2 / (2 * post.var) / math.log(2)
        assert float(wrong[i]) == pytest.approx(kl, rel=1e-3, abs=1e-6)


def test_first_step_is_a_likelihood_of_pixels():
    x = torch.tensor([-1.0, -0.2, 0.5, 1.0])
    # all bins together carry all the mass
    grid = torch.arange(256) / 127.5 - 1
    mass = torch.exp(-V.discretised_nll(grid, torch.tensor(0.13), torch.tensor(math.log(0.04))))
    assert float(mass.sum()) == pytest.approx(1, abs=1e-4)
    assert V.gaussian_nll(x, x, torch.tensor(0.0)) == pytest.approx(0.5 * math.log(2 * math.pi))


def test_hybrid_loss_teaches_the_variance_without_touching_the_mean():
    generator = torch.Generator().manual_seed(2)
    x0, eps = (torch.randn(4, 3, 2, 2, generator=generator).clamp(-1, 1) for _ in range(2))
    mean, mix = (torch.zeros(4, 3, 2, 2, requires_grad=True) for _ in range(2))
    denoiser = Denoiser(lambda x, t, cond: torch.cat([mean, mix], 1), SCHEDULE, "eps", learned_variance=True)
    for_mean, for_mix = torch.autograd.grad(denoiser.loss(x0, T, eps).total.sum(), [mean, mix])
    assert for_mix.abs().sum() > 0
    torch.testing.assert_close(for_mean, 2 * (mean - eps).detach() / 12)  # of the squared error alone


def test_oracle_loss_is_the_posterior_variance():
    # E||x0 - E[x0|x_t]||^2 of a Gaussian is its posterior variance
    std = torch.tensor(0.5)
    oracle = gaussian(SCHEDULE, torch.tensor(0.0), std)
    denoiser = Denoiser(lambda x, t, cond: oracle(x, t).x0, SCHEDULE, "x0")
    generator = torch.Generator().manual_seed(1)
    x0, eps = 0.5 * torch.randn(3, 40000, generator=generator), torch.randn(3, 40000, generator=generator)
    times = torch.tensor([50, 500, 900])
    alpha, sigma = (v.flatten() for v in SCHEDULE.at(times, x0))
    expected = std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
    assert denoiser.loss(x0, times, eps).total.tolist() == pytest.approx(expected.tolist(), rel=0.05)


def test_the_absolute_error_stands_under_the_root_of_the_weight():
    schedule, noise = NoiseSchedule.cosine(), Noise.of(0, range(4))
    x0, eps, guess = (noise.at(k).normal((3, 4)) for k in ("x0", "eps", "guess"))
    t = torch.tensor([1, 300, 600, 1000])
    denoiser = Denoiser(lambda x_t, t, cond: guess, schedule, "x0")
    losses = denoiser.loss(x0, t, eps, weighting="clamped_snr", norm="l1")
    weight = schedule.snr(t).clamp(1, 5).sqrt().float()
    assert torch.allclose(losses.total, (guess - x0).abs().mean((1, 2)) * weight)
    assert torch.allclose(losses.terms["mse"], (guess - x0).square().mean((1, 2)))
    assert torch.allclose(denoiser.loss(x0, t, eps, weighting="clamped_snr").total, losses.terms["mse"] * weight**2)


def test_the_gradient_of_an_error_counts_where_it_changes():
    flat, step = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, 1, 4, 4)
    step[..., 2:] = 1
    assert absolute_error(flat, gradient=True).tolist() == absolute_error(flat, gradient=False).tolist() == [0.5]
    assert absolute_error(step, gradient=False).tolist() == [0.5]
    assert torch.allclose(absolute_error(step, gradient=True), torch.tensor([0.5 + 1 / 3]))  # one column of three differences

import math

import pytest
import torch
from oracles import finite, gaussian

from unclip.diffusion.guidance import gradient_guidance, keep_known
from unclip.diffusion.samplers import ddim, ddim_invert, ddpm, dpmpp_2m, run
from unclip.diffusion.schedule import NoiseSchedule, resampled, spaced
from unclip.diffusion.variance import Analytic
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.types import Prediction

N = 4000
MEAN, STD = torch.tensor([0.3, -0.5, 0.0]), torch.tensor([0.2, 0.6, 1.0])


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule.cosine()


@pytest.fixture(scope="module")
def start():
    return Noise.of(0).normal((N, 3))[0].double()


class Shared(Noise):
    """One stream for a whole batch: thousands of rows need no stream each."""

    def __init__(self, seed):
        super().__init__([str(seed)])

    def __len__(self):
        return N

    def normal(self, shape=()):
        return super().normal((N, *shape))[0].double()


def analytic(schedule, std):
    # exact E||eps||^2 / d of the Gaussian oracle
    sigma2, alpha2 = schedule.sigma**2, schedule.alpha**2
    return Analytic(sigma2 / (alpha2 * std**2 + sigma2), bound=1e9)


@pytest.mark.parametrize("name", ["ddpm_small", "ddpm_large", "ddim", "ddim_eta", "dpmpp_2m"])
def test_moments_of_a_gaussian(schedule, start, name):
    denoise = gaussian(schedule, MEAN.double(), STD.double())
    steps = spaced(1000, 250)
    x = {
        "ddpm_small": lambda: ddpm(denoise, start, schedule, steps, noise=Shared(1)),
        "ddpm_large": lambda: ddpm(denoise, start, schedule, steps, noise=Shared(1), variance="large"),
        "ddim": lambda: ddim(denoise, start, schedule, steps),
        "ddim_eta": lambda: ddim(denoise, start, schedule, steps, eta=0.7, noise=Shared(1)),
        "dpmpp_2m": lambda: dpmpp_2m(denoise, start, schedule, steps),
    }[name]()
    assert x.mean(0) == pytest.approx(MEAN, abs=5 / math.sqrt(N))
    assert x.std(0) == pytest.approx(STD, rel=0.06)


@pytest.mark.parametrize("std", [0.2, 0.6, 1.0])
def test_analytic_variance_is_exact_on_a_gaussian_at_ten_steps(schedule, start, std):
    denoise = gaussian(schedule, MEAN.double(), torch.full((3,), std, dtype=torch.float64))
    variance = analytic(schedule, std)
    # to the last timestep before 0: the step to clean data returns the mean and so loses its own small share
    x = ddpm(denoise, start, schedule, spaced(1000, 10)[:-1], noise=Shared(1), variance=variance)
    assert x.std(0) == pytest.approx(torch.full((3,), std), rel=0.05)
    small = ddpm(denoise, start, schedule, spaced(1000, 10)[:-1], noise=Shared(1), variance="small")
    assert (small.std(0) < 0.95 * x.std(0)).all()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_finite_data_is_drawn_from_evenly(schedule, start, sampler):
    points = torch.tensor([[1.0, 0, 0], [-1, 0.5, 0], [0, -1, 1], [0, 1, -1]], dtype=torch.float64)
    x = run(finite(schedule, points), start, schedule, Sampling(sampler=sampler, steps=100), noise=Shared(2))
    distance = torch.cdist(x, points)
    assert distance.min(1).values.quantile(0.95) < 0.05
    # ODE samplers carry the start's own fluctuation, about 1 / sqrt(N)
    assert torch.bincount(distance.argmin(1), minlength=4) / N == pytest.approx(torch.full((4,), 0.25), abs=0.035)


@pytest.mark.parametrize("steps", ["5,5,5,5,5", "fast27"])
def test_unequal_steps_do_not_blow_up_a_network_s_errors(schedule, steps):
    exact = gaussian(schedule, MEAN.double(), STD.double())

    def rough(x, t):  # another error at every timestep, as a network has it
        prediction = exact(x, t)
        x0 = prediction.x0 + 0.05 * math.cos(37.0 * float(t[0]))
        alpha, sigma = schedule.at(t, x)
        return prediction._replace(x0=x0, eps=(x - alpha * x0) / sigma)

    x = Noise.of(9, range(50)).normal((3,)).double()
    truth, found = (dpmpp_2m(denoise, x, schedule, spaced(1000, n)) for denoise, n in ((exact, 200), (rough, steps)))
    assert float((found - truth).square().mean().sqrt()) < 0.15


def test_ddim_with_eta_one_is_ddpm(schedule):
    denoise = gaussian(schedule, MEAN.double(), STD.double())
    x, noise = Noise.of(3, range(5)).normal((3,)).double(), Noise.of(4, range(5))
    a = ddim(denoise, x, schedule, spaced(1000, 50), eta=1.0, noise=noise.at("steps"))
    b = ddpm(denoise, x, schedule, spaced(1000, 50), noise=noise.at("steps"))
    assert torch.allclose(a, b, atol=1e-10)


def test_refined_inversion_is_undone_by_sampling(schedule):
    denoise = gaussian(schedule, MEAN.double(), STD.double())
    x = MEAN + STD * Noise.of(5, range(50)).normal((3,)).double()

    def error(steps, refine):
        times = spaced(1000, steps)[1:-1]
        x_t, t = ddim_invert(denoise, x, schedule, times, refine=refine)
        assert t == times[0]
        return float((ddim(denoise, x_t, schedule, times) - x).abs().max())

    assert error(250, 3) < 1e-3
    assert 1.7 < error(125, 0) / error(250, 0) < 2.4  # first order
    assert error(250, 3) < error(250, 0) / 50


def test_dpmpp_2m_converges_at_second_order(schedule):
    denoise = gaussian(schedule, MEAN.double(), STD.double())
    x = Noise.of(6, range(20)).normal((3,)).double()
    # even steps in lambda between two inner times; the exact flow of a Gaussian rescales deviations
    lam = torch.log(schedule.alpha[1:] / schedule.sigma[1:])

    def times(n):
        return [1 + int((lam - v).abs().argmin()) for v in torch.linspace(float(lam[899]), float(lam[99]), n + 1)]

    def exact(t, s):
        deviation = torch.sqrt((schedule.alpha[s] * STD) ** 2 + schedule.sigma[s] ** 2)
        deviation /= torch.sqrt((schedule.alpha[t] * STD) ** 2 + schedule.sigma[t] ** 2)
        return schedule.alpha[s] * MEAN + deviation * (x - schedule.alpha[t] * MEAN)

    def error(sampler, n):
        steps = times(n)
        return float((sampler(denoise, x, schedule, steps) - exact(steps[0], steps[-1])).abs().max())

    rates = [math.log2(error(dpmpp_2m, n) / error(dpmpp_2m, 2 * n)) for n in (20, 40)]
    assert all(1.7 < rate < 2.6 for rate in rates), rates
    assert 0.7 < math.log2(error(ddim, 20) / error(ddim, 40)) < 1.4


def test_lists_may_stop_short_and_samples_live_there(schedule, start):
    denoise = gaussian(schedule, MEAN.double(), STD.double())
    x = ddim(denoise, start, schedule, spaced(1000, 250)[:126])
    s = spaced(1000, 250)[125]
    expected = torch.sqrt((schedule.alpha[s] * STD) ** 2 + schedule.sigma[s] ** 2)
    assert x.std(0) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_gradient_guidance_draws_from_the_product(schedule, start, sampler):
    # prior N(0, 1) times exp(-(x0 - 2)^2 / (2 * 0.5^2)): the guidance function is the exact log p(y | x_t)
    one = torch.ones(3, dtype=torch.float64)

    def log_likelihood(x, t):
        alpha, sigma = schedule.at(t, x)
        return (-((alpha * x - 2) ** 2) / (2 * (sigma**2 + 0.25))).sum(-1)  # x0 | x_t ~ N(alpha x, sigma^2)

    guided = gradient_guidance(gaussian(schedule, 0 * one, one), log_likelihood, 1.0)
    x = run(guided, start, schedule, Sampling(sampler=sampler, steps=250), noise=Shared(7))
    assert float(x.mean()) == pytest.approx(1.6, abs=0.04)
    assert float(x.std()) == pytest.approx(math.sqrt(0.2), rel=0.06)


def test_the_same_row_is_drawn_whatever_the_batch(schedule):
    denoise = gaussian(schedule, MEAN, STD)

    def draw(rows):
        noise = Noise.of(8, rows)
        return run(denoise, noise.at("x_T").normal((3,)), schedule, Sampling(sampler="ddpm", steps=20), noise=noise.at("steps"))

    assert torch.equal(draw([0, 1, 2, 3])[2], draw([2])[0])


def test_bad_requests(schedule):
    denoise, x = gaussian(schedule, MEAN, STD), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="eta"):
        ddim(denoise, x, schedule, (10, 0), eta=0.5)
    with pytest.raises(ValueError, match="two timesteps"):
        ddim_invert(denoise, x, schedule, (10, 0))
    with pytest.raises(ValueError, match="analytic"):
        run(denoise, x, schedule, Sampling(sampler="ddpm", variance="analytic"), noise=Noise.of(0))
    two = torch.zeros(2, 3)
    for draw in (
        lambda noise: ddpm(denoise, two, schedule, (10, 5, 0), noise=noise),
        lambda noise: ddim(denoise, two, schedule, (10, 5, 0), eta=1.0, noise=noise),
    ):
        with pytest.raises(ValueError, match="2 rows need a noise stream each, got 1"):  # both would get the same noise
            draw(Noise.of(0))
        draw(Noise.of(0, range(2)))
    with pytest.raises(ValueError, match="not measured"):
        unmeasured = Analytic(torch.full((1001,), float("nan")))
        ddpm(denoise, x, schedule, (10, 5, 0), noise=Noise.of(0), variance=unmeasured)


# RePaint


def test_resampled_goes_back_as_repaint_does():
    assert resampled((5, 4, 3, 2, 1, 0), 2, 2) == (5, 4, 3, 5, 4, 3, 2, 1, 3, 2, 1, 0)
    assert resampled((900, 500, 100, 20), 1, 3) == (900, 500, 900, 500, 900, 500, 100, 500, 100, 500, 100, 20)
    for n, jump, times in ((25, 5, 4), (250, 10, 10), (7, 3, 2), (4, 9, 3), (5, 2, 1)):
        way = resampled(tuple(range(n, -1, -1)), jump, times)
        down = [t for t, s in zip(way, way[1:]) if s < t]
        climbs = [(t, s) for t, s in zip(way, way[1:]) if s > t]
        detours = len(range(0, n - jump, jump)) * (times - 1)  # the paper's: at 0, j, 2j, ... below n - j, counted from 0
        assert len(climbs) == detours and all(s - t == jump for t, s in climbs), (n, jump, times)
        assert len(down) == n + detours * jump and way[0] == n and way[-1] == 0 and max(way) == n
    assert len(resampled(tuple(range(25, -1, -1)), 5, 4)) - 1 - 12 == 85


def test_climbing_puts_the_noise_back_that_belongs_there(schedule, start):
    """With the exact denoiser every detour ends where it began, in distribution."""
    denoise = gaussian(schedule, MEAN.double(), STD.double())
    steps = spaced(1000, 250)
    x = ddpm(denoise, start, schedule, resampled(steps, 10, 2), noise=Shared(1))
    assert x.mean(0) == pytest.approx(MEAN, abs=5 / math.sqrt(N)) and x.std(0) == pytest.approx(STD, rel=0.06)
    up = ddpm(denoise, torch.zeros(N, 3).double(), schedule, (300, 700), noise=Shared(2))  # one climb: q(x_700 | x_300 = 0)
    a = schedule.alpha[700] / schedule.alpha[300]
    assert float(up.std()) == pytest.approx(float((schedule.sigma[700] ** 2 - a**2 * schedule.sigma[300] ** 2).sqrt()), rel=0.03)
    sampling = Sampling(sampler="ddpm", steps=steps, repaint=(10, 2))
    assert torch.equal(run(denoise, start, schedule, sampling, noise=Shared(1)), x)


def test_repaint_draws_what_known_pixels_tell_of_unknown_ones_more_surely(schedule):
    """Two pixels with correlation 0.9, one of them known: the other's mean is 0.9 times as large."""
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])

    def denoise(x, t):
        alpha, sigma = schedule.at(t, x)
        a, s = alpha.flatten()[0], sigma.flatten()[0]
        gain = torch.linalg.solve(a**2 * covariance + s**2 * torch.eye(2), a * covariance)
        x0 = x @ gain
        return Prediction(x0, (x - alpha * x0) / sigma)

    n, noise = 500, Noise.of(3, range(500))
    images, keep = torch.full((n, 3, 1, 2), 1.5), torch.tensor([True, False]).expand(n, 1, 1, 2)
    errors = []
    for repaint in (None, (2, 10)):
        sampling = Sampling(sampler="ddpm", steps=10, repaint=repaint)
        known = keep_known(denoise, schedule, images, keep)
        x = run(known, noise.at("x_T").normal((3, 1, 2)), schedule, sampling, noise=noise.at("steps"))
        assert torch.equal(x[..., 0], images[..., 0])
        errors.append(abs(float(x[..., 1].mean()) - 0.9 * 1.5))
    assert errors[1] < 0.7 * errors[0], errors


def test_settings_of_repaint():
    with pytest.raises(ValueError, match="at least 1"):
        Sampling(sampler="ddpm", repaint=(0, 4))
    with pytest.raises(ValueError, match="only the sampler 'ddpm'"):
        Sampling(sampler="ddim", repaint=(5, 4))

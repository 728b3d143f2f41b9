import math

import pytest
import torch
from oracles import finite, gaussian

from unclip.diffusion.guidance import gradient_guidance
from unclip.diffusion.samplers import ddim, ddim_invert, ddpm, dpmpp_2m, run
from unclip.diffusion.schedule import NoiseSchedule, spaced
from unclip.diffusion.variance import Analytic
from unclip.randomness import Noise
from unclip.sampling import Sampling

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

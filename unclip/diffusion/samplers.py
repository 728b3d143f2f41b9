"""Samplers: functions of a denoiser, a start, a schedule and the timesteps to visit.

None takes a condition, a guidance scale or a clipping range: those are bound into the denoiser (guidance.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from unclip.randomness import Noise, check_noise
from unclip.sampling import Sampling
from unclip.types import Denoise, Prediction

from .schedule import NoiseSchedule, resampled, spaced
from .variance import Variance, named_variance

# Evenly spread timesteps grow by no more than 5 from step to step, at the borders of sections by a hundred.
STEEPEST = 8.0


def ddpm(
    denoise: Denoise,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    *,
    noise: Noise,
    variance: Literal["small", "large", "learned"] | Variance = "small",
) -> Tensor:
    """Ancestral sampling: x_s ~ N(posterior mean at the predicted x0, variance) (DDPM, Alg. 2, for any stride).

    x is read as x_t at timesteps[0]; the result lives at timesteps[-1].  A step to 0 returns the mean.  Where the list climbs
    (`resampled`), noise is put on x again: x_s ~ q(x_s | x_t), s > t.
    """
    spread = named_variance(variance)
    for t, s in pairwise(timesteps):
        if s > t:
            a, var_st = float(schedule.alpha[s] / schedule.alpha[t]), schedule.posterior(s, t).var_ts
            x = a * x + var_st**0.5 * _normal(noise, x)
            continue
        prediction = denoise(x, _batch(t, x))
        post = schedule.posterior(t, s)
        mean = post.from_x_t * x + post.from_x0 * prediction.x0
        if s == 0:  # clean data has no variance: nothing is drawn, and a score has nothing to move
            return mean
        var = spread(schedule, t, s, prediction)
        if prediction.score is not None:
            mean = mean + var * prediction.score
        x = mean + var**0.5 * _normal(noise, x)
    return x


def ddim(
    denoise: Denoise,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
) -> Tensor:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c z with c = eta sqrt(var_post) (DDIM eq. 12)."""
    if eta > 0 and noise is None:
        raise ValueError(f"eta = {eta} draws noise in every step: pass noise=Noise.of(seed, ...), or eta=0")
    for t, s in pairwise(timesteps):
        prediction = _with_score(denoise(x, _batch(t, x)), x, schedule, t)
        alpha_s, sigma_s = float(schedule.alpha[s]), float(schedule.sigma[s])
        churn = eta * math.sqrt(schedule.posterior(t, s).var)
        x = alpha_s * prediction.x0 + math.sqrt(max(sigma_s**2 - churn**2, 0.0)) * prediction.eps
        if churn > 0 and noise is not None:
            x = x + churn * _normal(noise, x)
    return x


def ddim_invert(
    denoise: Denoise, x: Tensor, schedule: NoiseSchedule, timesteps: Sequence[int], *, refine: int = 0
) -> tuple[Tensor, int]:
    """Climb the DDIM ODE from a picture to noise: returns (x_t, t), from which `ddim` over the same list leads back.

    x is read as x_t at the first (smallest positive) listed t, and the climb ends at the largest (ADM App. F).  Plain
    inversion takes eps at the lower end of each step; `refine` fixed-point iterations take it at the upper end, where the
    sampler will, which makes the step its exact inverse.  A list is the same as for sampling; its 0 is ignored.
    """
    climb = sorted(t for t in timesteps if t > 0)
    if len(climb) < 2:
        raise ValueError(f"inversion needs at least two timesteps above 0; got {tuple(timesteps)}")
    for s, t in pairwise(climb):
        ratio = float(schedule.alpha[t] / schedule.alpha[s])
        slope = float(schedule.sigma[t]) - ratio * float(schedule.sigma[s])
        upper = ratio * x + slope * denoise(x, _batch(s, x)).eps
        for _ in range(refine):
            upper = ratio * x + slope * denoise(upper, _batch(t, upper)).eps
        x = upper
    return x, climb[-1]


def dpmpp_2m(denoise: Denoise, x: Tensor, schedule: NoiseSchedule, timesteps: Sequence[int]) -> Tensor:
    """DPM-Solver++(2M): second-order multistep in lambda = log(alpha / sigma), data prediction (Lu et al. 2022, Alg. 2).

    A step more than `STEEPEST` times as long as the one before is of first order: what a network says otherwise over a tiny step
    is mostly error, which extrapolation would multiply.
    """
    before: tuple[Tensor, float] | None = None  # x0 and step length of the step before
    for t, s in pairwise(timesteps):
        x0 = _with_score(denoise(x, _batch(t, x)), x, schedule, t).x0
        if s == 0:
            return x0  # lambda is infinite at clean data, where only the first-order step is defined
        alpha_s, sigma_s = float(schedule.alpha[s]), float(schedule.sigma[s])
        h = math.log(alpha_s / sigma_s) - math.log(float(schedule.alpha[t] / schedule.sigma[t]))
        slope = x0
        if before is not None and h <= STEEPEST * before[1]:
            last, h_last = before
            slope = x0 + (h / (2 * h_last)) * (x0 - last)
        x = sigma_s / float(schedule.sigma[t]) * x - alpha_s * math.expm1(-h) * slope
        before = (x0, h)
    return x


def run(
    denoise: Denoise,
    x: Tensor,
    schedule: NoiseSchedule,
    sampling: Sampling,
    *,
    noise: Noise,
    t: int | None = None,
    variance: Variance | None = None,
) -> Tensor:
    """Sample as a `Sampling` value says.  `t`: x lives there and earlier timesteps are left out; `variance` serves "analytic"."""
    timesteps = spaced(schedule.T, sampling.steps)
    if t is not None:
        timesteps = (t, *(s for s in timesteps if s < t))
        if len(timesteps) < 2:
            raise ValueError(f"nothing to sample: x lives at t = {t} and no listed timestep is below it")
    if sampling.repaint is not None:
        timesteps = resampled(timesteps, *sampling.repaint)
    if sampling.sampler == "ddim":
        return ddim(denoise, x, schedule, timesteps, eta=sampling.eta, noise=noise)
    if sampling.sampler == "dpmpp_2m":
        return dpmpp_2m(denoise, x, schedule, timesteps)
    if sampling.variance == "analytic":
        if variance is None:
            raise ValueError("this component has measured no analytic variance: measure it, or sample with variance 'small'")
        return ddpm(denoise, x, schedule, timesteps, noise=noise, variance=variance)
    return ddpm(denoise, x, schedule, timesteps, noise=noise, variance=sampling.variance)


def _batch(t: int, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.int64)


def _normal(noise: Noise, x: Tensor) -> Tensor:
    check_noise(noise, len(x), "rows")
    return noise.normal(x.shape[1:]).to(x.device, x.dtype)


def _with_score(prediction: Prediction, x: Tensor, schedule: NoiseSchedule, t: int) -> Prediction:
    """Deterministic samplers take sigma_t * score off eps and follow with x0 (ADM, Alg. 2)."""
    if prediction.score is None:
        return prediction
    alpha, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
    eps = prediction.eps - sigma * prediction.score
    return prediction._replace(x0=(x - sigma * eps) / alpha, eps=eps)

"""Variances of the reverse step q(x_s | x_t): fixed, learned, analytic; and the variational bound of a learned one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from unclip.types import Prediction

from .schedule import NoiseSchedule

Variance = Callable[[NoiseSchedule, int, int, Prediction], "Tensor | float"]  # (schedule, t, s, prediction), 1 <= s < t


def small(schedule: NoiseSchedule, t: int, s: int, prediction: Prediction) -> float:
    """The posterior's variance given x0: right for data that is a point."""
    return schedule.posterior(t, s).var


def large(schedule: NoiseSchedule, t: int, s: int, prediction: Prediction) -> float:
    """The forward step's variance: right for data of unit variance."""
    return schedule.posterior(t, s).var_ts


def learned(schedule: NoiseSchedule, t: int, s: int, prediction: Prediction) -> Tensor:
    """log var = v log var_ts + (1 - v) log var_post with v = (o + 1) / 2 from the network (Improved DDPM, eq. 15)."""
    if prediction.variance_mix is None:
        raise ValueError("variance 'learned' needs a network that predicts it; use 'small', 'large' or 'analytic'")
    post = schedule.posterior(t, s)
    return _mix(prediction.variance_mix, math.log(post.var), math.log(post.var_ts)).exp()


class Analytic:
    """Analytic-DPM (Bao et al. 2022): the posterior's variance plus what x0 itself is uncertain by, on average.

    `gamma` (T + 1): E||eps_theta(x_t, t)||^2 / d at the timesteps measured, NaN elsewhere.  `bound`: the mean square of the
    data, which the uncertainty of x0 cannot exceed (1 for pixels in [-1, 1]).
    """

    def __init__(self, gamma: Tensor, bound: float = 1.0):
        self.gamma, self.bound = gamma.double().cpu(), bound

    def __call__(self, schedule: NoiseSchedule, t: int, s: int, prediction: Prediction) -> float:
        gamma = float(self.gamma[t])
        if math.isnan(gamma):
            measured = torch.nonzero(~self.gamma.isnan()).flatten().tolist()
            raise ValueError(
                f"analytic variance was not measured at timestep {t} (measured: {len(measured)} timesteps); "
                "measure it for these steps or sample with variance 'small'"
            )
        post = schedule.posterior(t, s)
        x0_var = float(schedule.sigma[t] ** 2 / schedule.alpha[t] ** 2) * (1 - gamma)
        return post.var + post.from_x0**2 * min(max(x0_var, 0.0), self.bound)


FIXED: dict[str, Variance] = {"small": small, "large": large, "learned": learned}


def named_variance(variance: Literal["small", "large", "learned"] | Variance) -> Variance:
    """A variance by its word, or the function itself."""
    if callable(variance):
        return variance
    if variance not in FIXED:
        raise ValueError(f"unknown variance {variance!r}; choose one of {', '.join(FIXED)} or pass an Analytic")
    return FIXED[variance]


def _mix(output: Tensor, log_small: float | Tensor, log_large: float | Tensor) -> Tensor:
    # Networks stay near [-1, 1]; the clamp only keeps a wild output from overflowing the exponential.
    v = (output.float().clamp(-3, 3) + 1) / 2
    return v * log_large + (1 - v) * log_small


def vlb_terms(
    schedule: NoiseSchedule, x0: Tensor, x_t: Tensor, t: Tensor, prediction: Prediction, discretised: bool = True
) -> Tensor:
    """One term of the variational bound per sample (b), in bits per dimension (DDPM eq. 5; s = t - 1).

    KL(q(x_s | x_t, x0) || p) for t > 1; at t = 1 the likelihood of x0, of its 8-bit bin when `discretised`.
    """
    assert prediction.variance_mix is not None
    rows = [_training_posterior(schedule, int(i)) for i in t]
    from_x_t, from_x0, log_small, log_large = (
        torch.tensor(column, dtype=torch.float64).reshape(-1, *[1] * (x0.ndim - 1)).to(x0.device, torch.float32)
        for column in zip(*rows)
    )
    log_var = _mix(prediction.variance_mix, log_small, log_large)
    true_mean = from_x_t * x_t + from_x0 * x0
    mean = from_x_t * x_t + from_x0 * prediction.x0
    kl = 0.5 * (log_var - log_small + torch.exp(log_small - log_var) + (true_mean - mean) ** 2 * torch.exp(-log_var) - 1)
    first = torch.as_tensor(t).to(x0.device).reshape(log_small.shape) == 1
    if first.any():
        nll = discretised_nll(x0, mean, log_var) if discretised else gaussian_nll(x0, mean, log_var)
        kl = torch.where(first, nll, kl)
    return kl.flatten(1).mean(1) / math.log(2)


def _training_posterior(schedule: NoiseSchedule, t: int) -> tuple[float, float, float, float]:
    post = schedule.posterior(t, t - 1)
    # At t = 1 the posterior is a point: its variance is replaced by that of t = 2.
    var = post.var if t > 1 else schedule.posterior(2, 1).var
    return post.from_x_t, post.from_x0, math.log(var), math.log(post.var_ts)


def gaussian_nll(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """-log N(x; mean, var) per element, in nats."""
    return 0.5 * (math.log(2 * math.pi) + log_var + (x - mean) ** 2 * torch.exp(-log_var))


def discretised_nll(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """-log of the mass that N(mean, var) puts on the 8-bit bin of x, per element; the outer bins are open (DDPM eq. 13)."""
    scale = torch.exp(-0.5 * log_var)
    upper = torch.special.ndtr((x - mean + 1 / 255) * scale)
    lower = torch.special.ndtr((x - mean - 1 / 255) * scale)
    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)
    return -torch.log((upper - lower).clamp(min=1e-12))

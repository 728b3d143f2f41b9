"""Noise schedules and step lists.

x_t = alpha_t x0 + sigma_t eps with alpha_t^2 + sigma_t^2 = 1.  Index 0 is clean data (alpha 1, sigma 0), T is nearly pure noise.
With clean data in the table one posterior q(x_s | x_t, x0), s < t, serves training, every sampler and every stride.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from unclip.config import Config, Steps
from unclip.sampling import FAST27, sections, strided

LINEAR, SCALED_LINEAR = (1e-4, 0.02), (0.00085, 0.012)  # first and last beta at T = 1000: DDPM's, latent diffusion's


class ScheduleConfig(Config, frozen=True, kw_only=True):
    name: Literal["cosine", "linear", "scaled_linear"] = "cosine"
    steps: Steps = 1000  # T
    start: float | None = None  # linear and scaled_linear: beta_1 at T = 1000, None = the published one
    end: float | None = None  # linear and scaled_linear: beta_T at T = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 2:
            raise ValueError(f"a schedule needs at least 2 steps, not {self.steps}")
        start, end = self.betas
        if not 0 < start <= end < 1:
            raise ValueError(f"betas run from start to end with 0 < start <= end < 1, not {start} to {end}")

    @property
    def betas(self) -> tuple[float, float]:
        """The first and the last at T = 1000: as given, else the published ones."""
        start, end = SCALED_LINEAR if self.name == "scaled_linear" else LINEAR
        return (start if self.start is None else self.start, end if self.end is None else self.end)

    def check_steps(self, name: str, steps: int | str | Sequence[int]) -> tuple[int, ...]:
        """The timesteps that these steps visit; ValueError, which begins with the name, where the schedule has no such."""
        try:
            return spaced(self.steps, steps)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def build(self) -> NoiseSchedule:
        if self.name == "cosine":
            return NoiseSchedule.cosine(self.steps)
        make = NoiseSchedule.linear if self.name == "linear" else NoiseSchedule.scaled_linear
        return make(self.steps, *self.betas)


class Posterior(NamedTuple):
    """q(x_s | x_t, x0) = N(from_x_t x_t + from_x0 x0, var), and var_ts of q(x_t | x_s).  Python floats."""

    from_x_t: float
    from_x0: float
    var: float
    var_ts: float


class NoiseSchedule:
    """Two float64 tables on the CPU, `alpha[0..T]` and `sigma[0..T]`."""

    def __init__(self, alpha: Tensor, sigma: Tensor):
        self.alpha, self.sigma = alpha.double().cpu(), sigma.double().cpu()
        self.T = len(alpha) - 1
        if self.alpha[0] != 1 or self.sigma[0] != 0:
            raise ValueError("index 0 of a schedule is clean data: alpha[0] = 1 and sigma[0] = 0")
        if float((self.alpha**2 + self.sigma**2 - 1).abs().max()) > 1e-8:
            raise ValueError("a schedule is variance preserving: alpha^2 + sigma^2 = 1")

    @classmethod
    def from_betas(cls, betas: Sequence[float] | np.ndarray | Tensor) -> NoiseSchedule:
        """From beta_1..beta_T: alpha_t^2 = prod (1 - beta)."""
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or not ((betas > 0) & (betas < 1)).all():
            raise ValueError("betas must be a list of numbers strictly between 0 and 1")
        alpha_bar = np.concatenate([[1.0], np.cumprod(1.0 - betas)])
        return cls(torch.from_numpy(np.sqrt(alpha_bar)), torch.from_numpy(np.sqrt(1.0 - alpha_bar)))

    @classmethod
    def cosine(cls, T: int = 1000) -> NoiseSchedule:
        """alpha_bar(u) = cos^2((u + 0.008) / 1.008 * pi / 2), beta at most 0.999 (Improved DDPM, eq. 17)."""
        u = np.arange(T + 1) / T
        alpha_bar = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls.from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999))

    @classmethod
    def linear(cls, T: int = 1000, start: float = LINEAR[0], end: float = LINEAR[1]) -> NoiseSchedule:
        """Betas on a line; the ends are scaled by 1000 / T so that the noise at T stays the same (ADM)."""
        return cls.from_betas(np.linspace(start * 1000 / T, end * 1000 / T, T))

    @classmethod
    def scaled_linear(cls, T: int = 1000, start: float = SCALED_LINEAR[0], end: float = SCALED_LINEAR[1]) -> NoiseSchedule:
        """Square roots of the betas on a line (latent diffusion)."""
        return cls.from_betas(np.linspace((start * 1000 / T) ** 0.5, (end * 1000 / T) ** 0.5, T) ** 2)

    def same(self, other: NoiseSchedule) -> bool:
        """Whether a timestep means the same noise in both."""
        return self.T == other.T and torch.allclose(self.alpha, other.alpha, rtol=0, atol=1e-6)

    def describe(self) -> str:
        """In a few words: how many timesteps, and how much signal is left in their middle."""
        return f"{self.T} timesteps, alpha {float(self.alpha[self.T // 2]):.3f} at t = {self.T // 2}"

    def at(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, cast to the type and device of `like` and shaped to multiply it: t (b) -> (b, 1, ...)."""
        index = torch.as_tensor(t).cpu()
        shape = index.shape + (1,) * (like.ndim - index.ndim)
        return (
            self.alpha[index].reshape(shape).to(like.device, like.dtype),
            self.sigma[index].reshape(shape).to(like.device, like.dtype),
        )

    def snr(self, t: Tensor | int) -> Tensor:
        """alpha_t^2 / sigma_t^2, float64 on the CPU."""
        index = torch.as_tensor(t).cpu()
        return (self.alpha[index] / self.sigma[index]) ** 2

    def posterior(self, t: int, s: int) -> Posterior:
        """q(x_s | x_t, x0) for 0 <= s < t (DDPM eq. 6-7, for any stride)."""
        if not 0 <= s < t <= self.T:
            raise ValueError(f"a posterior goes from t to an earlier s: 0 <= s < t <= {self.T}, not t = {t}, s = {s}")
        alpha_t, alpha_s = float(self.alpha[t]), float(self.alpha[s])
        var_t, var_s = float(self.sigma[t] ** 2), float(self.sigma[s] ** 2)
        a = alpha_t / alpha_s
        var_ts = var_t - a**2 * var_s
        return Posterior(a * var_s / var_t, alpha_s * var_ts / var_t, var_ts * var_s / var_t, var_ts)


@runtime_checkable
class Scheduled(Protocol):
    """A stage that tells how much noise its timesteps stand for."""

    @property
    def schedule(self) -> NoiseSchedule: ...


def spaced(T: int, steps: int | str | Sequence[int]) -> tuple[int, ...]:
    """Timesteps to visit, descending from at most T.

    An int n spreads n timesteps evenly over 1..T, both ends included, and ends in 0.  A string "10,10,3,2,2" does so within
    equal sections of 1..T, the first number being the section nearest the data; "fast27" is GLIDE's 27 steps; "ddim25" are 25
    with a whole stride, the first such: 1, 41, ..., 961, so that noise lives at 961 (ADM).  A sequence is taken as it is: it need
    not end in 0.
    """
    if isinstance(steps, str):
        if steps == FAST27:
            # GLIDE: sections 10,10,3,2,2, with the 0-based 997 in place of the last step.
            return (min(T, round(998 * T / 1000)), *spaced(T, "10,10,3,2,2")[1:])
        if (count := strided(steps)) is not None:
            for step in range(1, T):
                if len(range(1, T + 1, step)) == count:
                    return (*reversed(range(1, T + 1, step)), 0)
            raise ValueError(f"no whole stride takes {count} steps out of {T}: give the number alone, {count}")
        counts = sections(steps)
    elif isinstance(steps, int):
        counts = [steps]
    else:
        times = tuple(int(t) for t in steps)
        if len(times) < 2 or not all(0 <= s < t <= T for t, s in zip(times, times[1:])):
            raise ValueError(f"a list of timesteps has at least two and descends within {T}..0; got {times}")
        return times
    visited: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = T // len(counts) + (section < T % len(counts))
        if not 1 <= count <= size:
            raise ValueError(f"cannot take {count} steps out of {size}: steps {steps!r} of a schedule with T = {T}")
        # The published lists come from adding up a float stride and rounding half to even; other roundings differ.
        stride, position = ((size - 1) / (count - 1) if count > 1 else 1.0), 0.0
        for _ in range(count):
            visited.append(start + round(position) + 1)
            position += stride
        start += size
    if len(counts) == 1 and counts[0] == 1:
        visited = [T]  # one step has to start from noise
    return (*reversed(visited), 0)


def resampled(timesteps: Sequence[int], jump: int, times: int) -> tuple[int, ...]:
    """The way down with detours: after every `jump` steps up again by as many, until they were taken `times` times.

    RePaint's resampling (Lugmayr et al. 2022, 4.2) over any list; the last timesteps are not resampled.  25 steps with jump 5
    and times 4 are 85 denoising steps and 12 climbs.
    """
    levels, last = len(timesteps) - 1, timesteps[-1]
    left = {level: times - 1 for level in range(1, levels - jump + 1, jump)}  # counted from the data, which is level 0
    visited, level = [timesteps[0]], levels
    while level > 1:
        level -= 1
        visited.append(timesteps[levels - level])
        if left.get(level, 0):
            left[level] -= 1
            level += jump
            visited.append(timesteps[levels - level])
    return (*visited, last)

"""How a part samples, and how a decoder inverts: values, saved with each part as its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from .config import Config, Few, Steps

Sampler = Literal["ddpm", "ddim", "dpmpp_2m"]
VarianceName = Literal["small", "large", "learned", "analytic"]


class Sampling(Config, frozen=True, kw_only=True):
    """How a part samples: a value, saved with each part as its default."""

    sampler: Sampler = "ddim"
    # A number of steps, sections such as "10,10,3,2,2" or "fast27", or the timesteps themselves, descending.
    steps: Steps | str | tuple[int, ...] = 50
    guidance: float = 1.0  # 1 = off
    interval: tuple[int, int] | None = None  # guided while lo < t <= hi, elsewhere guidance 1
    eta: float = 0.0  # ddim only
    variance: VarianceName = "small"  # ddpm only
    # None, "static" (clip x0 to the part's range) or the quantile of dynamic thresholding, for instance 0.995.
    threshold: Literal["static"] | float | None = None

    def __post_init__(self) -> None:
        words: dict[str, Any] = {"sampler": Sampler, "variance": VarianceName}
        for name, allowed in words.items():  # values made in Python meet no JSON reader that would check them
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(allowed))}")
        if not _are_steps(self.steps, 1):
            raise ValueError(f"steps is {self.steps}; it must be a whole number of at least 1, sections or a list of timesteps")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance is {self.guidance}; it must be a finite number of at least 0 (1 = off)")
        if not 0 <= self.eta < float("inf"):
            raise ValueError(f"eta is {self.eta}; it must be at least 0 (0 = deterministic, 1 = as noisy as ddpm)")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta is {self.eta}, but only the sampler 'ddim' has one; the sampler is {self.sampler!r}")
        quantile = isinstance(self.threshold, (int, float)) and not isinstance(self.threshold, bool) and 0 < self.threshold <= 1
        if self.threshold not in (None, "static") and not quantile:
            raise ValueError(f"threshold is {self.threshold!r}; it must be 'static', a quantile in (0, 1] or None")
        pair = isinstance(self.interval, (tuple, list)) and len(self.interval) == 2
        if self.interval is not None and not (pair and 0 <= self.interval[0] < self.interval[1]):
            raise ValueError(f"interval is {self.interval}; it must be (lo, hi) with 0 <= lo < hi, in timesteps")


    def describe(self) -> str:
        """In a few words."""
        return f"{self.sampler}, steps {self.steps}, guidance {self.guidance:g}"


class Inversion(Config, frozen=True, kw_only=True):
    """How a decoder turns a picture into noise by DDIM (ADM App. F): a value, saved with the decoder as its default.

    The picture is read as x_t at `lowest`.  Below it a network's error, divided by a tiny sigma, would be taken for noise:
    x_T would come out larger than noise is, and only the exact path back would still work.
    """

    steps: Steps | str | tuple[int, ...] = 100
    refine: Few = 2  # fixed-point iterations of each step, each as costly as the step itself
    lowest: int = 20

    def __post_init__(self) -> None:
        if not _are_steps(self.steps, 2):
            raise ValueError(f"steps is {self.steps}; an inversion takes a whole number of at least 2, sections or a list")
        if not isinstance(self.refine, int) or self.refine < 0:
            raise ValueError(f"refine is {self.refine}; it must be at least 0, a whole number (0 = plain inversion)")
        if not isinstance(self.lowest, int) or self.lowest < 1:
            raise ValueError(f"lowest is {self.lowest}; it is the timestep that the picture is read at, at least 1")

    def timesteps(self, listed: Sequence[int]) -> tuple[int, ...]:
        """Of the schedule's listed timesteps those above `lowest`, then `lowest` itself, descending."""
        return (*(t for t in listed if t > self.lowest), self.lowest)


def _are_steps(steps: object, least: int) -> bool:
    """Of the kinds that there are; what they say is the schedule's business."""
    return isinstance(steps, (str, tuple, list)) or (isinstance(steps, int) and not isinstance(steps, bool) and steps >= least)

"""How a component samples, and how a decoder inverts: values, saved with each component as its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .config import AtMost100, Config, Steps

Sampler = Literal["ddpm", "ddim", "dpmpp_2m"]
VarianceName = Literal["small", "large", "learned", "analytic"]
FAST27 = "fast27"  # GLIDE's 27 steps
DDIM = "ddim"  # with a number, as "ddim25": so many steps of one whole stride (ADM)


class Sampling(Config, frozen=True, kw_only=True):
    """How a component samples: a value, saved with each component as its default."""

    sampler: Sampler = "ddim"
    # A number of steps, sections such as "10,10,3,2,2", "fast27", "ddim25", or the timesteps themselves, descending.
    steps: Steps | str | tuple[int, ...] = 50
    guidance: float = 1.0  # 1 = off
    interval: tuple[int, int] | None = None  # guided while lo < t <= hi, elsewhere guidance 1
    eta: float = 0.0  # ddim only
    variance: VarianceName = "small"  # ddpm only
    # None, "static" (clip x0 to the component's range) or the quantile of dynamic thresholding, for instance 0.995.
    threshold: Literal["static"] | float | None = None
    # ddpm only: (jump, times), every `jump` steps drawn `times` times (RePaint), to knit known pixels and drawn ones together.
    repaint: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps, 1)
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance is {self.guidance}; it must be a finite number of at least 0 (1 = off)")
        if not 0 <= self.eta < float("inf"):
            raise ValueError(f"eta is {self.eta}; it must be at least 0 (0 = deterministic, 1 = as noisy as ddpm)")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta is {self.eta}, but only the sampler 'ddim' has one; the sampler is {self.sampler!r}")
        if isinstance(self.threshold, float) and not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold!r}; it must be 'static', a quantile in (0, 1] or None")
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise ValueError(f"interval is {self.interval}; it must be (lo, hi) with 0 <= lo < hi, in timesteps")
        if self.repaint is not None and min(self.repaint) < 1:
            raise ValueError(f"repaint is {self.repaint}; it must be (jump, times), whole numbers of at least 1, as (5, 4)")
        if self.repaint is not None and self.sampler != "ddpm":
            raise ValueError(f"repaint is {self.repaint}, but only the sampler 'ddpm' goes back; the sampler is {self.sampler!r}")

    def describe(self) -> str:
        """In a few words."""
        return f"{self.sampler}, steps {self.steps}, guidance {self.guidance:g}"


class Inversion(Config, frozen=True, kw_only=True):
    """How a decoder turns a picture into noise by DDIM (ADM App. F): a value, saved with the decoder as its default.

    The picture is read as x_t at `lowest`.  Below it a network's error, divided by a tiny sigma, would be taken for noise:
    x_T would come out larger than noise is, and only the exact path back would still work.
    """

    steps: Steps | str | tuple[int, ...] = 100
    refine: AtMost100 = 2  # fixed-point iterations of each step, each as costly as the step itself
    lowest: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps, 2)
        if self.refine < 0:
            raise ValueError(f"refine is {self.refine}; it must be at least 0, a whole number (0 = plain inversion)")
        if self.lowest < 1:
            raise ValueError(f"lowest is {self.lowest}; it is the timestep that the picture is read at, at least 1")

    def timesteps(self, listed: Sequence[int]) -> tuple[int, ...]:
        """Of the schedule's listed timesteps those above `lowest`, then `lowest` itself, descending."""
        return (*(t for t in listed if t > self.lowest), self.lowest)


def check_steps(steps: int | str | Sequence[int], least: int = 1) -> None:
    """ValueError for steps that no schedule has: fewer than `least`, words, a list that does not descend."""
    if isinstance(steps, str):
        if steps != FAST27 and strided(steps) is None:
            sections(steps)
    elif isinstance(steps, int):
        if steps < least:
            raise ValueError(f"steps is {steps}; it must be a whole number of at least {least}, sections or a list of timesteps")
    elif len(steps) < 2 or any(s < 0 or s >= t for t, s in zip(steps, steps[1:])):
        problem = "a list of timesteps has at least two and descends, to 0 or above"
        raise ValueError(f"steps is {steps}; {problem}, as (999, 500, 0); for so many steps give the number")


def strided(steps: str) -> int | None:
    """25 of "ddim25"; None for other words."""
    digits = steps.removeprefix(DDIM)
    return int(digits) if digits != steps and digits.isdecimal() and int(digits) > 0 else None


def sections(steps: str) -> list[int]:
    """ "10,10,3,2,2" as numbers, one for each section of the schedule; ValueError for other words."""
    try:
        counts = [int(number) for number in steps.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        words = f"sections as '10,10,3,2,2', {FAST27!r}, '{DDIM}25'"
        raise ValueError(f"steps is {steps!r}; it must be a number, {words} or a list of timesteps")
    return counts

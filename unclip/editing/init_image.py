"""Pictures that a drawing starts from, or is drawn around: what `generate` needs to know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unclip.diffusion.schedule import Scheduled
from unclip.sampling import Sampling


@dataclass(frozen=True)
class InitImages:
    """Pictures (b, 3, s, s) in [-1, 1] by side s, a row for each caption; what `img2img` and `inpaint` make of theirs.

    strength: the fraction of the decoder's steps taken, from the picture with so much noise (SDEdit); 1 = all, from noise.
    keep: weights (b, 1, s, s) by side, 1 = the pixel is kept, 0 = drawn, between them blended; a stage of a side that is missing
    knows of the picture only what it sees in the smaller one.
    image_embed: z_i (b, d), where no prior shall draw one.
    """

    images: Mapping[int, Float[Tensor, "b 3 s s"]]
    strength: float = 1.0
    keep: Mapping[int, Float[Tensor, "b 1 s s"]] = field(default_factory=dict)
    image_embed: Float[Tensor, "b d"] | None = None

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def __len__(self) -> int:
        return len(next(iter(self.images.values())))

    def repeat(self, n: int) -> InitImages:
        """Each picture n times, picture-major."""
        return self.rows([i for i in range(len(self)) for _ in range(n)])

    def rows(self, rows: slice | Sequence[int]) -> InitImages:
        """Some of the pictures."""
        images, keep = ({size: x[rows] for size, x in tensors.items()} for tensors in (self.images, self.keep))
        return replace(self, images=images, keep=keep, image_embed=None if self.image_embed is None else self.image_embed[rows])

    def start(self, decoder: object, sampling: Sampling, x_T: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Sampling]:
        """Where a decoder starts, and its sampling from there: x_t = alpha_t x0 + sigma_t x_T at the timestep of `strength`."""
        if self.strength == 1:
            return x_T, sampling
        schedule = scheduled(decoder, "decoder").schedule
        assert isinstance(sampling.steps, tuple)
        count = len(sampling.steps) - 1
        taken = max(1, int(count * self.strength + 1e-6))
        sampling = sampling.replace(steps=sampling.steps[count - taken :])
        assert isinstance(sampling.steps, tuple)
        alpha, sigma = schedule.at(sampling.steps[0], x_T)
        return alpha * self.images[x_T.shape[-1]] + sigma * x_T, sampling

    def known(self, size: int) -> tuple[Float[Tensor, "b 3 s s"], Bool[Tensor, "b 1 s s"]] | None:
        """The pictures, and where they are kept entirely, for the stage of this size; None = it knows nothing."""
        return (self.images[size], self.keep[size] == 1) if size in self.keep else None

    def paste(self, size: int, drawn: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 3 s s"]:
        """Drawn pictures with the kept pixels in their place, to the last bit; blended where the weight is between 0 and 1."""
        if size not in self.keep:
            return drawn
        images, weight = self.images[size].to(drawn), self.keep[size].to(drawn)
        return torch.where(weight == 1, images, torch.where(weight == 0, drawn, torch.lerp(drawn, images, weight)))


def check_strength(strength: object) -> None:
    """ValueError for what is no part of the steps."""
    number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
    if not (number and 0 < strength <= 1):  # type: ignore[operator]
        bounds = "above 0, at which nothing would be drawn, and at most 1, which starts from noise alone"
        raise ValueError(f"strength is {strength!r}; it is the part of the steps to take: {bounds}")


def scheduled(component: object, stage: str) -> Scheduled:
    """A component that tells its noise schedule; ValueError for another."""
    if not isinstance(component, Scheduled):
        problem = f"the {stage}, a {type(component).__name__}, has no `schedule`"
        raise ValueError(f"{problem}: how much noise a timestep stands for must be known to start from a picture, or around one")
    return component

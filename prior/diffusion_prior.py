"""P(z_i | y): draws CLIP image embeddings for captions by diffusion (unCLIP 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unclip.checkpoint import Component
from unclip.checks import check_int
from unclip.config import Config
from unclip.diffusion.denoiser import Denoiser, Weighting
from unclip.diffusion.guidance import classifier_free, threshold
from unclip.diffusion.samplers import run
from unclip.diffusion.schedule import ScheduleConfig, spaced
from unclip.diffusion.variance import Analytic
from unclip.randomness import Noise, check_noise
from unclip.sampling import Sampling
from unclip.trees import tree_map
from unclip.types import Denoise, Losses, Text, Wrap, check_text, joined

from .network import PriorNetwork, PriorNetworkConfig, Prompt
from .scaling import Scaling, ScalingKind


class PriorConfig(Config, frozen=True, kw_only=True):
    network: PriorNetworkConfig
    schedule: ScheduleConfig = ScheduleConfig()
    embedding: Literal["unit", "raw"] = "unit"
    scaling: ScalingKind = "std"
    weighting: Weighting = "none"
    text_drop: float = 0.1
    clamp: float | None = None  # keeps the predicted x0 within +-clamp, in standardised units
    sampling: Sampling = Sampling(sampler="ddpm", steps=64, variance="analytic")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.text_drop <= 1:
            raise ValueError(f"text_drop is a probability, not {self.text_drop}")
        if self.clamp is not None and not 0 < self.clamp < float("inf"):
            raise ValueError(f"clamp is {self.clamp}; it must be positive, or null for none")
        _check_sampling(self.sampling)
        self.schedule.check_steps("sampling", self.sampling.steps)


class DiffusionPrior(Component[PriorConfig]):
    """Predicts the clean embedding from the noised one, with a squared error."""

    config_class = PriorConfig
    task_class = "PriorTask"
    x0_variance: Tensor  # (T + 1): how uncertain x0 is at t, mean per dimension, standardised; NaN = not measured
    x0_bound: Tensor  # mean square of the standardised embeddings

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        self.schedule = config.schedule.build()
        self.embed_dim = config.network.embed_dim
        self.network = PriorNetwork(config.network)
        self.scaling = Scaling(self.embed_dim, config.scaling, config.embedding)
        self.register_buffer("x0_variance", torch.full((self.schedule.T + 1,), float("nan")))
        self.register_buffer("x0_bound", torch.tensor(float("nan")))

    @property
    def denoiser(self) -> Denoiser:
        return Denoiser(self.network, self.schedule, "x0")

    def loss(self, image_embed: Float[Tensor, "b d"], text: Text, *, noise: Noise) -> Losses:
        """|| f(x_t, t, y) - x0 ||^2 / d per sample; a caption is dropped in 10 % of them."""
        self._check(image_embed)
        check_noise(noise, len(image_embed), "embeddings")
        check_noise(noise, len(check_text(text).strings), "captions")
        x0 = self.scaling.scale(image_embed)
        drop = noise.at("drop").uniform() < self.config.text_drop
        t = noise.at("t").integers(1, self.schedule.T + 1)
        eps = noise.at("eps").normal((self.embed_dim,)).to(x0)
        return self.denoiser.loss(x0, t, eps, self._prompt(text, drop), self.config.weighting)

    @torch.no_grad()
    def sample(
        self,
        text: Text,
        *,
        noise: Noise,
        n: int = 1,
        sampling: Sampling | None = None,
        negative: Text | None = None,
        wrap: Wrap | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Draw n raw embeddings for each caption; one noise stream per caption.  The paper keeps the best of two.

        negative: captions, one or one each, that guidance leads away from, in place of the null.  wrap: applied to the guided
        and clamped denoiser.
        """
        sampling = sampling or self.config.sampling
        _check_sampling(sampling)
        check_noise(noise, len(check_text(text).strings), "captions")
        n = check_int("n", n, 1, "how many embeddings for each caption")
        variance = self._analytic(sampling) if sampling.variance == "analytic" and sampling.sampler == "ddpm" else None
        streams = noise.repeat(n)
        x = streams.at("x_T").normal((self.embed_dim,)).to(self.device)
        denoise = self.denoise(text, sampling, negative)
        denoise = denoise if wrap is None else wrap(denoise)
        x0 = run(denoise, x, self.schedule, sampling, noise=streams.at("steps"), variance=variance)
        return self.scaling.unscale(x0).unflatten(0, (-1, n))  # (b n, d) -> (b, n, d)

    def denoise(self, text: Text, sampling: Sampling, negative: Text | None = None) -> Denoise:
        """The captions bound: (x_t, t) -> Prediction in standardised units.  x_t (b*n, d) is caption-major."""
        rows, null = len(text.strings), None
        if sampling.guidance == 1:
            cond = self.network.encode(self._prompt(text))
        else:
            # The nulls go through the network with the captions, so that weights are read once; one null serves all of them.
            prompt = self._prompt(text if negative is None else joined([text, negative]))
            if negative is None:
                absent = self.network.null(prompt.mask.shape[1])
                prompt = tree_map(lambda a, b: torch.cat([a, b]), prompt, absent)
            both = self.network.encode(prompt)
            cond, null = tree_map(lambda x: x[:rows], both), tree_map(lambda x: x[rows:], both)
        guided = classifier_free(self.denoiser, cond, null, sampling.guidance, sampling.interval)
        if self.config.clamp is not None:
            guided = threshold(guided, self.schedule, "static", self.config.clamp)
        return guided

    @property
    def sampling(self) -> Sampling:
        """How it samples by default."""
        return self.config.sampling

    def describe(self) -> str:
        """How it samples by default, in a few words."""
        return self.sampling.describe()

    def resolve(self, sampling: Sampling | None = None) -> Sampling:
        """`sampling`, or the prior's own, its steps the timesteps that are visited; ValueError: a variance was not measured."""
        sampling = sampling or self.config.sampling
        _check_sampling(sampling)
        visited = spaced(self.schedule.T, sampling.steps)
        if sampling.variance == "analytic" and sampling.sampler == "ddpm":
            self._analytic(sampling)
        return sampling.replace(steps=visited)

    def timesteps(self, sampling: Sampling | None = None) -> tuple[int, ...]:
        """The timesteps that `sample` visits, descending."""
        return spaced(self.schedule.T, (sampling or self.config.sampling).steps)

    @property
    def fitted(self) -> bool:
        return self.scaling.fitted

    def fit(self, image_embeds: Float[Tensor, "n d"], text_embeds: Tensor | None = None) -> None:
        """Take the statistics that scaling needs from raw embeddings of the training data; before training."""
        self._check(image_embeds)
        self.scaling.fit(image_embeds)

    @torch.no_grad()
    def measure_variance(
        self,
        image_embeds: Float[Tensor, "n d"],
        text: Text,
        timesteps: int | str | Sequence[int],
        noise: Noise,
        batch: int = 256,
    ) -> None:
        """Measure the analytic variance (Analytic-DPM) at every listed timestep, with the weights that will sample.

        Gamma_t = E ||eps_theta||^2 / d over n embeddings with their captions, one noise stream each.  E ||eps||^2 / d
        is known to be 1, so the drawn eps serves as control variate.  Stored is what Gamma is for,
        sigma^2 / alpha^2 (1 - Gamma): unlike Gamma it survives low precision.  `timesteps`: as in `Sampling.steps`.
        """
        self._check(image_embeds)
        check_noise(noise, len(image_embeds), "embeddings")
        check_noise(noise, len(check_text(text).strings), "captions")
        x0 = self.scaling.scale(image_embeds)
        visited = [t for t in spaced(self.schedule.T, timesteps) if t > 0]
        excess = dict.fromkeys(visited, 0.0)  # sum of eps_theta^2 - eps^2
        for start in range(0, len(x0), batch):
            rows = slice(start, start + batch)
            denoise = self.denoise(text.rows(rows), Sampling())
            for t in visited:
                eps = noise[rows].at(f"variance/{t}").normal((self.embed_dim,)).to(x0)
                times = torch.full((len(eps),), t)
                alpha, sigma = self.schedule.at(times, x0)
                guess = denoise(alpha * x0[rows] + sigma * eps, times).eps
                excess[t] += float((guess.cpu().double() ** 2 - eps.cpu().double() ** 2).sum())
        bound = float(x0.cpu().double().square().mean())
        measured = torch.full_like(self.x0_variance, float("nan"))
        for t, total in excess.items():
            variance = -total / x0.numel() / float(self.schedule.snr(t))
            measured[t] = min(max(variance, 0.0), bound)
        self.x0_variance.copy_(measured)
        self.x0_bound.fill_(bound)

    def check(self) -> None:
        self.scaling.check()
        for name, value in (("x0_variance", self.x0_variance), ("x0_bound", self.x0_bound)):
            if torch.isinf(value).any() or (value < 0).any():  # NaN: not measured
                raise ValueError(f"the prior's analytic variance cannot be: {name} is negative or infinite")

    def _analytic(self, sampling: Sampling) -> Analytic:
        needed = [t for t in self.timesteps(sampling) if t > 0]
        if not torch.isfinite(self.x0_variance[needed]).all():
            missing = int((~torch.isfinite(self.x0_variance[needed])).sum())
            raise ValueError(
                f"its analytic variance was not measured at {missing} of the {len(needed)} timesteps of steps {sampling.steps}; "
                "leave out the option or setting that asks for them, sample with variance 'small', or measure them: "
                f"prior.measure_variance(image_embeds, text, {sampling.steps!r}, noise)"
            )
        t = torch.arange(1, self.schedule.T + 1)
        gamma = 1 - self.schedule.snr(t) * self.x0_variance[1:].cpu().double()
        return Analytic(torch.cat([gamma[:1] * float("nan"), gamma]), float(self.x0_bound))

    def _prompt(self, text: Text, drop: Tensor | None = None) -> Prompt:
        return self.network.prompt(text._replace(embed=self.scaling.text(text.z_t)), drop)

    def set_null(self, text: Text) -> None:
        """Store `clip.encode_text([""])` as what a dropped caption becomes (network.null "empty")."""
        self.network.set_null(text._replace(embed=self.scaling.text(text.z_t)))

    def _check(self, image_embed: Tensor) -> None:
        if image_embed.ndim != 2 or image_embed.shape[1] != self.embed_dim:
            raise ValueError(
                f"the prior expects image embeddings of shape (b, {self.embed_dim}), got {tuple(image_embed.shape)}: "
                "were they made by another CLIP?"
            )


def _check_sampling(sampling: Sampling) -> None:
    if sampling.sampler == "ddpm" and sampling.variance == "learned":
        raise ValueError("the prior learns no variance; sample with variance 'analytic', 'small' or 'large'")
    if sampling.threshold is not None:
        raise ValueError("threshold is for pixels; a prior keeps x0 in range by its config's `clamp`")

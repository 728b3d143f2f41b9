"""Guidance and thresholding: functions from Denoise to Denoise, to be stacked in the order wanted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unclip.trees import tree_map
from unclip.types import Callback, Denoise, Guide, Prediction, Step, Wrap

from .schedule import NoiseSchedule


def classifier_free(
    denoiser: Callable[[Tensor, Tensor, Any], Prediction],
    cond: Any,
    null: Any,
    scale: float,
    interval: tuple[int, int] | None = None,
) -> Denoise:
    """x0 = x0_null + scale (x0_cond - x0_null), and the same for eps (Ho & Salimans 2022).

    `cond`, `null`: encoded conditions, equally built trees of tensors (b, ...); both go through one pass.  Scale 1 costs one
    row.  `interval` (lo, hi): guided only while lo < t <= hi.  The learned variance is the conditional one.
    """
    if scale == 1:
        return lambda x, t: denoiser(x, t, cond)
    both = tree_map(lambda c, n: torch.cat([c, n.expand_as(c)]), cond, null)

    def guided(x: Tensor, t: Tensor) -> Prediction:
        if interval is not None and not interval[0] < int(t[0]) <= interval[1]:
            return denoiser(x, t, cond)
        out = denoiser(torch.cat([x, x]), torch.cat([t, t]), both)
        (x0, x0_null), (eps, eps_null) = out.x0.chunk(2), out.eps.chunk(2)  # (2 b, ...) -> each (b, ...)
        mix = None if out.variance_mix is None else out.variance_mix.chunk(2)[0]
        return Prediction(x0_null + scale * (x0 - x0_null), eps_null + scale * (eps - eps_null), mix)

    return guided


def gradient_guidance(denoise: Denoise, fn: Guide, scale: float) -> Denoise:
    """Fill `score` with scale * grad_x fn(x_t, t), fn (b) a log probability (ADM 4.1; with a noised CLIP, GLIDE 2.4).

    ddpm adds variance * score to the mean; ddim and dpmpp_2m take sigma_t * score off eps.  The gradient is taken in float32,
    whatever type the networks compute in.  ValueError for an fn whose answer is not (b).
    """

    def guided(x: Tensor, t: Tensor) -> Prediction:
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            leaf = x.detach().float().requires_grad_()
            value = fn(leaf, t)
            if not isinstance(value, Tensor) or value.shape != (len(x),):
                actual = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise ValueError(f"a guide gives a log probability for each picture, ({len(x)},); this one gave {actual}")
            score = scale * torch.autograd.grad(value.sum(), leaf)[0]
        prediction = denoise(x, t)
        return prediction._replace(score=score if prediction.score is None else prediction.score + score)

    return guided


def keep_known(
    denoise: Denoise, schedule: NoiseSchedule, images: Float[Tensor, "b 3 h w"], keep: Bool[Tensor, "b 1 h w"]
) -> Denoise:
    """Replace x0 by the known images where `keep` is True, and derive eps from it again (inpainting, GLIDE 2.2).

    For inpainting sample with ddpm: multistep samplers, which look back at earlier x0, leave seams.
    """

    def replaced(x: Tensor, t: Tensor) -> Prediction:
        prediction = denoise(x, t)
        x0 = torch.where(keep.to(x.device), images.to(prediction.x0), prediction.x0)
        alpha, sigma = schedule.at(t, x0)
        return prediction._replace(x0=x0, eps=(x - alpha * x0) / sigma)

    return replaced


def observe(denoise: Denoise, see: Callable[[Tensor, Tensor, Prediction], None]) -> Denoise:
    """Show every (x_t, t) and its prediction to `see`, which changes nothing: progress, previews, cancelling."""

    def seen(x: Tensor, t: Tensor) -> Prediction:
        prediction = denoise(x, t)
        see(x, t, prediction)
        return prediction

    return seen


def reporting(callback: Callback, stage: str, steps: int, rows: slice, total: int) -> Wrap:
    """Tell `callback` of every denoising step of one chunk of pictures, `rows` of `total`."""

    def wrap(denoise: Denoise) -> Denoise:
        done = itertools.count(1)
        return observe(denoise, lambda x, t, p: callback(Step(stage, next(done), steps, int(t[0]), p.x0, rows, total)))

    return wrap


def threshold(denoise: Denoise, schedule: NoiseSchedule, kind: Literal["static"] | float | None, bound: float = 1.0) -> Denoise:
    """Keep x0 within [-bound, bound] and derive eps from it again.

    "static" clips.  A number is the quantile of dynamic thresholding (Imagen 2.3): per picture, the quantile s of |x0|, at
    least `bound`; x0 is clipped to [-s, s] and divided by s / bound.
    """
    if kind is None:
        return denoise

    def bounded(x: Tensor, t: Tensor) -> Prediction:
        prediction = denoise(x, t)
        x0 = prediction.x0
        if kind == "static":
            x0 = x0.clamp(-bound, bound)
        else:
            limit = x0.abs().flatten(1).quantile(kind, dim=1).clamp(min=bound).reshape(-1, *[1] * (x0.ndim - 1))
            x0 = x0.clamp(-limit, limit) * (bound / limit)
        alpha, sigma = schedule.at(t, x0)
        return prediction._replace(x0=x0, eps=(x - alpha * x0) / sigma)

    return bounded

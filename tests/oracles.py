"""Data whose exact denoiser is known: what every sampler has to reproduce."""

from __future__ import annotations

import torch
from torch import Tensor

from unclip.diffusion.schedule import NoiseSchedule
from unclip.types import Denoise, Prediction


def gaussian(schedule: NoiseSchedule, mean: Tensor, std: Tensor) -> Denoise:
    """E[x0 | x_t] for x0 ~ N(mean, std^2), per dimension."""

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = schedule.at(t, x)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        x0 = mean + gain * (x - alpha * mean)
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def finite(schedule: NoiseSchedule, points: Tensor) -> Denoise:
    """E[x0 | x_t] for x0 drawn evenly from `points` (k, d)."""

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = schedule.at(t, x)
        distance = ((x[:, None] - alpha[:, None] * points) ** 2).sum(-1)
        x0 = torch.softmax(-distance / (2 * sigma**2), dim=1) @ points
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise

"""Denoisers: a raw network output as x0, eps or v, and the training loss."""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from unclip.types import Losses, Prediction

from .schedule import NoiseSchedule
from .variance import vlb_terms

Predicts = Literal["x0", "eps", "v"]
Weighting = Literal["none", "min_snr", "clamped_snr"]
Norm = Literal["l2", "l1", "l1_gradient"]


@runtime_checkable
class Network(Protocol):
    """A raw network: x_t (b, ...), t (b) int, an encoded condition -> (b, ...), with twice the channels for learned variance."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor: ...


class Denoiser:
    """Reads a network's output as x0, eps or v: `denoiser(x_t, t, cond) -> Prediction` in float32."""

    def __init__(self, net: Network, schedule: NoiseSchedule, predicts: Predicts, learned_variance: bool = False):
        self.net, self.schedule, self.predicts, self.learned_variance = net, schedule, predicts, learned_variance

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        output, mix = self.net(x_t, t, cond).float(), None
        if self.learned_variance:
            output, mix = output.chunk(2, dim=1)  # (b, 2 c, h, w) -> each (b, c, h, w)
        x_t = x_t.float()
        alpha, sigma = self.schedule.at(t, x_t)
        if self.predicts == "x0":
            return Prediction(output, (x_t - alpha * output) / sigma, mix)
        if self.predicts == "eps":
            return Prediction((x_t - sigma * output) / alpha, output, mix)
        return Prediction(alpha * x_t - sigma * output, sigma * x_t + alpha * output, mix)  # v = alpha eps - sigma x0

    def loss(
        self,
        x0: Tensor,
        t: Tensor,
        eps: Tensor,
        cond: Any = None,
        weighting: Weighting = "none",
        discretised: bool = True,
        norm: Norm = "l2",
    ) -> Losses:
        """Squared error of what the network predicts, weighted, plus the variational term of a learned variance.

        x0, eps: (b, ...); t: (b) in 1..T.  `discretised`: x0 are 8-bit pixels scaled to [-1, 1].  Losses per sample.
        `norm`: how the error is measured (`absolute_error`); absolute errors stand under the root of the weight.
        """
        alpha, sigma = self.schedule.at(t, x0)
        prediction = self(alpha * x0 + sigma * eps, t, cond)
        target = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[self.predicts]
        guess = {"x0": prediction.x0, "eps": prediction.eps, "v": alpha * prediction.eps - sigma * prediction.x0}
        mse = mse_loss(guess[self.predicts], target, reduction="none").flatten(1).mean(1)
        weight = loss_weight(self.schedule, t, self.predicts, weighting).to(mse)
        total = mse * weight
        if norm != "l2":
            total = absolute_error(guess[self.predicts] - target, gradient=norm == "l1_gradient") * weight.sqrt()
        terms = {"mse": mse.detach()}
        if prediction.variance_mix is not None:
            # Learned variances get their own term only: the mean is held fixed in it (Improved DDPM, L_hybrid).
            # In bits per dimension times T / 1000 this equals lambda = 0.001 of the full bound at T = 1000.
            fixed_mean = prediction._replace(x0=prediction.x0.detach(), eps=prediction.eps.detach())
            vlb = vlb_terms(self.schedule, x0, alpha * x0 + sigma * eps, t, fixed_mean, discretised)
            total = total + vlb * self.schedule.T / 1000
            terms["vlb"] = vlb.detach()
        return Losses(total, t, terms)


def absolute_error(error: Tensor, gradient: bool) -> Tensor:
    """Mean absolute error per sample, (b, ...) -> (b): the median, not the mean, is its best answer (SR3, eq. 6 with p = 1).

    `gradient`: of pictures (b, c, h, w), plus that of the differences of neighbouring pixels, down and across, so that what
    is flat or straight is drawn so (the gradient difference loss of Mathieu et al. 2016, with signs).
    """
    total = error.abs().flatten(1).mean(1)
    if gradient:
        for dim in (-2, -1):
            total = total + error.diff(dim=dim).abs().flatten(1).mean(1)
    return total


def loss_weight(schedule: NoiseSchedule, t: Tensor, predicts: Predicts, weighting: Weighting, gamma: float = 5.0) -> Tensor:
    """Weight (b) on the squared error of the prediction target, given as a weight on the error of x0.

    "min_snr": min(SNR, gamma) (Hang et al. 2023).  "clamped_snr": at least 1 besides, the truncated SNR of Salimans & Ho (2022):
    min-SNR all but ignores the noisiest steps, where the condition is turned into a layout, and short trainings miss that.
    """
    if weighting == "none":
        return torch.ones(len(t))
    snr = schedule.snr(t)
    on_x0 = snr.clamp(min=1.0 if weighting == "clamped_snr" else 0.0, max=gamma)
    # an error d of x0 is one of alpha / sigma d in eps and of d / sigma in v
    return (on_x0 / {"x0": torch.ones_like(snr), "eps": snr, "v": snr + 1}[predicts]).float()

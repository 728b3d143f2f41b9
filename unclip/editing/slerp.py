"""Spherical interpolation, of two vectors and of many."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


def slerp(a: Float[Tensor, "b ..."], b: Float[Tensor, "b ..."], fraction: float | Float[Tensor, " b"]) -> Float[Tensor, "b ..."]:
    """Per sample: the direction turns from a's to b's by `fraction` of their angle, the norm goes linearly.

    Opposite vectors have no one way between them: they turn through the axis that a points along least.  A zero vector has
    the other's direction.
    """
    x, y = a.cpu().flatten(1).double(), b.cpu().flatten(1).double()  # some accelerators have no float64
    f = fraction.cpu().double() if isinstance(fraction, Tensor) else torch.tensor(fraction, dtype=torch.float64)
    f = f.expand(len(x))[:, None]
    norm_x, norm_y = x.norm(dim=1, keepdim=True), y.norm(dim=1, keepdim=True)
    x = torch.where(norm_x > 0, x / norm_x.clamp(min=1e-300), y / norm_y.clamp(min=1e-300))
    y = torch.where(norm_y > 0, y / norm_y.clamp(min=1e-300), x)
    cos = (x * y).sum(1, keepdim=True)
    across = y - cos * x
    sin = across.norm(dim=1, keepdim=True)
    axis = torch.zeros_like(x).scatter_(1, x.abs().argmin(1, keepdim=True), 1.0)
    axis = normalize(axis - (axis * x).sum(1, keepdim=True) * x, dim=1)
    across = torch.where(sin > 1e-7, across / sin.clamp(min=1e-300), axis)  # only at 0 and pi is it not told by y
    angle = torch.atan2(sin, cos) * f
    turned = (torch.cos(angle) * x + torch.sin(angle) * across) * torch.lerp(norm_x, norm_y, f)
    turned = turned.reshape(a.shape).to(a)
    f = f.reshape(-1, *[1] * (a.ndim - 1)).to(a.device)
    return torch.where(f == 0, a, torch.where(f == 1, b, turned))  # the ends to the last bit


def spherical_mean(vectors: Float[Tensor, "k d"], weights: Float[Tensor, " k"]) -> Float[Tensor, " d"]:
    """`slerp` of k vectors: the direction is the weighted mean on the sphere, the norm the weighted mean of norms.

    The point from which the ways to all directions, weighted, sum up to nothing (Buss & Fillmore 2001, algorithm A1); weights are
    at least 0, and their ratios count.
    """
    used = weights > 0
    vectors, w = vectors[used], (weights[used] / weights[used].sum()).double().cpu()
    if len(vectors) <= 2:
        return slerp(vectors[:1], vectors[-1:], float(w[-1]) if len(w) == 2 else 0.0)[0]
    norms = vectors.cpu().double().norm(dim=1)
    x = vectors.cpu().double() / norms.clamp(min=1e-300)[:, None]
    total = w @ x
    mean = normalize(total if total.norm() > 1e-9 else x[w.argmax()], dim=0)
    for _ in range(1000):
        cos = x @ mean
        across = x - cos[:, None] * mean  # (k, d)
        sin = across.norm(dim=1)
        way = (w * torch.atan2(sin, cos) / sin.clamp(min=1e-12)) @ across
        length = way.norm()
        if length < 1e-14:
            break
        mean = normalize(torch.cos(length) * mean + torch.sin(length) * way / length, dim=0)
    return (mean * (w @ norms)).to(vectors)

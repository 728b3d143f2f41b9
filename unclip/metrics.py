"""Metrics of drawn pictures: features, retrieval, pixels; bootstrap intervals of means.

None knows a model.  Features are rows of float (n, d), of whatever encoder the caller judges with; sums are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .randomness import Noise

FRECHET_LEAST = 2000  # rows under which the covariances' own error outweighs what is measured


class Interval(NamedTuple):
    """A mean over n items and its bootstrap 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


class PrecisionRecall(NamedTuple):
    """Per drawn sample: is it among the real ones?  Per real sample: is it among the drawn ones?  Their means are the two."""

    precision: Bool[Tensor, " m"]
    recall: Bool[Tensor, " n"]


def interval(values: Sequence[float] | Tensor, draws: int = 2000, seed: int = 0) -> Interval:
    """The mean of per-item numbers with the percentile bootstrap's 95 % interval (Efron 1979), in float64."""
    items = torch.as_tensor(values).double().flatten().cpu()
    if not len(items):
        raise ValueError("there are no values: an interval needs at least one")
    picks = Noise.of(seed).at("bootstrap").integers(0, len(items), (draws, len(items)))[0]
    return _interval(float(items.mean()), items[picks].mean(1), len(items))


def polynomial_kernel(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], degree: int = 3, coef: float = 1.0
) -> Float[Tensor, "n m"]:
    """KID's kernel (x . y / d + coef)^degree (Binkowski et al. 2018, section 4), float64."""
    return (x.double() @ y.double().T / x.shape[1] + coef) ** degree


def mmd(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Unbiased squared MMD of two independent samples under KID's kernel (Gretton et al. 2012, eq. 3): may be negative."""
    n, m = len(x), len(y)
    _at_least(min(n, m), 2, "the unbiased MMD")
    within_x = _off_diagonal(polynomial_kernel(x, x)).sum() / (n * (n - 1))
    within_y = _off_diagonal(polynomial_kernel(y, y)).sum() / (m * (m - 1))
    return float(within_x + within_y - 2 * polynomial_kernel(x, y).mean())


def paired_mmd(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], draws: int = 2000, seed: int = 0) -> Interval:
    """The same where y[i] belongs to x[i], as a drawn picture to the true one of its caption, with its interval.

    Pairs (i, i) are left out of the cross term too (Gretton et al. 2012, eq. 4): they are nearer than strangers are.  The
    bootstrap draws pairs; one drawn twice is never compared with itself.
    """
    n = len(x)
    _at_least(n, 2, "the unbiased MMD")
    cross = polynomial_kernel(x, y)
    h = _off_diagonal(polynomial_kernel(x, x) + polynomial_kernel(y, y) - cross - cross.T)
    picks = Noise.of(seed).at("bootstrap").integers(0, n, (draws, n))[0]
    weights = torch.zeros(draws, n, dtype=torch.float64).scatter_add_(1, picks, torch.ones(draws, n, dtype=torch.float64))
    pairs = weights.sum(1) ** 2 - (weights**2).sum(1)
    drawn = ((weights @ h) * weights).sum(1) / pairs.clamp(min=1)  # 0 pairs only where one item was drawn n times
    return _interval(float(h.sum() / (n * (n - 1))), drawn[pairs > 0], n)


def frechet_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """|mu_x - mu_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) of Gaussians fitted to two samples (Heusel et al. 2017, eq. 6).

    Biased, the more the fewer rows there are; ValueError under 2,000.
    """
    _at_least(min(len(x), len(y)), FRECHET_LEAST, "the Frechet distance is biased and")
    x, y = x.double(), y.double()
    cov_x, cov_y = torch.cov(x.T), torch.cov(y.T)
    # tr (C_x C_y)^(1/2) from the symmetric root(C_x) C_y root(C_x), which has the same eigenvalues.
    values, vectors = torch.linalg.eigh(cov_x)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ cov_y @ root).clamp(min=0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + cov_x.trace() + cov_y.trace() - 2 * overlap)


def precision_recall(real: Float[Tensor, "n d"], drawn: Float[Tensor, "m d"], k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1-2).

    A sample lies in a set's manifold when it is within the distance of at least one member to that member's k-th neighbour.
    """
    _at_least(min(len(real), len(drawn)), k + 1, f"the {k}-th neighbour")
    across = _distance(real, drawn)
    return PrecisionRecall((across <= _radius(real, k)[:, None]).any(0), (across <= _radius(drawn, k)).any(1))


def ranks(scores: Float[Tensor, "n m"], targets: Int[Tensor, " n"], groups: Int[Tensor, " m"] | None = None) -> Int[Tensor, " n"]:
    """How many candidates score above the own one (rank 0 = retrieved first).

    groups: candidates of a group count as one, by the best of them, and any of the own group is a hit.
    """
    if groups is not None:
        count = int(groups.max()) + 1
        best = scores.new_full((len(scores), count), -torch.inf)
        scores = best.scatter_reduce(1, groups.to(scores.device).expand(len(scores), -1), scores, "amax")
        targets = groups[targets]
    return (scores > scores.gather(1, targets.to(scores.device)[:, None])).sum(1)


def recall_at(ranks: Int[Tensor, " n"], k: int) -> Float[Tensor, " n"]:
    """1 where the own candidate is among the first k, else 0; the mean is R@k."""
    return (ranks < k).double()


def principal(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Mean, variances in descending order, and orthonormal components as columns; float64, on the CPU."""
    x = x.detach().cpu().double()
    if len(x) < 2 or not torch.isfinite(x).all():
        raise ValueError(f"principal components need at least two finite embeddings; got {tuple(x.shape)}: look at their CLIP")
    mean = x.mean(0)
    centred = x - mean
    variances, components = torch.linalg.eigh(centred.T @ centred / len(x))
    variances, components = variances.flip(0).clamp(min=0), components.flip(1)
    if variances[0] <= 1e-12 * x.square().mean():
        raise ValueError(f"the {len(x)} embeddings are all the same: they have no principal components")
    # A component's sign is arbitrary; here its largest entry is positive, whatever the linear algebra library.
    signs = components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
    return mean, variances, components * signs


def clip_score(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Cosine of picture and caption embeddings, not scaled or clipped (CLIPScore, Hessel et al. 2021, is 2.5 max(0, this))."""
    return torch.cosine_similarity(images.double(), texts.double(), dim=-1)


def psnr(images: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Peak signal to noise in dB, pictures in [-1, 1]; infinite for equal ones."""
    return -10 * ((images - truth) / 2).double().square().flatten(1).mean(1).log10()


def sharpness(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Mean gradient magnitude: the absolute differences of neighbouring pixels, across and down, in units of [-1, 1]."""
    across, down = (images.diff(dim=dim).abs().double().flatten(1).mean(1) for dim in (-1, -2))
    return (across + down) / 2


def _interval(mean: float, drawn: Float[Tensor, " draws"], n: int) -> Interval:
    low, high = drawn.quantile(drawn.new_tensor([0.025, 0.975])).tolist()
    return Interval(mean, low, high, n)


def _off_diagonal(kernel: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    return kernel - kernel.diag().diag()


def _distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    # Not by a matrix product, after which a row's distance to itself is not 0 and equal rows do not tie.
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _radius(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Distance of each row to its k-th nearest other one."""
    return _distance(x, x).kthvalue(k + 1, dim=1).values  # the nearest is itself


def _at_least(rows: int, least: int, what: str) -> None:
    if rows < least:
        raise ValueError(f"{what} needs at least {least} rows on both sides; the smaller has {rows}")

"""Validation metrics: their names, baselines and summaries.

A number may have baselines, which stand beside it as `number/baseline`: `cosine` and `cosine/text`.  Losses and errors are
better smaller, ratios (norm, sharpness) better near 1, all others better larger.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from unclip.metrics import ranks, recall_at
from unclip.randomness import Noise
from unclip.types import Losses, Text

DRAWS = 4  # timesteps and noises by which each sample's loss is measured
RATIOS = ("norm", "sharpness")
MEANING = {  # of baselines, in a sentence
    "text": "the text embedding",
    "mean": "the mean embedding",
    "other": "another sample's",
    "bicubic": "bicubic",
    "chance": "chance",
    "start": "the start",
    "true": "the true one",
}


class Judged(NamedTuple):
    """A number beside one of its baselines."""

    number: str
    value: float
    baseline: str
    base: float
    better: bool

    def __str__(self) -> str:
        verdict = "better than" if self.better else "NOT better than" if self.value != self.base else "NOT above, equals"
        return f"{self.number} {self.value:.4g}: {verdict} {MEANING.get(self.baseline, self.baseline)} ({self.base:.4g})"


def judge(row: Mapping[str, Any]) -> list[Judged]:
    """Every number of a validated row beside each of its baselines; those that are not finite numbers are left out."""
    known = {name: float(value) for name, value in row.items() if _is_number(value)}
    judged = []
    for name, base in known.items():
        number, slash, baseline = name.partition("/")
        if slash and number in known:
            value = known[number]
            judged.append(Judged(number, value, baseline, base, cost(number, value) < cost(number, base)))
    return judged


def cost(number: str, value: float) -> float:
    """How bad a value is: smaller is better for every number."""
    if number in RATIOS:
        return abs(math.log(max(value, 1e-12)))
    return value if number.startswith(("loss", "error")) else -value


def losses(loss: Callable[[Noise], Losses], noise: Noise, terms: Sequence[str] = ()) -> dict[str, Tensor]:
    """The training loss of each sample at several fixed noises, its timesteps, and some of its terms: rows (b, draws)."""
    seen = [loss(noise.at(f"loss/{k}")) for k in range(DRAWS)]
    rows = {"loss": torch.cat([x.total.float().reshape(len(noise), -1) for x in seen], 1)}
    rows |= {name: torch.cat([x.terms[name].float().reshape(len(noise), -1) for x in seen], 1) for name in terms}
    times = [x.t.reshape(len(noise), -1) for x in seen if x.t is not None]
    return rows | ({"t": torch.cat(times, 1).to(rows["loss"].device)} if times else {})


def mean_losses(rows: Mapping[str, Tensor], T: int | None = None, name: str = "loss") -> dict[str, float]:
    """`loss`, and by timestep quartile `loss_q1` (least noise) to `loss_q4`, of the rows that `losses` gave; or another term."""
    values = rows[name].double()
    means = {name: float(values.mean())}
    if "t" in rows and T is not None:
        quarter = ((rows["t"] - 1) * 4 // T).clamp(0, 3)
        means |= {f"{name}_q{q + 1}": float(values[quarter == q].mean()) for q in range(4)}
    return means


def partners(x: Tensor) -> Tensor:
    """Each row's partner: rows 2k and 2k + 1 in each other's place, the last of an odd number in its own."""
    index = torch.arange(len(x), device=x.device) ^ 1
    return x[index.clamp(max=len(x) - 1)]


def partner_texts(text: Text) -> Text:
    """Each caption's partner."""
    order = partners(torch.arange(len(text.strings))).tolist()
    return Text([text.strings[i] for i in order], *(None if x is None else partners(x) for x in text[1:]))  # type: ignore[arg-type]


def caption_ids(captions: Sequence[str]) -> Int[Tensor, " b"]:
    """A number for each caption, equal for equal ones in every process."""
    digests = (hashlib.blake2b(caption.encode(), digest_size=8).digest() for caption in captions)
    return torch.tensor([int.from_bytes(digest, "little") >> 1 for digest in digests], dtype=torch.int64)


def retrieval(queries: Float[Tensor, "n d"], candidates: Float[Tensor, "n d"], ids: Int[Tensor, " n"]) -> dict[str, float]:
    """R@1 and R@5 by cosine, candidate i belonging to query i; candidates of equal `ids` count as one."""
    groups = ids.unique(return_inverse=True)[1]
    scores = normalize(queries.double(), dim=-1) @ normalize(candidates.double(), dim=-1).T
    rank = ranks(scores, torch.arange(len(queries)), groups)
    return {f"R@{k}": float(recall_at(rank, k).mean()) for k in (1, 5)}


def chance(ids: Int[Tensor, " n"], k: int) -> float:
    """R@k of a guess."""
    return min(1.0, k / len(ids.unique()))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

"""Learning curves at equal parameters: how good diffusion and AR prior are for the training compute they took."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from experiments.emoji.evaluation.measure import Subject
from experiments.figures.priors.contestants import AR, DIFFUSION, TRAIN, fresh, of_prior, ready, train_embeddings, training_flops
from prior import PriorTask
from unclip.data.reader import Embedded
from unclip.files import write_files
from unclip.metrics import ranks, recall_at
from unclip.randomness import Noise
from unclip.training import train
from unclip.types import best_of

FILE = "curve.json"
METRICS = ("cosine", "R@5")
COOL = 0.5  # temperature of the AR prior, beside 1
COOLER = f", temperature {COOL:g}"
CONFIG = TRAIN.replace(decay="constant", warmup=50, ema=0.99, log_every=100, save_every="3600s")
# A constant rate, so that every point of a run is what a shorter run would have ended with.


def embeddings_quality(subject: Subject, drawn: Tensor, rows: Sequence[int]) -> dict[str, Tensor]:
    """Per caption: cosine to the true z_i, and whether that is among the 1 or 5 nearest of all pictures'."""
    every = normalize(subject.embeddings.image_embed, dim=-1)
    scores = normalize(drawn.float().cpu(), dim=-1) @ every.T
    rank = ranks(scores, torch.tensor(list(rows)), subject.twins)
    cosine = torch.cosine_similarity(drawn.float().cpu(), subject.embeddings.image_embed[list(rows)], dim=-1)
    return {"cosine": cosine, "R@1": recall_at(rank, 1), "R@5": recall_at(rank, 5)}


@torch.no_grad()
def heldout_quality(subject: Subject, prior: Any, sampling: Any = None) -> dict[str, float]:
    """Means over all held-out captions, of one draw each."""
    rows = subject.members["heldout"]
    chunk = subject.embeddings.select([subject.data.keys[i] for i in rows])
    assert chunk.text is not None
    contestant = of_prior("", prior, sampling=sampling)
    assert contestant.draw is not None
    drawn = contestant.draw(chunk.text, Noise.of(subject.seed, range(len(rows))).at("prior"), 1)
    results = embeddings_quality(subject, best_of(drawn, chunk.text.embed), rows)
    return {name: float(values.double().mean()) for name, values in results.items()}


def learn(subject: Subject, name: str, seed: int, steps: Sequence[int], run_dir: Path) -> dict[str, Any]:
    """A run's points after each of `steps`; goes on where it was cut off."""
    path = run_dir / FILE
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"points": []}
    known = {point["steps"] for point in record["points"]}
    missing = [k for k in sorted(steps) if k not in known]
    if not missing:
        return record
    prior, data = fresh(subject, name, seed), Embedded(train_embeddings(subject), name)
    per_sample = training_flops(subject, prior)
    record |= {"prior": name, "seed": seed, "parameters": sum(p.numel() for p in prior.parameters()), "flops": per_sample}
    for k in missing:
        config = CONFIG.replace(steps=k, seed=seed)
        weights = train(PriorTask(prior), data, config, run_dir).ema
        prior.load_state_dict(weights)  # the run goes on from its own state, which lies in its folder
        quality = heldout_quality(subject, ready(subject, prior.eval()))
        if name == AR:  # which gains much by drawing less from the tails
            cooler = heldout_quality(subject, prior, prior.config.sampling.replace(temperature=COOL))
            quality |= {f"{key}{COOLER}": value for key, value in cooler.items()}
        record["points"].append({"steps": k, "flops": per_sample * k * config.batch, **quality})
        write_files([(path, (json.dumps(record, indent=1) + "\n").encode())])
        print(f"{name}, seed {seed}, {k} steps: " + ", ".join(f"{key} {value:.3f}" for key, value in quality.items()), flush=True)
    return record


def compare(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Who is ahead at equal training FLOPs, and the paper's sentence answered.

    At each budget that both reached, curves are read on a line between their points over log FLOPs; the difference of the
    seeds' means (diffusion less AR, the latter at the better of two temperatures) has a two-sided 95 % t interval.  "yes"
    where it is above 0 at the largest common budget in both numbers, "no" where it is below in both, else "undecided".
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {AR: [], DIFFUSION: []}
    for record in records:
        by_name[record["prior"]].append(record)
    if min(map(len, by_name.values())) < 2:
        raise ValueError("a comparison needs at least two seeds of each prior")
    reach = [[point["flops"] for point in record["points"]] for record in records]
    low, high = max(min(r) for r in reach), min(max(r) for r in reach)
    budgets = [math.exp(x) for x in np.linspace(math.log(low), math.log(high), 6)]
    rows = []
    for budget in budgets:
        row: dict[str, Any] = {"flops": budget}
        for metric in METRICS:
            a, b = ([_at(record["points"], budget, metric) for record in by_name[name]] for name in (DIFFUSION, AR))
            mean, half = _difference(a, b)
            row[metric] = {
                "diffusion": sum(a) / len(a), "AR": sum(b) / len(b), "difference": mean, "low": mean - half, "high": mean + half
            }  # fmt: skip
        rows.append(row)
    last = rows[-1]
    verdict = "undecided"
    if all(last[metric]["low"] > 0 for metric in METRICS):
        verdict = "yes"
    elif all(last[metric]["high"] < 0 for metric in METRICS):
        verdict = "no"
    sizes = {name: runs[0]["parameters"] for name, runs in by_name.items()}
    return {"verdict": verdict, "parameters": sizes, "budgets": rows}


def _at(points: Sequence[Mapping[str, float]], flops: float, metric: str) -> float:
    """A curve read at `flops`, on the line between its points over log FLOPs; of two temperatures the better one."""
    ordered = sorted(points, key=lambda point: point["flops"])
    logs = [math.log(point["flops"]) for point in ordered]
    values = [max(point[metric], point.get(f"{metric}{COOLER}", -math.inf)) for point in ordered]
    return float(np.interp(math.log(flops), logs, values))


def _difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Mean of a less mean of b, and half of its two-sided 95 % interval (Welch's t)."""
    va, vb = (_variance(x) / len(x) for x in (a, b))
    mean = sum(a) / len(a) - sum(b) / len(b)
    if va + vb == 0:
        return mean, 0.0
    degrees = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return mean, _t95(degrees) * math.sqrt(va + vb)


def _variance(x: Sequence[float]) -> float:
    mean = sum(x) / len(x)
    return sum((value - mean) ** 2 for value in x) / (len(x) - 1)


def _t95(degrees: float) -> float:
    """The 97.5 % quantile of Student's t, between whole degrees the larger one."""
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    whole = max(1, int(degrees))
    return table[whole - 1] if whole <= len(table) else 1.96 + 2.4 / whole

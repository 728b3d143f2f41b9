"""What is measured of a prior: its embeddings against the true ones, the pictures drawn from them, and its cost."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from experiments.emoji.evaluation import judge as judges
from experiments.emoji.evaluation.measure import CHUNK, Numbers, Subject, judged, nearest
from experiments.figures.priors.contestants import Contestant
from experiments.figures.priors.curves import embeddings_quality
from unclip.metrics import interval, recall_at
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.trees import move
from unclip.types import Cond, Text

SPREAD = 8  # draws per caption


def texts(subject: Subject, rows: Sequence[int]) -> Text:
    """The captions as the pipeline's CLIP reads them."""
    _, text = subject.embeddings.rows([subject.data.keys[i] for i in rows])
    if text is None:
        raise ValueError("these data have no captions: there is nothing for a prior to read")
    return text


@torch.no_grad()
def embed(subject: Subject, contestant: Contestant, rows: Sequence[int]) -> Tensor | None:
    """The embedding that the decoder gets for each caption (n, d); the noise is that of `UnCLIP.generate` at the same seed."""
    noise = Noise.of(subject.seed, range(len(rows))).at("prior")
    return contestant.embed(texts(subject, rows), noise)


@torch.no_grad()
def of_embeddings(subject: Subject, contestant: Contestant, drawn: Tensor, rows: Sequence[int]) -> Numbers:
    """Cosine and retrieval, length, and how much draws of a caption agree."""
    assert contestant.draw is not None
    results = {name: interval(values) for name, values in embeddings_quality(subject, drawn, rows).items()}
    true = subject.embeddings.image_embed[list(rows)]
    results["norm / true norm"] = interval(drawn.norm(dim=1) / true.norm(dim=1))
    noise = Noise.of(subject.seed, range(len(rows))).at("spread")
    draws = contestant.draw(texts(subject, rows), noise, SPREAD).float().cpu()
    unit = torch.nn.functional.normalize(draws, dim=-1)
    first, second = torch.triu_indices(SPREAD, SPREAD, offset=1)
    results[f"mean cosine of {SPREAD} draws"] = interval((unit[:, first] * unit[:, second]).sum(-1).mean(1))
    return results


@torch.no_grad()
def decode(
    subject: Subject, image_embed: Tensor | None, rows: Sequence[int], sampling: Sampling | None = None, first: int = 0
) -> Tensor:
    """Pictures (n, 3, s, s) for embeddings and captions; picture k of a seed has the same noise whatever the embeddings."""
    decoder, pictures = subject.pipe.decoder, []
    for start in range(0, len(rows), CHUNK):
        part = slice(start, min(start + CHUNK, len(rows)))
        noise = Noise.of(subject.seed, range(first + part.start, first + part.stop)).at("decoder")
        text = texts(subject, rows[part]) if "text" in decoder.takes else None
        cond = Cond(None if image_embed is None else image_embed[part].to(subject.pipe.device), text)
        pictures.append(decoder.sample(move(cond, subject.pipe.device), noise=noise, sampling=sampling).float().cpu())
    return torch.cat(pictures)


def of_images(subject: Subject, pictures: Tensor, rows: Sequence[int]) -> Numbers:
    """Is the true picture the nearest, and what the judge says."""
    rank = nearest(pictures, subject.images, rows, subject.twins)
    results = {f"nearest picture top-{k}": interval(recall_at(rank, k)) for k in (1, 5)}
    return results | {name.removeprefix(", "): value for name, value in judged(subject, pictures, rows, "").items()}


@torch.no_grad()
def wins(subject: Subject, pictures: Tensor, others: Tensor, rows: Sequence[int]) -> Numbers:
    """How often a picture is nearer the truth than the other one of the same caption; a tie is half a win."""
    true = subject.images[list(rows)]
    apart = [(x - true).double().square().flatten(1).mean(1) for x in (pictures, others)]
    results = {"wins in RGB": interval(_wins(-apart[0], -apart[1]))}
    if subject.judge is not None:
        real, *seen = (judges.features(subject.judge, x) for x in (true, pictures, others))
        likeness = [torch.cosine_similarity(real, x, dim=-1) for x in seen]
        results["wins before the judge"] = interval(_wins(*likeness))
    return results


@torch.no_grad()
def seconds(subject: Subject, contestant: Contestant, batch: int, runs: int = 5) -> float | None:
    """Wall time per embedding of a batch, all candidates drawn; median of several."""
    if contestant.draw is None:
        return None
    captions = subject.members["heldout"]
    text = texts(subject, [captions[i % len(captions)] for i in range(batch)])
    times = []
    for run in range(runs + 1):
        began = time.perf_counter()
        contestant.embed(text, Noise.of(run, range(batch)).at("prior"))
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[runs // 2] / batch


def _wins(a: Tensor, b: Tensor) -> Tensor:
    return (a > b).double() + 0.5 * (a == b).double()

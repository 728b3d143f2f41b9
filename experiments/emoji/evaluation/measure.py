"""What `evaluate` measures, one function per section.  Each returns named numbers with their n and interval.

"Nearest" is the plain RGB distance of 64-pixel pictures among all 3,664 emoji: an eye that no training has shaped.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from experiments.emoji.data.emoji_data import EmojiData
from experiments.emoji.evaluation import judge as judges
from experiments.emoji.evaluation.siblings import groups_of, motif
from unclip.checkpoint import fingerprint
from unclip.clip import CLIP
from unclip.data.embeddings import Embeddings, precompute
from unclip.metrics import (
    FRECHET_LEAST,
    Interval,
    clip_score,
    frechet_distance,
    interval,
    paired_mmd,
    precision_recall,
    ranks,
    recall_at,
)
from unclip.pipelines.unclip import UnCLIP
from unclip.randomness import Noise
from unclip.types import Cond, Text, best_of

Numbers = dict[str, Interval]
UNSEEN = (
    "could you paint a {} for me", "an elegant {}", "{} made of wood", "sketch of one {} with clouds behind", "{}, watercolor",
    "an illustration showing a {}", "gigantic {} standing alone", "{} and sunshine",
)  # fmt: skip
CHUNK = 25  # captions drawn between two steps of a progress bar


class Subject:
    """A pipeline and what it is held against: all emoji at the decoder's size, their embeddings, the judge, the groups."""

    def __init__(self, model: str | Path | UnCLIP, seed: int = 0, judge: Path | None = None):
        self.pipe, self.seed = model if isinstance(model, UnCLIP) else UnCLIP.from_pretrained(model), seed
        self.judge: CLIP | None = judges.load(judge, strange_to=self.pipe.clip)
        self.data = EmojiData("all", self.pipe.decoder.image_size)
        images = self.data.batch(range(len(self.data))).images
        assert images is not None
        self.images = images
        train = set(EmojiData("train", self.pipe.decoder.image_size).keys)
        rows = {"train": [i for i, key in enumerate(self.data.keys) if key in train]}
        self.members = rows | {"heldout": [i for i, key in enumerate(self.data.keys) if key not in train]}
        self.twins = groups_of([picture.numpy().tobytes() for picture in images])  # one picture under several names
        self.siblings = groups_of([motif(caption) for caption in self.data.captions])
        self._embeddings: Embeddings | None = None

    @property
    def weights(self) -> str:
        """A short name for all components' weights."""
        return "-".join(fingerprint(part)[:6] for part in self.pipe.components.values())

    @property
    def embeddings(self) -> Embeddings:
        """The pipeline's own CLIP's, of all emoji."""
        if self._embeddings is None:
            self._embeddings = precompute(self.pipe.clip, self.data)
        return self._embeddings

    def rows(self, split: str, n: int) -> list[int]:
        """The first n of a split by hash."""
        members = self.members[split]
        captions = [self.data.captions[i] for i in members]
        return [members[i] for i in by_hash(captions, captions, n)]

    def captions(self, rows: Sequence[int]) -> list[str]:
        return [self.data.captions[i] for i in rows]


def by_hash(keys: Sequence[str], captions: Sequence[str], n: int) -> list[int]:
    """The first n samples in the order of their caption's SHA-1: a choice that nobody made."""
    order = sorted(range(len(keys)), key=lambda i: hashlib.sha1(captions[i].encode()).hexdigest())
    return order[:n]


def retrieval(embeddings: Embeddings, rows: Sequence[int], groups: Int[Tensor, " m"]) -> Numbers:
    """Text to image over all pictures, for the captions `rows`; equal pictures count as one."""
    assert embeddings.text is not None
    return _retrieved(embeddings.text.embed[list(rows)], embeddings, rows, groups)


def _retrieved(text: Float[Tensor, "n d"], embeddings: Embeddings, rows: Sequence[int], groups: Int[Tensor, " m"]) -> Numbers:
    scores = normalize(text, dim=-1) @ normalize(embeddings.image_embed, dim=-1).T
    rank = ranks(scores, torch.tensor(rows), groups)
    return {f"CLIP, text to image, top-{k}": interval(recall_at(rank, k)) for k in (1, 5)}


@torch.no_grad()
def prior_cosines(subject: Subject, rows: Sequence[int]) -> Numbers:
    """Cosine of drawn to true embeddings, beside what costs nothing: the text embedding, the mean, another caption's draw."""
    pipe, embeddings = subject.pipe, subject.embeddings
    assert embeddings.text is not None
    text = pipe.clip.encode_text(subject.captions(rows))
    true, mean = embeddings.image_embed[list(rows)], embeddings.image_embed[subject.members["train"]].mean(0, keepdim=True)
    drawn = _embeddings(subject, text)
    compared = {
        "prior, cosine to the true embedding": drawn,
        "  another caption's draw": drawn.roll(1, dims=0),
        "  the text embedding": text.embed,
        "  the mean embedding": mean.expand_as(true),
    }
    return {name: interval(torch.cosine_similarity(x, true, dim=-1)) for name, x in compared.items()}


def _embeddings(subject: Subject, text: Text) -> Float[Tensor, "n d"]:
    """What the chain's prior draws, from the chain's own noise."""
    pipe, noise = subject.pipe, Noise.of(subject.seed, range(len(text.strings))).at("prior")
    return best_of(pipe.prior.sample(text, noise=noise, n=pipe.candidates), text.embed)


@torch.no_grad()
def draw(subject: Subject, rows: Sequence[int]) -> dict[str, Float[Tensor, "n 3 s s"]]:
    """The pictures of the full chain, and the decoder's with the true embedding in place of the prior's, from equal noise."""
    pipe, size = subject.pipe, subject.pipe.decoder.image_size
    drawn: dict[str, list[Tensor]] = {"full chain": [], "decoder alone (true embedding)": []}
    for start, part in _chunks(rows, "pictures"):
        captions, noise = subject.captions(part), Noise.of(subject.seed, range(start, start + len(part)))
        text = pipe.clip.encode_text(captions) if "text" in pipe.decoder.takes else None
        cond = Cond(subject.embeddings.image_embed[part], text)
        drawn["decoder alone (true embedding)"].append(pipe.decoder.sample(cond, noise=noise.at("decoder")).cpu())
        drawn["full chain"].append(pipe.generate(captions, seed=subject.seed, first=start, size=size).images)
    return {name: torch.cat(images) for name, images in drawn.items()}


def nearest(
    images: Float[Tensor, "n 3 s s"], every: Float[Tensor, "m 3 s s"], rows: Sequence[int], groups: Int[Tensor, " m"]
) -> Int[Tensor, " n"]:
    """Rank (from 0) of the true picture among all by RGB distance; pictures of one group count as one."""
    distance = torch.cdist(images.flatten(1), every.flatten(1))
    return ranks(-distance, torch.tensor(rows), groups)


def recognised(subject: Subject, images: Float[Tensor, "n 3 s s"], rows: Sequence[int], name: str) -> Numbers:
    """Is the drawn picture nearest the true one?"""
    found: Numbers = {}
    for told, groups in (("", subject.twins), (", siblings as one", subject.siblings)):
        rank = nearest(images, subject.images, rows, groups)
        found |= {f"{name}, nearest picture top-{k}{told}": interval(recall_at(rank, k)) for k in (1, 5)}
    return found


def judged(subject: Subject, images: Float[Tensor, "n 3 s s"], rows: Sequence[int], name: str) -> Numbers:
    """The judge's view of pictures against the true ones of the same captions."""
    if subject.judge is None:
        return {}
    real, drawn = (judges.features(subject.judge, x) for x in (subject.images[list(rows)], images))
    with torch.no_grad():
        text = subject.judge.encode_text(subject.captions(rows)).embed.cpu()
    found: Numbers = {f"{name}, KID": paired_mmd(real, drawn)}
    if len(rows) > 3:
        flags = precision_recall(real, drawn)
        found[f"{name}, precision"] = interval(flags.precision.double())
        found[f"{name}, recall"] = interval(flags.recall.double())
    found[f"{name}, CLIP score"] = interval(clip_score(drawn, text))
    if len(rows) >= FRECHET_LEAST:
        value = frechet_distance(real, drawn)
        found[f"{name}, Frechet distance (no interval)"] = Interval(value, value, value, len(rows))
    return found


def pictures(subject: Subject, split: str, rows: Sequence[int]) -> Numbers:
    """Chain and decoder alone by both eyes; at the end what the judge says of true pictures."""
    found: Numbers = {}
    for name, images in draw(subject, rows).items():
        found |= recognised(subject, images, rows, name) | judged(subject, images, rows, name)
    others = [i for i in subject.rows(split, 2 * len(rows)) if i not in set(rows)]
    if len(others) == len(rows):  # of what a perfect but uninvited painter would get
        found |= judged(subject, subject.images[others], rows, "true pictures of other captions")
    real = judged(subject, subject.images[list(rows)], rows, "true pictures")
    return found | {name: value for name, value in real.items() if name.endswith("CLIP score")}


@torch.no_grad()
def other_words(subject: Subject, rows: Sequence[int]) -> Numbers:
    """What is left of CLIP, prior and chain when people do not know the captions: words around them that no training had."""
    pipe, embeddings = subject.pipe, subject.embeddings
    said = [UNSEEN[i % len(UNSEEN)].format(caption) for i, caption in enumerate(subject.captions(rows))]
    text, true = pipe.clip.encode_text(said), embeddings.image_embed[list(rows)]
    retrieved = _retrieved(text.embed, embeddings, rows, subject.twins)
    found = {f"in other words, {name}": value for name, value in retrieved.items()}
    cosine = torch.cosine_similarity(_embeddings(subject, text), true, dim=-1)
    found["in other words, prior, cosine to the true embedding"] = interval(cosine)
    size, images = pipe.decoder.image_size, []
    for start, part in _chunks(range(len(rows)), "other words"):
        made = pipe.generate([said[i] for i in part], seed=subject.seed, first=start, size=size)
        images.append(made.images)
    return found | recognised(subject, torch.cat(images), rows, "in other words, full chain")


def diversity(subject: Subject, rows: Sequence[int], draws: int) -> Numbers:
    """How much several pictures of one caption differ, beside how much pictures of different captions do."""
    if draws < 2:
        raise ValueError(f"draws is {draws}; diversity compares at least 2 pictures of a caption")
    size, sets = subject.pipe.decoder.image_size, []
    for start, part in _chunks(rows, f"{draws} draws", max(1, CHUNK // draws)):
        made = subject.pipe.generate(subject.captions(part), n=draws, seed=subject.seed + 1, first=start * draws, size=size)
        sets += list(made.images.split(draws))
    truth = subject.images[list(rows)]
    found: Numbers = {}
    compared = {f"{draws} draws of a caption": sets, "true pictures of other captions": _rotations(truth, draws)}
    for name, by_caption in compared.items():
        found[f"diversity, RMS pixel difference, {name}"] = interval([_spread(x.flatten(1), "rms") for x in by_caption])
        if subject.judge is not None:
            seen = [judges.features(subject.judge, x) for x in by_caption]
            found[f"diversity, 1 - judge's cosine, {name}"] = interval([_spread(x, "cosine") for x in seen])
    return found


def cost(model: str, runs: int = 3) -> Numbers:
    """Wall time and peak memory of `unclip generate`, a process of its own each time."""
    import tempfile

    from experiments.command import command

    found: Numbers = {}
    sizes = UnCLIP.from_pretrained(model).sizes
    with tempfile.TemporaryDirectory() as folder:
        for size in (sizes[0], sizes[-1]):
            measured = [command(model, size, "float32", Path(folder) / "picture.png") for _ in range(runs)]
            found[f"unclip generate, {size} px, seconds"] = interval([run.seconds for run in measured])
            found[f"unclip generate, {size} px, peak GB"] = interval([run.gigabytes for run in measured])
    return found


def _spread(x: Float[Tensor, "n d"], kind: str) -> float:
    """Mean over the pairs of rows: RMS difference, or 1 - cosine."""
    first, second = torch.triu_indices(len(x), len(x), offset=1)
    if kind == "rms":
        return float((x[first] - x[second]).square().mean(1).sqrt().mean())
    return float(1 - torch.cosine_similarity(x[first], x[second], dim=1).mean())


def _rotations(x: Tensor, n: int) -> list[Tensor]:
    """For each row a set of n different rows, itself and those after it."""
    return [x[[(i + j) % len(x) for j in range(min(n, len(x)))]] for i in range(len(x))]


def _chunks(rows: Sequence[int], title: str, size: int = CHUNK) -> Iterator[tuple[int, list[int]]]:
    with tqdm(total=len(rows), desc=title, file=sys.stderr, disable=None) as bar:
        for start in range(0, len(rows), size):
            yield start, list(rows[start : start + size])
            bar.update(len(rows[start : start + size]))

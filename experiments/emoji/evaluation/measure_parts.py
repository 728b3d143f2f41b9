"""What a decoder or an upsampler is worth with no pipeline around it: numbers per picture, for comparing trainings in pairs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from experiments.emoji.data.emoji_data import EmojiData
from experiments.emoji.evaluation.measure import Subject, nearest
from experiments.emoji.evaluation.measure_upsamplers import pairs
from experiments.emoji.evaluation.siblings import groups_of, motif
from unclip.images import eight_bit
from unclip.metrics import psnr, recall_at, sharpness
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.types import Cond
from upsamplers.filters import resize

LEVELS = (0.2, 0.4, 0.6, 0.8, 0.95)  # timesteps at which predictions are compared, as parts of T
AT_ONCE = 20
Values = dict[str, dict[str, Tensor]]  # by split and name: one number (n) per picture, the same pictures in the same order


class Ground(Subject):
    """All pictures with the embeddings that decoders train on; no pipeline and no judge."""

    def __init__(self, data: EmojiData, train: Sequence[str], seed: int = 0):
        """train: keys of what was trained on; the others are held out."""
        self.data, self.seed, self.judge, known = data, seed, None, set(train)
        images = data.batch(range(len(data))).images
        assert images is not None and data.embeddings is not None
        self.images, self._embeddings = images, data.embeddings
        self.members = {
            "train": [i for i, key in enumerate(data.keys) if key in known],
            "heldout": [i for i, key in enumerate(data.keys) if key not in known],
        }
        self.twins = groups_of([picture.numpy().tobytes() for picture in images])
        self.siblings = groups_of([motif(caption) for caption in data.captions])

    def cond(self, rows: Sequence[int], takes: Sequence[str]) -> Cond:
        image_embed, text = self.embeddings.rows([self.data.keys[i] for i in rows])
        return Cond(image_embed, text if "text" in takes else None)


class Cost:
    """Evaluations of a network, per picture, and the CPU seconds of the blocks in which they were counted."""

    def __init__(self, network: nn.Module):
        self.network, self.evaluations, self.seconds = network, 0, 0.0

    def __enter__(self) -> Cost:
        self._hook = self.network.register_forward_hook(self._count)
        self._began = time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
        self.seconds += time.process_time() - self._began

    def _count(self, module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        self.evaluations += len(given[0])


@torch.no_grad()
def decoder(ground: Ground, model: Any, n: int, steps: int) -> tuple[Values, Cost]:
    """From true embeddings: are the pictures drawn nearest the true ones, how far off are they, how far off is each guess?

    n: pictures of each split.  steps: of the decoder's own sampling, which is taken as it is and without guidance.
    """
    own = model.config.sampling.replace(steps=steps)
    found: Values = {}
    cost = Cost(model.network)
    for split in ("heldout", "train"):
        rows = ground.rows(split, n)
        found[split] = guesses(ground, model, rows) if split == "heldout" else {}
        for name, sampling in (("guided", own), ("unguided", own.replace(guidance=1.0))):
            with cost:
                images = draw(ground, model, rows, sampling)
            found[split] |= recognised(ground, images, rows, name)
    return found, cost


def draw(ground: Ground, model: Any, rows: Sequence[int], sampling: Sampling) -> Float[Tensor, "n 3 s s"]:
    """A picture for each true embedding, from equal noise whatever the model."""
    noise, drawn = Noise.of(ground.seed, range(len(rows))).at("decoder"), []
    for start in range(0, len(rows), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        cond = ground.cond(rows[part], model.takes)
        drawn.append(model.sample(cond, noise=noise[part], sampling=sampling).cpu())
    return torch.cat(drawn)


def recognised(ground: Ground, images: Float[Tensor, "n 3 s s"], rows: Sequence[int], name: str) -> dict[str, Tensor]:
    """Per picture: is the true one the nearest, or among the five nearest; RMS distance to it."""
    rank = nearest(images, ground.images, rows, ground.twins)
    related = nearest(images, ground.images, rows, ground.siblings)
    return {
        f"{name}, nearest picture top-1": recall_at(rank, 1),
        f"{name}, nearest picture top-5": recall_at(rank, 5),
        f"{name}, nearest picture top-5, siblings as one": recall_at(related, 5),
        f"{name}, RMS to the true picture": rms(images - ground.images[list(rows)]),
    }


def guesses(ground: Ground, model: Any, rows: Sequence[int]) -> dict[str, Tensor]:
    """RMS error of the predicted x0 at fixed timesteps, from equal noise: the one scale on which x0, eps and v compare."""
    found, images, schedule = {}, ground.images[list(rows)], model.schedule
    for level in LEVELS:
        step = round(level * schedule.T)
        noise = Noise.of(ground.seed, range(len(rows))).at(f"guess/{step}").normal(images.shape[1:])
        errors = []
        for start in range(0, len(rows), AT_ONCE):
            x0, some = images[start : start + AT_ONCE], rows[start : start + AT_ONCE]
            t = torch.full((len(x0),), step)
            alpha, sigma = schedule.at(t, x0)
            denoise = model.denoise(ground.cond(some, model.takes), len(x0), Sampling(threshold="static"))
            errors.append(rms(denoise(alpha * x0 + sigma * noise[start : start + AT_ONCE], t).x0 - x0))
        found[f"RMS error of x0 at t = {step}"] = torch.cat(errors)
    return found | {"RMS error of x0, mean over t": torch.stack(list(found.values())).mean(0)}


@torch.no_grad()
def upsampler(seed: int, model: Any, n: int, low_size: int, size: int) -> tuple[Values, Cost]:
    """On true small held-out pictures, rounded to 8 bits: PSNR beside bicubic's, gradient magnitude beside the truth's."""
    rows: list[dict[str, float]] = []
    cost = Cost(model.network)
    for row, low, true in pairs(n, low_size, size):
        with cost:
            made = eight_bit(model.sample(low, noise=Noise.of(seed, row)).cpu())
        bicubic = eight_bit(resize(low, (size, size)))
        rows.append(
            {
                "PSNR, dB": float(psnr(made, true)),
                "PSNR less bicubic's, dB": float(psnr(made, true) - psnr(bicubic, true)),
                "gradient magnitude / truth's": float(sharpness(made) / sharpness(true)),
            }
        )
    return {"heldout": {name: torch.tensor([row[name] for row in rows]).double() for name in rows[0]}}, cost


def rms(error: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    return error.double().square().flatten(1).mean(1).sqrt()

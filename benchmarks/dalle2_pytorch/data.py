"""What the learners of `training.py` learn from and are measured against; noise in its place for speed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.dalle2_pytorch.jobs import Bench, Job
from benchmarks.dalle2_pytorch.settings import Data
from experiments.emoji.data.emoji_data import EmojiData
from experiments.emoji.evaluation.measure import nearest
from experiments.emoji.evaluation.measure_parts import Ground, rms
from experiments.figures.priors.curves import embeddings_quality
from unclip.checkpoint import fingerprint
from unclip.data.embeddings import precompute
from unclip.images import eight_bit
from unclip.metrics import recall_at
from unclip.pipelines.unclip import UnCLIP

SYNTHETIC = 256  # rows of made-up data for speed


def synthetic(data: Data, path: Path, n: int = SYNTHETIC) -> None:
    """Rows of noise of some shapes, every position of a caption real."""
    generator = torch.Generator().manual_seed(0)
    text = {
        "tokens": torch.ones(n, data.context, dtype=torch.long),
        "embed": torch.randn(n, data.embed, generator=generator),
        "states": torch.randn(n, data.context, data.states, generator=generator),
        "mask": torch.ones(n, data.context, dtype=torch.bool),
    }
    tensors = {f"text.{name}": x for name, x in text.items()}
    tensors["image_embed"] = torch.randn(n, data.embed, generator=generator)
    shape = (n, 3, data.pixels, data.pixels)
    tensors["pictures"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    tensors["train"] = torch.ones(n, dtype=torch.bool)
    names = [str(i) for i in range(n)]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"keys": json.dumps(names), "strings": json.dumps(names)})


class Emoji:
    """The emoji with the shipped CLIP's answers: what both systems learn from, and what they are measured against."""

    def __init__(self, path: Path):
        """path: of the material that workers read, which is written."""
        clip = UnCLIP.from_pretrained("emoji").clip
        self.clip = fingerprint(clip)
        embeddings = precompute(clip, EmojiData("all", 64))
        self.ground = Ground(EmojiData("all", 64, embeddings=embeddings), EmojiData("train", 64).keys)
        self.path = path
        self._write()

    def _write(self) -> None:
        """For both workers: raw embeddings, text states, pictures of 8 bits, and which rows are trained on."""
        embeddings = self.ground.embeddings
        assert embeddings.text is not None
        train = torch.zeros(len(embeddings), dtype=torch.bool)
        train[self.ground.members["train"]] = True
        tensors = {f"text.{name}": getattr(embeddings.text, name) for name in ("tokens", "embed", "states", "mask")}
        tensors |= {"image_embed": embeddings.image_embed, "train": train}
        tensors["pictures"] = ((self.ground.images + 1) * 127.5).round().to(torch.uint8)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: x.contiguous() for name, x in tensors.items()}
        aside = self.path.with_suffix(".part")
        save_file(tensors, aside, {"keys": json.dumps(embeddings.keys), "strings": json.dumps(embeddings.text.strings)})
        os.replace(aside, self.path)

    def bench(self, captions: int) -> Bench:
        """Embeddings are drawn for all held-out captions, pictures for the first by hash."""
        rows = {"prior": self.ground.members["heldout"], "decoder": self.ground.rows("heldout", captions)}
        return Bench(self.path, self.clip, rows)

    def measure(self, job: Job, drawn: Path) -> dict[str, dict[str, list[float]]]:
        """Per sample, by set of weights: the numbers of `training_tables`."""
        return {name: self.numbers(job.spec["stage"], x, job.spec["rows"]) for name, x in load_file(drawn).items()}

    def numbers(self, stage: str, drawn: Any, rows: list[int]) -> dict[str, list[float]]:
        if stage == "prior":
            results = embeddings_quality(self.ground, drawn, rows)
        else:
            drawn, every = eight_bit(drawn.clamp(-1, 1)), self.ground.images
            rank = nearest(drawn, every, rows, self.ground.twins)
            related = nearest(drawn, every, rows, self.ground.siblings)
            results = {
                "nearest top-1": recall_at(rank, 1),
                "nearest top-5": recall_at(rank, 5),
                "top-5, siblings as one": recall_at(related, 5),
                "RMS": rms(drawn - every[rows]),
            }
        return {name: [round(v, 5) for v in values.double().tolist()] for name, values in results.items()}

    def costless(self) -> dict[str, dict[str, float]]:
        """What takes no training."""
        embeddings, rows = self.ground.embeddings, self.ground.members["heldout"]
        assert embeddings.text is not None
        mean = embeddings.image_embed[self.ground.members["train"]].mean(0, keepdim=True).expand(len(rows), -1)
        results: dict[str, float] = {}
        for name, x in (("the text embedding", embeddings.text.embed[rows]), ("the mean embedding", mean)):
            numbers = self.numbers("prior", x, rows)
            results |= {f"{name}, {metric}": sum(v) / len(v) for metric, v in numbers.items() if metric != "R@1"}
        return {"prior": results, "decoder": {"any five pictures, nearest top-5": 5 / len(self.ground.images)}}

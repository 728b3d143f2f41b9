"""Pictures and captions that priors are compared on: the emoji, or two folders of anybody's own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.emoji import judge as judges
from experiments.emoji.measure import Subject
from experiments.emoji.siblings import groups_of
from experiments.figures import trained_on_emoji
from unclip.clip.preprocess import fit_square
from unclip.data.embeddings import Embeddings
from unclip.data.order import Data
from unclip.pipeline import UnCLIP
from unclip.randomness import Noise
from unclip.types import Batch


class Folders(Subject):
    """A `Subject` of captioned pictures in folders (`unclip.data.image_text.ImageText`): trained on, and held out."""

    def __init__(self, pipe: UnCLIP, train: Path, heldout: Path, seed: int = 0, judge: Path | None = None):
        from unclip.data.image_text import ImageText

        self.pipe, self.seed = pipe, seed
        self.judge = judges.load(judge, strange_to=pipe.clip) if judge else None
        size = max(pipe.clip.image_size, pipe.decoder.image_size)
        self.data: Joined = Joined({"train": ImageText(train, size), "heldout": ImageText(heldout, size)})  # type: ignore[assignment]
        images = [fit_square(self.data.picture(i), pipe.decoder.image_size) for i in range(len(self.data))]
        self.images = torch.cat(images)
        cut = len(self.data.parts["train"])
        self.members = {"train": list(range(cut)), "heldout": list(range(cut, len(self.data)))}
        self.twins = self.siblings = groups_of([picture.numpy().tobytes() for picture in self.images])
        self._embeddings = None


class Joined:
    """Two data sets one after the other, told apart by what precedes their keys."""

    def __init__(self, parts: dict[str, Data]):
        self.parts = parts
        self.keys = [f"{name}/{key}" for name, data in parts.items() for key in data.keys]
        self.captions = [caption for data in parts.values() for caption in _captions(data)]

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        """The samples, each unchanged: `noise` would move or caption them otherwise, which no comparison wants."""
        images = torch.cat([self.picture(i) for i in indices])
        return Batch([self.keys[i] for i in indices], images, [self.captions[i] for i in indices])

    def picture(self, index: int) -> torch.Tensor:
        for data in self.parts.values():
            if index < len(data):
                images = data.batch([index]).images
                assert images is not None
                return images
            index -= len(data)
        raise IndexError(index)


def _captions(data: Data) -> list[str]:
    first: list[str] = []
    for i in range(len(data)):
        captions = data.batch([i]).captions
        first.append(captions[0] if captions else "")
    return first


class Embedded:
    """Embeddings as training data for a prior."""

    def __init__(self, embeddings: Embeddings):
        self.embeddings, self.keys = embeddings, embeddings.keys

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        return self.embeddings.join(Batch([self.keys[i] for i in indices]))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="captioned pictures trained on (default: the emoji)")
    parser.add_argument("--heldout", type=Path, metavar="FOLDER", help="captioned pictures held out, with --data")
    parser.add_argument("--judge", type=Path, help="folder of the judging CLIP (emoji: made by experiments.emoji.judge)")


def subject_of(pipe: UnCLIP, options: argparse.Namespace) -> Subject:
    """What the options name; ValueError where the model's own data are not the emoji and none were named."""
    if (options.data is None) != (options.heldout is None):
        raise ValueError("--data and --heldout belong together: pictures trained on, and pictures held out")
    if options.data is not None:
        return Folders(pipe, options.data, options.heldout, options.seed, options.judge)
    if not trained_on_emoji(pipe):
        raise ValueError(f"the model {pipe.name!r} was not trained on the emoji: name its data with --data and --heldout")
    return Subject(pipe, options.seed, options.judge)

"""Pictures and captions that priors are compared on: the emoji, or two sources of anybody's own."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from experiments.emoji.evaluation import judge as judges
from experiments.emoji.evaluation.measure import CHUNK, Subject
from experiments.emoji.evaluation.siblings import groups_of
from experiments.figures.common import trained_on_emoji
from unclip.clip.preprocess import fit_square
from unclip.data.mix import Mix
from unclip.data.open import open_data
from unclip.data.reader import Embedded, Reader
from unclip.pipelines.unclip import UnCLIP


class Own(Subject):
    """A `Subject` of anybody's captioned pictures, as `unclip.data.open.open_data` takes them: trained on, and held out."""

    def __init__(self, pipe: UnCLIP, train: str, heldout: str, seed: int = 0, judge: Path | None = None):
        self.pipe, self.seed = pipe, seed
        self.judge = judges.load(judge, strange_to=pipe.clip) if judge else None
        size = max(pipe.clip.image_size, pipe.decoder.image_size)
        self.data: Both = Both(open_data(train, size), open_data(heldout, size))  # type: ignore[assignment]
        pieces = [self.data.batch(range(i, min(i + CHUNK, len(self.data)))).images for i in range(0, len(self.data), CHUNK)]
        self.images = torch.cat([fit_square(images, pipe.decoder.image_size) for images in pieces if images is not None])
        cut = len(self.data.readers[0])
        self.members = {"train": list(range(cut)), "heldout": list(range(cut, len(self.data)))}
        self.twins = self.siblings = groups_of([picture.numpy().tobytes() for picture in self.images])
        self._embeddings = None


class Both(Mix):
    """Two data sets one after the other, with the first caption of each sample at hand."""

    def __init__(self, train: Reader | Embedded | Mix, heldout: Reader | Embedded | Mix):
        if not isinstance(train, Reader) or not isinstance(heldout, Reader):
            raise ValueError("--data and --heldout are captioned pictures: a folder, a table or tar shards")
        super().__init__([train, heldout], ["train", "heldout"])
        self.captions = [part.source.captions(row)[0] for part in (train, heldout) for row in part.rows]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="SOURCE", help="captioned pictures trained on, of any kind (default: the emoji)")
    parser.add_argument("--heldout", metavar="SOURCE", help="captioned pictures held out, with --data")
    parser.add_argument("--judge", type=Path, help="folder of the judging CLIP (of emoji: experiments.emoji.evaluation.judge)")


def subject_of(pipe: UnCLIP, options: argparse.Namespace) -> Subject:
    """What the options name; ValueError where the model's own data are not the emoji and none were named."""
    if (options.data is None) != (options.heldout is None):
        raise ValueError("--data and --heldout belong together: pictures trained on, and pictures held out")
    if options.data is not None:
        return Own(pipe, options.data, options.heldout, options.seed, options.judge)
    if not trained_on_emoji(pipe):
        raise ValueError(f"the model {pipe.name!r} was not trained on the emoji: name its data with --data and --heldout")
    return Subject(pipe, options.seed, options.judge)

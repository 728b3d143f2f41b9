"""What the training loop trains: a module from batch to losses."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from unclip.conditions import Conditions
from unclip.config import Config
from unclip.nn.text import TextReader
from unclip.randomness import Noise
from unclip.types import Batch, Losses, Text


@runtime_checkable
class Answers(Protocol):
    """What a CLIP says of the training data, computed when it is asked for."""

    def samples(self, n: int) -> tuple[Float[Tensor, "k d"], Text]:
        """Raw image embeddings and captions of up to n samples, evenly spread over the data."""
        ...

    def empty(self) -> Text:
        """The empty caption, one row."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the data's classes, by number; none where they have no labels."""
        ...


class Widths(NamedTuple):
    """Of a CLIP's answers as a component reads them."""

    embed: int
    context: int = 2  # positions of a caption
    states: int = 1
    cut: bool = False  # longer captions are, else refused


class Task(nn.Module):
    """A module from batch to losses: what the training loop trains.  Frozen teachers live here, outside `model`.

    `unclip.runs` makes it as Task(model), with clip= where a training names a CLIP and config= where it has settings of the task.
    """

    config_class: ClassVar[type[Config] | None] = None  # of settings of its own
    model: nn.Module

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "examine" in vars(cls) and "validate" not in vars(cls):
            warnings.warn(f"{cls.__name__}.examine is now called validate", DeprecationWarning, stacklevel=2)
            cls.validate = vars(cls)["examine"]  # type: ignore[method-assign]

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        raise TypeError(f"{type(self).__name__} must define forward(batch, noise) -> Losses")

    def sample_images(self, batch: Batch, noise: Noise) -> Float[Tensor, "n 3 h w"] | None:
        """Pictures for the grid that the loop saves at intervals; None = this task draws none."""
        return None

    def validate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """What held-out samples tell: per-sample tensors (b, ...), the same however the samples are split into batches."""
        return {"loss": self.forward(batch, noise).total}

    def summarize(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """The numbers to log, of what `validate` said about all samples; by default means over them."""
        return {name: float(values.double().mean()) for name, values in rows.items()}

    @classmethod
    def reads(cls, config: Config) -> tuple[str, ...]:
        """Fields of `Batch` that the training of a component of this config takes; () = not known.

        Where the data lack them a CLIP makes `image_embed` of `images` and `text` of `captions`.
        """
        return ()

    @classmethod
    def image_size(cls, config: Config) -> int:
        """Side of the pictures, in pixels, that a component of this config is trained on.  ValueError: the data say it."""
        raise ValueError('data.size is missing: the side of the pictures to train on, for instance "size": 256')

    @classmethod
    def widths(cls, config: Config) -> Widths | None:
        """Of a CLIP's answers, where a component of this config reads any."""
        return None

    @classmethod
    def resolve(cls, config: Config, answers: Answers) -> Config:
        """The config that builds a new component, with what only the training data tell."""
        return config

    def complete(self, answers: Answers, fresh: bool) -> list[str]:
        """Give the model what it needs beside weights, such as statistics of the data, before training.

        A fresh one gets all of it, another what it lacks.  Returns what has been made, a sentence each.
        """
        return []

    @staticmethod
    def measure(model: Any, answers: Answers) -> None:
        """After training, with the averaged weights loaded: measure what the model's own way of sampling needs."""


def name_classes(conditions: Conditions, classes: tuple[str, ...]) -> Conditions:
    """With the data's names for the classes of a label condition, unless it has some.  ValueError: these are other classes."""
    label = conditions.label
    if label is None or not classes or label.names == classes:
        return conditions
    if label.names or label.classes != len(classes):
        known = ", ".join(label.names) or f"{label.classes} classes"
        raise ValueError(f"the model's labels are {known}, those of the data {', '.join(classes)}: they must be the same")
    return conditions.replace(label=label.replace(names=classes))


def complete_null(model: Any, answers: Answers) -> list[str]:
    """Give a model whose null is CLIP's empty caption that caption, where it lacks it; as `Task.complete`."""
    readers = [m for m in model.modules() if isinstance(m, TextReader) and m.config.null == "empty"]
    if all(bool(reader.empty_mask.any()) for reader in readers):
        return []
    model.set_null(answers.empty())
    return ["the null was made: CLIP's own empty caption"]


def require(batch: Batch, names: Sequence[str], task: str) -> None:
    """Raise a ValueError when the batch lacks a field that the task needs."""
    missing = [name for name in names if getattr(batch, name) is None]
    if missing:
        has = [name for name in batch._fields if getattr(batch, name) is not None]
        raise ValueError(f"{task} needs batches with {', '.join(names)}; this one has only {', '.join(has)}")

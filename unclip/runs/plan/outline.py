"""What is planned: a training's task, its parameters fake, and the shape of its samples."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from unclip.clip import CLIP
from unclip.randomness import Noise
from unclip.runs.build import make_task, size_of
from unclip.runs.components import OPEN_CLIP, load_clip, named_clip, open_component
from unclip.runs.names import component_class, task_class
from unclip.runs.training import Training
from unclip.training.task import Task, Widths
from unclip.types import Text

from .fake import fake
from .shapes import Shapes


def outline(training: Training, clip: CLIP | None = None) -> tuple[Task, Shapes]:
    """The task with fake parameters, and the shape of the samples that it will meet.

    clip: the fake one that the training's `clip` names (see `fake_clip`); None = the data bring its answers.
    ValueError: the config does not say how large its component is.
    """
    config = training.model if training.model is not None else open_component(str(training.start)).config
    kind = task_class(training.task, component_class(config))
    config = kind.resolve(config, _Uncounted())
    model = fake(component_class(config), config)
    task = make_task(kind, model, clip, training.task)
    size = training.data.size or size_of(kind, config, training.data, clip)
    shapes = _shapes(kind.widths(config), clip)
    task.complete(_MadeUp(shapes), fresh=True)
    if shapes.embed_dim is not None and (clip is None or training.data.embedded):
        return task, shapes._replace(size=size)
    reader = model if isinstance(model, CLIP) else clip
    return task, Shapes(size) if reader is None else Shapes(size, reader.context_length - 2)


def fake_clip(source: str) -> CLIP:
    """The CLIP that `Training.clip` names, fake and frozen; one that open_clip knows by name is not downloaded."""
    named = source.startswith(OPEN_CLIP)
    config = named_clip(source).replace(pretrained=None) if named else load_clip(source).resolved
    return fake(CLIP, config).requires_grad_(False).eval()


def _shapes(read: Widths | None, clip: CLIP | None) -> Shapes:
    """Of the CLIP's answers, or, where there is no CLIP, of what is read of them."""
    if read is None:
        return Shapes()
    if clip is not None:
        read = Widths(clip.embed_dim, clip.context_length, clip.text_width)
    return Shapes(None, 2, read.embed, read.context, read.states)


class _MadeUp:
    """Answers of no CLIP, of the right shape: components refuse to do without statistics and nulls."""

    classes: tuple[str, ...] = ()

    def __init__(self, shapes: Shapes):
        self.shapes = shapes

    def samples(self, n: int) -> tuple[Float[Tensor, "k d"], Text]:
        assert self.shapes.embed_dim is not None
        count = 2 * self.shapes.embed_dim  # enough for as many components
        embeds = Noise.of(0, range(count)).normal((self.shapes.embed_dim,))
        text = self.shapes.batch(1).text
        assert text is not None
        return embeds, text.repeat(count)._replace(embed=embeds.roll(1, 0))

    def empty(self) -> Text:
        text = self.shapes.batch(1).text
        assert text is not None
        return text


class _Uncounted:
    """Answers that are not there."""

    classes: tuple[str, ...] = ()

    def samples(self, n: int) -> Any:
        problem = "this config has a number that is counted on the data, such as an AR prior's components"
        raise ValueError(f"{problem}: give it for a plan, as in model.quantizer.dims=319")

    def empty(self) -> Any:
        return self.samples(1)

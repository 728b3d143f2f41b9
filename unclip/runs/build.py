"""From a training as a value to what the loop trains: the task, its data, its frozen CLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from unclip import checkpoint
from unclip.checkpoint import Component
from unclip.clip import CLIP
from unclip.clip.identity import identity, same_identity
from unclip.config import Config
from unclip.contracts import accepts
from unclip.data.order import Data
from unclip.data.spec import DataSpec
from unclip.progress import Bars
from unclip.training.conditions import MADE_OF
from unclip.training.task import Answers, Task, Widths
from unclip.training.widen import widened

from .components import load_clip, open_component
from .embeddings import DataAnswers, check_embeddings
from .names import component_class, task_class
from .training import Training


class Built(NamedTuple):
    task: Task
    data: Data
    held_out: Data | None
    clip: CLIP | None
    answers: Answers


def build(
    training: Training,
    device: Any = "cpu",
    say: Callable[[str], object] = print,
    data: Data | None = None,
    bars: Bars | None = None,
) -> Built:
    """The task, with new weights or those of `start`, and its data.

    `say` is told what was missing in a start and has been made, `bars` how much is embedded.  data: in place of those that the
    training names.
    ValueError: whatever does not go together.
    """
    clip = load_clip(training.clip).to(device).requires_grad_(False) if training.clip else None
    start = open_component(training.start) if training.start else None
    config = training.model if start is None or training.model is not None else start.config
    assert config is not None
    component = type(start) if start is not None and training.model is None else component_class(config)
    kind = task_class(training.task, component)
    if clip is not None:
        if start is not None and start.clip_identity is not None:
            same_identity(start.clip_identity, identity(clip))
        _refuse_widths(kind.widths(config), Widths(clip.embed_dim, clip.context_length, clip.text_width), component, training)
    data, held_out = open_data(training, training.data, kind, config, clip) if data is None else data, None
    answers = DataAnswers(data, clip, bars)
    if training.held_out is not None:
        held_out = open_data(training, training.held_out, kind, config, clip, answers.classes)
    config = kind.resolve(config, answers)
    model = start if start is not None and training.model is None else fresh(component, config, training.train.seed)
    if start is not None and model is not start:
        if type(start) is not type(model):
            raise ValueError(f"{training.start} is a {type(start).__name__}; a {type(model).__name__} is to be trained")
        weights = widened(start.state_dict(), start.config, model.config)
        checkpoint.fill(model, weights, source=str(training.start))
    task = make_task(kind, model, clip, training.task)
    for what in task.complete(answers, fresh=start is None):
        if start is not None:
            say(f"missing in the weights to train on: {what}")
    return Built(task, data, held_out, clip, answers)


def fresh(component: type[Component[Any]], config: Config, seed: int) -> Component[Any]:
    """New weights from the training's own seed, without touching torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: Any = component
        return made(config)


def make_task(kind: type[Task], model: Component[Any], clip: CLIP | None, settings: Config | None) -> Task:
    if clip is not None and not accepts(kind.__init__, "clip"):
        raise ValueError(f"a {type(model).__name__} is trained without another CLIP: leave clip out")
    arguments = {"clip": clip, "config": settings}
    made: Any = kind
    return made(model, **{name: value for name, value in arguments.items() if value is not None})


def open_data(
    training: Training, spec: DataSpec, kind: type[Task], config: Config, clip: CLIP | None, classes: tuple[str, ...] = ()
) -> Data:
    """The data, their pictures as large as they are needed.  ValueError: they lack what the training reads."""
    reads = kind.reads(config)
    if spec.size is None and ("images" in reads or ("image_embed" in reads and not spec.embedded)):
        # Held-out pictures are read as the others are.
        spec = spec.replace(size=training.data.size or size_of(kind, config, spec, clip))
    data = spec.open(classes or None)
    if clip is not None and training.clip:
        check_embeddings(data, clip, training.clip)
    if len(data):
        _refuse_lacking(data, reads, clip, component_class(config).__name__)
    return data


def size_of(kind: type[Task], config: Config, spec: DataSpec, clip: CLIP | None) -> int | None:
    """The side of the pictures read, in pixels, where the data do not say.  None: embeddings are all that is read."""
    reads = kind.reads(config)
    sides = [kind.image_size(config)] if "images" in reads else []
    if clip is not None and "image_embed" in reads and not spec.embedded:
        if not clip.image_size:
            problem = "the CLIP has no image tower, so it cannot embed the pictures to learn from"
            raise ValueError(f"{problem}: take weights that have one, or give data.embeddings")
        sides.append(clip.image_size)
    return max(sides, default=None)


def _refuse_widths(read: Widths | None, actual: Widths, component: type, training: Training) -> None:
    """Before anything is embedded: ValueError where a component reads the answers of another CLIP than this one."""
    if read is None:
        return
    wrong = []
    if read.embed not in (1, actual.embed):  # 1 = none are read
        wrong.append(f"embeddings of {read.embed} numbers, and {training.clip} gives {actual.embed}")
    if read.states not in (1, actual.states):
        wrong.append(f"token states of {read.states} numbers, and {training.clip} gives {actual.states}")
    if read.context < actual.context and not read.cut:
        wrong.append(f"captions of {read.context} positions, and {training.clip} gives {actual.context}")
    if wrong:
        problem = f"this {component.__name__} reads {'; '.join(wrong)}"
        raise ValueError(f"{problem}: name the CLIP that it is meant for (clip), or change the model's config")


def _refuse_lacking(data: Data, reads: tuple[str, ...], clip: CLIP | None, component: str) -> None:
    """By the first sample."""
    batch = data.batch([0])
    lacks = [name for name in reads if getattr(batch, name) is None]
    if clip is None and any(name in MADE_OF for name in lacks):
        problem = f"a {component} learns from the answers of a CLIP ({', '.join(lacks)}), which these data do not bring"
        raise ValueError(f"{problem}: name it, for instance clip='emoji', or give data.embeddings")
    wanted = [MADE_OF.get(name, name) for name in lacks]
    if missing := [name for name in wanted if getattr(batch, name) is None]:
        raise ValueError(f"a {component} is trained on data with {', '.join(missing)}; these have none")

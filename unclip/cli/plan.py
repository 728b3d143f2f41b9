"""`unclip plan`: what a training will need, before it is paid for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Errors

if TYPE_CHECKING:
    from unclip.clip import CLIP
    from unclip.config import Config
    from unclip.runs.plan import Shapes
    from unclip.runs.training import Training
    from unclip.training.task import Task


def plan(
    file: Annotated[Path, typer.Argument(help="What `unclip config` writes and `unclip train` takes.")],
    settings: Annotated[list[str] | None, typer.Argument(help="Changes, as train.batch=512 model.unet.channels=96.")] = None,
    cards: Annotated[int, typer.Option(help="How many GPUs share each batch.", min=1)] = 1,
    card: Annotated[str, typer.Option(help="A100, A100-40GB, H100, H200, L40S or RTX4090.")] = "A100",
    utilisation: Annotated[float, typer.Option(help="The part of the cards' speed that is reached.")] = 0.4,
) -> None:
    """Tell parameters, memory of a card, FLOPs and days of a training.  Neither data nor weights are needed."""
    with Errors():
        from unclip.runs.plan import CARDS
        from unclip.runs.plan import plan as run
        from unclip.runs.training import Training

        if card not in CARDS:
            raise ValueError(f"no card {card!r}; there are {', '.join(CARDS)}")
        training = Training.load(file).override(*(settings or []))
        task, shapes = of_training(training)
        typer.echo(f"stage       {training.stage}")
        typer.echo(run(task, training.train, shapes.batch, cards, CARDS[card], utilisation))


def of_training(training: Training) -> tuple[Task, Shapes]:
    """The task of `unclip train`'s file, its parts hollow, and the shape of its samples."""
    from unclip.clip import CLIPTaskConfig
    from unclip.runs.training import config_of, holds_embeddings, open_part, size_of

    config = open_part(training.start, training.stage).config if training.start else config_of(training)
    teacher = _teacher(training.clip) if training.clip else None
    there = isinstance(training.data.source, str) and Path(training.data.source).exists()
    embedded = training.data.embeddings is not None or (there and holds_embeddings(training.data))
    settings = CLIPTaskConfig.from_json(json.dumps(training.task), source="task")
    size = training.data.size or size_of(training, training.data, config, teacher)
    return outline(config, teacher, size, embedded, settings)


def outline(
    config: Config, teacher: CLIP | None, size: int | None, embedded: bool = False, settings: Any = None
) -> tuple[Task, Shapes]:
    """The task that trains a part of this config, hollow, and the shape of its samples.

    size: of the pictures read.  embedded: CLIP's answers come with the data, as they must without a teacher.  settings: a
    CLIPTaskConfig.  ValueError for a config that does not say how large its part is.
    """
    from decoder import Decoder, DecoderTask
    from prior import ARPrior, ContrastivePrior, DiffusionPrior, PriorTask
    from unclip.clip import CLIP, CLIPTask
    from unclip.runs.plan import Shapes, hollow
    from upsamplers import Upsampler, UpsamplerTask

    kinds: Any = {kind.config_class: kind for kind in (CLIP, DiffusionPrior, ARPrior, ContrastivePrior, Decoder, Upsampler)}
    if type(config) not in kinds:
        raise ValueError(f"no plan is made for {type(config).__name__}; known are {', '.join(k.__name__ for k in kinds)}")
    if isinstance(getattr(getattr(config, "quantizer", None), "dims", None), float):
        told = "model.quantizer.dims is a share of the data's variance"
        raise ValueError(f"{told}: give the number of components for a plan, as in model.quantizer.dims=319")
    part = hollow(kinds[type(config)], config)
    if isinstance(part, CLIP):
        return CLIPTask(part, settings), Shapes(part.image_size, part.context_length - 2)
    if isinstance(part, Upsampler):
        return UpsamplerTask(part), Shapes(size)
    answers = _answers(part)
    _fit(part, answers)
    task: Task = DecoderTask(part, teacher) if isinstance(part, Decoder) else PriorTask(part, teacher)
    if teacher is None or embedded:
        return task, answers._replace(size=size or part.image_size) if isinstance(part, Decoder) else answers
    return task, Shapes(size, teacher.context_length - 2)


def _answers(part: Any) -> Shapes:
    """The shape of the CLIP's answers that a prior or decoder reads."""
    from unclip.runs.plan import Shapes

    reads, embed = _reads(part), getattr(getattr(part.config, "conditions", None), "image_embed", None)
    context, states = (reads.context, reads.states_width or 1) if reads is not None else (2, 1)
    return Shapes(None, 2, embed.embed_dim if embed is not None else reads.embed_dim, context, states)


def _reads(part: Any) -> Any:
    """What a prior reads of a caption, or a decoder; it may read none."""
    network = getattr(part.config, "network", None)
    return part.config.conditions.text if network is None else network


def _fit(part: Any, answers: Shapes) -> None:
    """Statistics and nulls of some embedding: parts refuse to do without."""
    from prior import ARPrior
    from unclip.randomness import Noise

    assert answers.embed_dim is not None
    embeds = Noise.of(0, range(2 * answers.embed_dim)).normal((answers.embed_dim,))
    if isinstance(part, ARPrior):
        part.fit(embeds, embeds.roll(1, 0))
    elif hasattr(part, "fit"):
        part.fit(embeds)
    reads = _reads(part)
    if getattr(reads, "null", None) == "empty":
        part.set_null(answers.batch(1).text)


def _teacher(source: str) -> CLIP:
    """The frozen CLIP, hollow; one that open_clip knows by name is not downloaded."""
    from unclip.clip import CLIP
    from unclip.runs.plan import hollow
    from unclip.runs.training import OPEN_CLIP, named_clip, open_clip

    named = source.startswith(OPEN_CLIP)
    config = named_clip(source).replace(pretrained=None) if named else open_clip(source).resolved
    return hollow(CLIP, config).requires_grad_(False).eval()

"""`unclip plan`: what a training will need, before it is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Errors
from .train import What

if TYPE_CHECKING:
    from unclip.clip import CLIP
    from unclip.runs import Training
    from unclip.runs.plan import Plan


def plan(
    what: What,
    settings: Annotated[list[str] | None, typer.Argument(help="Changes, as train.batch=512 model.unet.channels=96.")] = None,
    cards: Annotated[int, typer.Option(help="How many GPUs share each batch.", min=1)] = 1,
    card: Annotated[str, typer.Option(help="A100, A100-40GB, H100, H200, L40S or RTX4090.")] = "A100",
    utilisation: Annotated[float, typer.Option(help="The fraction of the cards' speed that is reached.")] = 0.4,
) -> None:
    """Tell parameters, memory of a card, FLOPs and days of a training.  Neither data nor weights are needed."""
    with Errors(what):
        from unclip.runs.recipes import load

        training = load(what).override(*(settings or []))
        made = plan_of(training, cards, card, utilisation)
        typer.echo(f"component   {training.name}")
        typer.echo(made)


def plan_of(training: Training, cards: int, card: str = "A100", utilisation: float = 0.4) -> Plan:
    """ValueError for a card that is not known, or a training whose size cannot be told."""
    from unclip.runs.plan import CARDS, outline
    from unclip.runs.plan import plan as run

    if card not in CARDS:
        raise ValueError(f"no card {card!r}; there are {', '.join(CARDS)}")
    task, shapes = outline(training, teacher(training.clip) if training.clip else None)
    return run(task, training.train, shapes.batch, cards, CARDS[card], utilisation)


def teacher(source: str) -> CLIP:
    """The fake CLIP of a training; that of a run which is not there yet, as runs/paper.clip, is as large as its recipe says."""
    from unclip.checks import path_of
    from unclip.clip import CLIP, CLIPConfig
    from unclip.runs import recipes
    from unclip.runs.plan import fake, fake_clip

    if not path_of(source).exists():
        known = recipes.functions()
        for name in (folder for folder in Path(source).parts if folder in known):
            config = recipes.find(name).model
            if isinstance(config, CLIPConfig):
                return fake(CLIP, config).requires_grad_(False).eval()
    return fake_clip(source)

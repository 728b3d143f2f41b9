"""The plan of a recipe, and the table of the paper's five stages: python -m experiments.plan

Nothing is allocated: the parts are hollow (unclip.runs.plan).  One recipe: python -m experiments.train paper.decoder --plan 256
"""

from __future__ import annotations

import argparse
import sys
import time

from experiments.recipes import Recipe, find, paper
from unclip.cli.plan import outline
from unclip.clip import CLIP
from unclip.runs.plan import CARDS, Plan, Shapes, hollow, plan
from unclip.training.task import Task

STAGES = ("clip", "prior", "ar_prior", "decoder", "upsampler_256", "upsampler_1024")


def of_recipe(recipe: Recipe, cards: int, card: str = "A100", utilisation: float = 0.4) -> Plan:
    """The plan of a recipe of this repository.  ValueError for a card or a kind of recipe that is not known."""
    if card not in CARDS:
        raise ValueError(f"no card {card!r}; there are {', '.join(CARDS)}")
    task, shapes = of_parts(recipe)
    return plan(task, recipe.train, shapes.batch, cards, CARDS[card], utilisation)


def of_parts(recipe: Recipe) -> tuple[Task, Shapes]:
    """The recipe's task, its parts hollow, and the shape of its samples; the paper's stages learn from the paper's CLIP."""
    if not hasattr(recipe, "model"):
        raise ValueError(f"{type(recipe).__name__} has no model whose size could be told")
    teacher = hollow(CLIP, paper.clip().model).requires_grad_(False).eval() if isinstance(recipe, paper.WithClipRecipe) else None
    return outline(recipe.model, teacher, getattr(recipe, "size", None), settings=getattr(recipe, "task", None))


def table(stages: tuple[str, ...], cards: int, card: str, utilisation: float) -> str:
    """A Markdown table of the paper's stages."""
    lines = ["| stage | parameters | batch | GB a card, DDP | GB a card, FSDP | FLOP a step | FLOP a run | days |"]
    lines.append("| --- " + "| ---: " * 7 + "|")
    for stage in stages:
        made = of_recipe(find(f"paper.{stage}"), cards, card, utilisation)
        memory = [f"{x.total / 1e9:.1f}" for x in (made.ddp, made.fsdp)]
        parameters = f"{made.parts[''] / 1e6:,.0f}M"
        work = [f"{made.step_flops:.2e}", f"{made.run_flops:.2e}", f"{made.days:.1f}"]
        lines.append("| " + " | ".join([stage, parameters, f"{made.batch:,}", *memory, *work]) + " |")
        print(f"{stage} done", file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--cards", type=int, default=256)
    parser.add_argument("--card", default="A100", choices=list(CARDS))
    parser.add_argument("--utilisation", type=float, default=0.4)
    args = parser.parse_args()
    print(table(tuple(args.stages), args.cards, args.card, args.utilisation))
    seconds = time.perf_counter() - start
    print(f"{args.cards} {args.card} at {100 * args.utilisation:.0f} % of their speed; counted in {seconds:.0f} s")


if __name__ == "__main__":
    main()

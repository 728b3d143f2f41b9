"""What training the paper's stages would take, as a Markdown table: python -m benchmarks.paper_plans

Nothing is allocated: the components are fake (unclip.runs.plan).  One stage in more words: unclip plan paper.decoder --cards 256
"""

from __future__ import annotations

import argparse
import sys
import time

from unclip.cli.plan import plan_of
from unclip.runs.plan import CARDS
from unclip.runs.recipes import find

STAGES = ("clip", "prior", "ar_prior", "decoder", "upsampler_256", "upsampler_1024")


def table(stages: tuple[str, ...], cards: int, card: str, utilisation: float) -> str:
    lines = ["| stage | parameters | batch | GB a card, DDP | GB a card, FSDP | FLOP a step | FLOP a run | days |"]
    lines.append("| --- " + "| ---: " * 7 + "|")
    for stage in stages:
        made = plan_of(find(f"paper.{stage}"), cards, card, utilisation)
        memory = [f"{x.total / 1e9:.1f}" for x in (made.ddp, made.fsdp)]
        parameters = f"{made.parameters[''] / 1e6:,.0f}M"
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

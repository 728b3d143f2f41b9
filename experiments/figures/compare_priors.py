"""Priors side by side (unCLIP 2.2, 5.1 and 5.2): does drawing z_i pay, and is diffusion better than autoregression?

    python -m experiments.figures.compare_priors                                          # the shipped model, the emoji
    python -m experiments.figures.compare_priors MODEL --data SOURCE --heldout SOURCE     # any checkpoint and captioned pictures

Diffusion prior, AR prior, a contrastive regression in one pass (ECLIPSE), linear regression, the text embedding fed as an image
embedding, and no embedding at all (caption only).  Priors that the checkpoint lacks are trained into --runs, for as many steps
as the shipped ones; the same command goes on where it was cut off.  Same captions, same decoder, same noise for all.  Learning
curves of the first two at equal parameters: prior_curves.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.figures import common as figures
from experiments.figures.common import Drawn, Numbers, Run
from experiments.figures.priors import columns, material
from experiments.figures.priors.contestants import CAPTION, TRAIN, contestants

SPLITS = {"train": "trained captions", "heldout": "held-out captions"}


def draw(run: Run) -> Drawn:
    if run.options.n < 4:
        raise ValueError(f"--n is {run.options.n}; precision and recall need at least 4 captions")
    subject = material.subject_of(run.pipe, run.options)
    drawn = Drawn({}, {}, {})
    rivals = contestants(subject, run.options.model, run.options.runs, run.options.steps)
    cost: dict[str, dict[str, Any]] = {}
    for split, title in SPLITS.items():
        rows = subject.rows(split, run.options.n)
        alone = columns.decode(subject, None, rows)
        with run.progress(title, len(rivals), " priors") as bar:
            for rival in rivals:
                results: dict[str, Any] = {}
                embeds: Tensor | None = columns.embed(subject, rival, rows)
                if embeds is not None:
                    results |= columns.of_embeddings(subject, rival, embeds, rows)
                pictures = alone if rival.name == CAPTION else columns.decode(subject, embeds, rows)
                results |= columns.of_images(subject, pictures, rows)
                if rival.name != CAPTION:
                    results |= columns.wins(subject, pictures, alone, rows)
                drawn.numbers[f"{rival.name}, {title}"] = {name: value._asdict() for name, value in results.items()}
                bar.update(1)
    for rival in rivals:
        cost[rival.name] = {
            "parameters": rival.parameters,
            "training FLOPs": rival.flops,
            "candidates": rival.candidates,
            **{f"seconds per embedding, batch {b}": columns.seconds(subject, rival, b) for b in (1, 64)},
        }
    drawn.about["cost"] = cost
    drawn.files[".md"] = markdown(drawn.numbers, cost).encode()
    return drawn


def markdown(numbers: Numbers, cost: dict[str, dict[str, Any]]) -> str:
    """The table as README shows it."""
    shown = ("cosine", "R@1", "R@5", "norm / true norm", f"mean cosine of {columns.SPREAD} draws", "nearest picture top-5", "KID",
             "precision", "recall", "CLIP score", "wins in RGB", "wins before the judge")  # fmt: skip
    lines = []
    for title in SPLITS.values():
        lines += [f"| {title} | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
        for setting, results in numbers.items():
            name, _, split = setting.rpartition(", ")
            if split == title:
                lines.append(f"| {name} | " + " | ".join(_cell(results.get(column)) for column in shown) + " |")
        lines.append("")
    keys = list(next(iter(cost.values())))
    lines += ["| cost | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for name, row in cost.items():
        lines.append(f"| {name} | " + " | ".join("" if row[key] is None else f"{row[key]:.3g}" for key in keys) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.base_parser(__doc__, n=60, what="captions of each split")
    material.add_options(parser)
    parser.add_argument("--runs", type=Path, default=Path("runs/priors"), help="of what is trained (default: runs/priors)")
    parser.add_argument("--steps", type=int, default=TRAIN.steps, help=f"of a prior trained for the table ({TRAIN.steps})")
    figures.main("compare_priors", parser, draw, arguments)


if __name__ == "__main__":
    main()

"""Priors side by side (unCLIP 2.2, 5.1 and 5.2): does drawing z_i pay, and is diffusion better than autoregression?

    python experiments/compare_priors.py                                   # the table, for the shipped model and the emoji
    python experiments/compare_priors.py MODEL --data FOLDER --heldout FOLDER      # any checkpoint and captioned pictures
    python experiments/compare_priors.py --only curves --seeds 3           # learning curves, equal parameters: hours

Diffusion prior, AR prior, a contrastive regression in one pass (ECLIPSE), linear regression, the text embedding fed as an image
embedding, and no embedding at all (caption only).  Priors that the checkpoint lacks are trained into --runs, for as many steps
as the shipped ones; the same command goes on where it was cut off.  Same captions, same decoder, same noise for all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from experiments import figures  # noqa: E402
from experiments.emoji.measure import Subject  # noqa: E402
from experiments.figures import Drawn, Numbers, Run  # noqa: E402
from experiments.plots import axes, png  # noqa: E402
from experiments.priors import columns, curves, material  # noqa: E402
from experiments.priors.contestants import AR, CAPTION, DIFFUSION, TRAIN, contestants  # noqa: E402

SECTIONS = ("table", "curves")
SPLITS = {"train": "trained captions", "heldout": "held-out captions"}


def draw(run: Run) -> Drawn:
    if run.options.n < 4:
        raise ValueError(f"--n is {run.options.n}; precision and recall need at least 4 captions")
    subject = material.subject_of(run.pipe, run.options)
    drawn = Drawn({}, {}, {})
    if "table" in run.options.only:
        table(run, subject, drawn)
    if "curves" in run.options.only:
        learning(run, subject, drawn)
    return drawn


def table(run: Run, subject: Subject, drawn: Drawn) -> None:
    """Every contestant on both splits, then its pictures against those drawn from the caption alone."""
    rivals = contestants(subject, run.options.model, run.options.runs, run.options.steps)
    cost: dict[str, dict[str, Any]] = {}
    for split, title in SPLITS.items():
        rows = subject.rows(split, run.options.n)
        alone = columns.decode(subject, None, rows)
        with run.progress(title, len(rivals), " priors") as bar:
            for rival in rivals:
                found: dict[str, Any] = {}
                embeds: Tensor | None = columns.embed(subject, rival, rows)
                if embeds is not None:
                    found |= columns.of_embeddings(subject, rival, embeds, rows)
                pictures = alone if rival.name == CAPTION else columns.decode(subject, embeds, rows)
                found |= columns.of_pictures(subject, pictures, rows)
                if rival.name != CAPTION:
                    found |= columns.wins(subject, pictures, alone, rows)
                drawn.numbers[f"{rival.name}, {title}"] = {name: value._asdict() for name, value in found.items()}
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


def learning(run: Run, subject: Subject, drawn: Drawn) -> None:
    """Both priors from scratch, several seeds, evaluated on the way."""
    options, records = run.options, []
    for seed in range(options.seeds):
        for name in (DIFFUSION, AR):
            steps = [k * (options.curve_ratio if name == DIFFUSION else 1) for k in options.curve_steps]
            folder = options.runs / "curves" / f"{name.replace(' ', '_')}_{seed}"
            records.append(curves.learn(subject, name, seed, steps, folder))
    answer = curves.compare(records)
    drawn.about["curves"] = {"runs": records, **answer}
    drawn.files["_curves.png"] = plot(records)
    last = answer["budgets"][-1]
    told = ("difference", "low", "high")
    drawn.numbers["equal training compute, held-out captions"] = {
        f"{metric}, diffusion less AR, at {last['flops']:.2e} FLOPs": {key: last[metric][key] for key in told}
        for metric in curves.METRICS
    }
    print(f"At equal parameters and training compute, is the diffusion prior better than the AR prior? {answer['verdict']}")


def plot(records: Sequence[dict[str, Any]]) -> bytes:
    """Held-out cosine and R@5 over training FLOPs, a thin line per seed and a thick one for their mean."""
    figure, parts = axes(1, 2, "Held-out captions, equal parameters: what training compute buys")
    lines = [(DIFFUSION, "", "tab:blue", "-"), (AR, curves.COOLER, "tab:orange", "-"), (AR, "", "tab:orange", ":")]
    names = {"cosine": "cosine of a draw to the true z_i", "R@5": "true picture among the 5 nearest of all"}
    for part, metric in zip(parts, curves.METRICS):
        for name, told, colour, style in lines:
            own, key = [record["points"] for record in records if record["prior"] == name], f"{metric}{told}"
            for points in own:
                part.plot([p["flops"] for p in points], [p[key] for p in points], style, color=colour, alpha=0.35, linewidth=1)
            count = min(map(len, own))
            means = [sum(points[i][key] for points in own) / len(own) for i in range(count)]
            size = next(r["parameters"] for r in records if r["prior"] == name)
            label = f"{name}{told}, {size / 1e6:.1f}M parameters, mean of {len(own)} seeds"
            part.plot([p["flops"] for p in own[0][:count]], means, style, color=colour, marker="o", linewidth=2, label=label)
        part.set_xscale("log")
        part.set_xlabel("training FLOPs")
        part.set_ylabel(names[metric])
        part.legend()
    return png(figure)


def markdown(numbers: Numbers, cost: dict[str, dict[str, Any]]) -> str:
    """The table as README shows it."""
    shown = ("cosine", "R@1", "R@5", "norm / true norm", f"mean cosine of {columns.SPREAD} draws", "nearest picture top-5", "KID",
             "precision", "recall", "CLIP score", "wins in RGB", "wins before the judge")  # fmt: skip
    lines = []
    for title in SPLITS.values():
        lines += [f"| {title} | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
        for setting, found in numbers.items():
            name, _, split = setting.rpartition(", ")
            if split == title:
                lines.append(f"| {name} | " + " | ".join(_cell(found.get(column)) for column in shown) + " |")
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
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=["table"], help="default: table")
    parser.add_argument("--runs", type=Path, default=Path("runs/priors"), help="of what is trained (default: runs/priors)")
    parser.add_argument("--steps", type=int, default=TRAIN.steps, help=f"of a prior trained for the table ({TRAIN.steps})")
    parser.add_argument("--seeds", type=int, default=3, help="of the curves (default: 3)")
    parser.add_argument("--curve-steps", type=int, nargs="+", default=[12, 25, 50, 100, 200, 400], help="of the AR prior")
    parser.add_argument("--curve-ratio", type=int, default=3, help="steps of the diffusion prior per step of the AR prior")
    figures.main("compare_priors", parser, draw, arguments)


if __name__ == "__main__":
    main()

"""Diffusion and AR prior at equal parameters: what training compute buys (unCLIP 2.2: "more compute-efficient").

    python -m experiments.figures.prior_curves [MODEL] [--data SOURCE --heldout SOURCE] [--seeds 3] [--runs FOLDER] [-o FOLDER]

Trains both from scratch, like the model's own diffusion prior in width, depth and conditions (parameters within 10 %), on the
same embeddings at a constant rate, and evaluates their averaged weights on all held-out captions on the way: one draw each.  The
same command goes on where it was cut off.  An hour of two cores for the emoji.  Writes prior_curves.png and prior_curves.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.figures import common as figures
from experiments.figures.common import Drawn, Numbers, Run
from experiments.figures.plots import axes, png
from experiments.figures.priors import curves, material
from experiments.figures.priors.contestants import AR, DIFFUSION


def draw(run: Run) -> Drawn:
    """Both priors from scratch, several seeds, evaluated on the way."""
    options, records = run.options, []
    if options.seeds < 2:
        raise ValueError(f"--seeds is {options.seeds}; a comparison needs at least 2")
    subject = material.subject_of(run.pipe, options)
    for seed in range(options.seeds):
        for name in (DIFFUSION, AR):
            steps = [k * (options.ratio if name == DIFFUSION else 1) for k in options.steps]
            folder = options.runs / "curves" / f"{name.replace(' ', '_')}_{seed}"
            records.append(curves.learn(subject, name, seed, steps, folder))
    answer = curves.compare(records)
    last, text = answer["budgets"][-1], ("difference", "low", "high")
    numbers: Numbers = {
        "equal training compute, held-out captions": {
            f"{metric}, diffusion less AR, at {last['flops']:.2e} FLOPs": {key: last[metric][key] for key in text}
            for metric in curves.METRICS
        }
    }
    print(f"At equal parameters and training compute, is the diffusion prior better than the AR prior? {answer['verdict']}")
    return Drawn({".png": plot(records)}, numbers, {**answer, "runs": records})


def plot(records: Sequence[dict[str, Any]]) -> bytes:
    """Held-out cosine and R@5 over training FLOPs, a thin line per seed and a thick one for their mean."""
    figure, parts = axes(1, 2, "Held-out captions, equal parameters: what training compute buys")
    lines = [(DIFFUSION, "", "tab:blue", "-"), (AR, curves.COOLER, "tab:orange", "-"), (AR, "", "tab:orange", ":")]
    names = {"cosine": "cosine of a draw to the true z_i", "R@5": "true picture among the 5 nearest of all"}
    for part, metric in zip(parts, curves.METRICS):
        for name, text, colour, style in lines:
            own, key = [record["points"] for record in records if record["prior"] == name], f"{metric}{text}"
            for points in own:
                part.plot([p["flops"] for p in points], [p[key] for p in points], style, color=colour, alpha=0.35, linewidth=1)
            count = min(map(len, own))
            means = [sum(points[i][key] for points in own) / len(own) for i in range(count)]
            size = next(r["parameters"] for r in records if r["prior"] == name)
            label = f"{name}{text}, {size / 1e6:.1f}M parameters, mean of {len(own)} seeds"
            part.plot([p["flops"] for p in own[0][:count]], means, style, color=colour, marker="o", linewidth=2, label=label)
        part.set_xscale("log")
        part.set_xlabel("training FLOPs")
        part.set_ylabel(names[metric])
        part.legend(loc="lower right", fontsize="small")
    return png(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.base_parser(__doc__, n=1, what="has no meaning here: all held-out captions are used")
    material.add_options(parser)
    parser.add_argument("--runs", type=Path, default=Path("runs/priors"), help="of what is trained (default: runs/priors)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each prior (default: 3)")
    points = [12, 25, 50, 100, 200, 400]
    parser.add_argument("--steps", type=int, nargs="+", default=points, help="of the AR prior, each a point of its curve")
    parser.add_argument("--ratio", type=int, default=3, help="steps of the diffusion prior per step of the AR prior")
    figures.main("prior_curves", parser, draw, arguments)


if __name__ == "__main__":
    main()

"""How many candidates z_i pay (unCLIP 2.2 keeps the better of two by z_i . z_t).

    python -m experiments.figures.best_of [MODEL] [--data FOLDER --heldout FOLDER] [--n 205] [--candidates 1 2 4 8 16] [-o FOLDER]

Held-out captions, every prior of the checkpoint.  The candidates of a larger number hold those of the smaller ones.  Writes
best_of.png and best_of.json: cosine of the kept candidate to the caption and to the true z_i, retrieval, and (of --pictures
captions) whether the picture drawn from it is nearest the true one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from experiments.figures import common as figures
from experiments.figures.common import Drawn, Numbers, Run
from experiments.figures.plots import axes, band, png
from experiments.figures.priors import columns, material
from experiments.figures.priors.contestants import AR, DIFFUSION, of_prior
from experiments.figures.priors.curves import embeddings_quality
from unclip.checkpoint import PRIORS, open_pipeline
from unclip.metrics import interval
from unclip.randomness import Noise
from unclip.types import best_of

NAMES = dict(zip(PRIORS, (DIFFUSION, AR)))
PLOTTED = {
    "cosine to the caption": "cosine of z_i to z_t",
    "cosine": "cosine to the true z_i",
    "nearest picture top-5": "true picture among the 5 nearest",
}
COLOURS = {DIFFUSION: "tab:blue", AR: "tab:orange"}


@torch.no_grad()
def draw(run: Run) -> Drawn:
    counts = sorted(set(run.options.candidates))
    if counts[0] < 1 or run.options.n < 4 or run.options.pictures < 4:
        raise ValueError("--candidates are numbers from 1, --n and --pictures at least 4")
    subject, stored = material.subject_of(run.pipe, run.options), open_pipeline(run.options.model)
    rows = subject.rows("heldout", run.options.n)
    text = columns.texts(subject, rows)
    numbers: Numbers = {}
    names = [NAMES[part] for part in PRIORS if part in stored.components]
    with run.progress("priors and numbers of candidates", len(names) * len(counts), "") as bar:
        for part, name in NAMES.items():
            if part not in stored.components:
                continue
            prior: Any = run.pipe.prior if part == PRIORS[0] else stored.components[part]().to(run.pipe.device).eval()
            contestant = of_prior(name, prior)
            assert contestant.draw is not None
            drawn = contestant.draw(text, Noise.of(subject.seed, range(len(rows))).at("prior"), counts[-1]).float().cpu()
            for count in counts:
                kept = best_of(drawn[:, :count], text.embed)
                results = {key: interval(values) for key, values in embeddings_quality(subject, kept, rows).items()}
                results["cosine to the caption"] = interval(torch.cosine_similarity(kept, text.embed, dim=-1))
                few = rows[: run.options.pictures]
                results |= columns.of_images(subject, columns.decode(subject, kept[: len(few)], few), few)
                numbers[f"{name}, best of {count}"] = {key: value._asdict() for key, value in results.items()}
                bar.update(1)
    figure, parts = axes(1, len(PLOTTED), "Held-out captions: how many candidates z_i pay")
    for axis, (key, title) in zip(parts, PLOTTED.items()):
        for name in names:
            band(axis, counts, [numbers[f"{name}, best of {count}"][key] for count in counts], name, COLOURS[name])
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_xlabel("candidates")
        axis.set_ylabel(title)
        axis.legend()
    return Drawn({".png": png(figure)}, numbers)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.base_parser(__doc__, n=205, what="held-out captions")
    material.add_options(parser)
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--pictures", type=int, default=60, help="captions whose pictures are drawn (default: 60)")
    figures.main("best_of", parser, draw, arguments)


if __name__ == "__main__":
    main()

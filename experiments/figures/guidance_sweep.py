"""Guidance of decoder and prior against fidelity and diversity (unCLIP 5.2, Figs. 9 to 11; section 2.2: guiding the prior).

    python -m experiments.figures.guidance_sweep [MODEL] [--data FOLDER --heldout FOLDER] [--n 60] [--draws 4] [-o FOLDER]

Held-out captions.  The decoder's scale, for unCLIP (z_i drawn by the prior) and for the caption alone (null z_i, which stands
for a model without prior: GLIDE in the paper); then each prior's own scale with the decoder as it ships.  Guided everywhere,
without an interval, as in the paper.  Writes guidance_sweep.png and guidance_sweep.json: nearest picture top-5, CLIP score and
KID before the judge, and diversity, the RMS difference between draws of a caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.emoji.evaluation.measure import Subject
from experiments.figures import common as figures
from experiments.figures.common import Drawn, Numbers, Run
from experiments.figures.plots import axes, band, png
from experiments.figures.priors import columns, material
from experiments.figures.priors.contestants import CAPTION, Contestant, of_prior
from experiments.figures.priors.curves import embeddings_quality
from unclip.checkpoint import PRIORS, open_pipeline
from unclip.metrics import interval
from unclip.sampling import Sampling

UNCLIP, DIVERSITY = "unCLIP", "diversity, RMS between draws"
TITLES = {"prior": "diffusion prior", "ar_prior": "AR prior"}
COLOURS = {UNCLIP: "tab:blue", CAPTION: "tab:green", TITLES["prior"]: "tab:blue", TITLES["ar_prior"]: "tab:orange"}
PLOTTED = ("nearest picture top-5", "CLIP score", "KID", DIVERSITY)


@torch.no_grad()
def draw(run: Run) -> Drawn:
    options = run.options
    if options.n < 4 or options.draws < 2:
        raise ValueError(f"--n is {options.n} and --draws {options.draws}; at least 4 captions and 2 draws are needed")
    subject, stored = material.subject_of(run.pipe, options), open_pipeline(options.model)
    rows = subject.rows("heldout", options.n)
    own = run.pipe.decoder.resolve(None)
    numbers: Numbers = {}
    parts = [part for part in PRIORS if part in stored.components]
    total = 2 * len(options.scales) + len(parts) * len(options.prior_scales)
    with run.progress("scales", total, "") as bar:
        for name, contestant in ((UNCLIP, of_prior(UNCLIP, run.pipe.prior)), (CAPTION, Contestant(CAPTION, None))):
            embeds = columns.embed(subject, contestant, rows)
            for scale in options.scales:
                sampling = own.replace(guidance=scale, interval=None)
                numbers[f"{name}, decoder {scale:g}"] = measured(subject, embeds, rows, sampling, options)
                bar.update(1)
        for part in parts:
            prior: Any = run.pipe.prior if part == PRIORS[0] else stored.components[part]().to(run.pipe.device).eval()
            for scale in options.prior_scales:
                settings = prior.config.sampling.replace(guidance=scale)
                embeds = columns.embed(subject, of_prior(part, prior, sampling=settings), rows)
                assert embeds is not None
                about = {key: interval(values)._asdict() for key, values in embeddings_quality(subject, embeds, rows).items()}
                numbers[f"{TITLES[part]}, prior {scale:g}"] = about | measured(subject, embeds, rows, None, options)
                bar.update(1)
    return Drawn({".png": plot(numbers, options.scales, options.prior_scales, [TITLES[part] for part in parts])}, numbers)


def measured(
    subject: Subject, embeds: Tensor | None, rows: Sequence[int], sampling: Sampling | None, options: Any
) -> dict[str, Any]:
    """Fidelity on all captions; diversity of the decoder's draws for the first --few."""
    results = columns.of_images(subject, columns.decode(subject, embeds, rows, sampling), rows)
    few = rows[: options.few]
    several = [
        columns.decode(subject, None if embeds is None else embeds[: len(few)], few, sampling, first=len(rows) * (1 + k))
        for k in range(options.draws)
    ]
    results[DIVERSITY] = interval([figures.spread(torch.stack(pictures)) for pictures in zip(*several)])
    return {key: value._asdict() for key, value in results.items()}


def plot(numbers: Numbers, scales: Sequence[float], prior_scales: Sequence[float], priors: Sequence[str]) -> bytes:
    shown = [key for key in PLOTTED if all(key in row for row in numbers.values())]  # without a judge there are fewer
    figure, parts = axes(2, len(shown), "Held-out captions: guiding the decoder (above), guiding the prior (below)")
    for axis, key in zip(parts, shown):
        for name in (UNCLIP, CAPTION):
            band(axis, list(scales), [numbers[f"{name}, decoder {scale:g}"][key] for scale in scales], name, COLOURS[name])
        _name(axis, "guidance of the decoder", key)
    for axis, key in zip(parts[len(shown) :], shown):
        for name in priors:
            rows = [numbers[f"{name}, prior {scale:g}"][key] for scale in prior_scales]
            band(axis, list(prior_scales), rows, name, COLOURS[name])
        _name(axis, "guidance of the prior", key)
    return png(figure)


def _name(axis: Any, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.legend()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.base_parser(__doc__, n=60, what="held-out captions")
    material.add_options(parser)
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 1.5, 2, 3, 4, 6], help="of the decoder")
    parser.add_argument("--prior-scales", type=float, nargs="+", default=[1, 1.5, 2, 3, 4])
    parser.add_argument("--draws", type=int, default=4, help="pictures per caption for diversity (default: 4)")
    parser.add_argument("--few", type=int, default=15, help="captions for diversity (default: 15)")
    figures.main("guidance_sweep", parser, draw, arguments)


if __name__ == "__main__":
    main()

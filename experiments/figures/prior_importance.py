"""What the prior adds (unCLIP 5.1, Fig. 8): the decoder given the caption alone, the text embedding, and a drawn z_i.

    python -m experiments.figures.prior_importance [MODEL] [--data FOLDER --heldout FOLDER] [--n 60] [--rows 8] [-o FOLDER]

Held-out captions, one decoder, the same noise in every column.  Writes prior_importance.png, the first --rows captions (a
contact sheet by hash, nobody's choice), and prior_importance.json: the numbers of all --n.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from experiments.figures import common as figures
from experiments.figures.common import Drawn, Numbers, Run
from experiments.figures.priors import columns, material
from experiments.figures.priors.contestants import CAPTION, TEXT, Contestant, as_text, of_prior

PRIOR, TRUE = "z_i drawn by the prior", "true z_i"


def draw(run: Run) -> Drawn:
    if run.options.n < 4 or run.options.rows < 1:
        raise ValueError(f"--n is {run.options.n} and --rows {run.options.rows}; at least 4 captions and 1 row are needed")
    subject = material.subject_of(run.pipe, run.options)
    rows = subject.rows("heldout", run.options.n)
    inputs = [Contestant(CAPTION, None), Contestant(TEXT, as_text), of_prior(PRIOR, run.pipe.prior)]
    numbers: Numbers = {}
    pictures = {}
    with run.progress("held-out captions", len(inputs) + 1, " signals") as bar:
        for signal in inputs:
            embeds = columns.embed(subject, signal, rows)
            pictures[signal.name] = columns.decode(subject, embeds, rows)
            bar.update(1)
        pictures[TRUE] = columns.decode(subject, subject.embeddings.image_embed[rows], rows)
        bar.update(1)
    for name, images in pictures.items():
        results = columns.of_images(subject, images, rows)
        if name != CAPTION:
            results |= columns.wins(subject, images, pictures[CAPTION], rows)
        numbers[name] = {key: value._asdict() for key, value in results.items()}
    shown = rows[: run.options.rows]
    sheet = [[*(images[i] for images in pictures.values()), subject.images[row]] for i, row in enumerate(shown)]
    labels = [[*pictures, f"true picture: {subject.data.captions[row]}"] for row in shown]
    page = run.sheet([[_large(x) for x in row] for row in sheet], labels, f"{run.pipe.name}: what conditions the decoder")
    return Drawn({".png": page}, numbers, {"captions": subject.captions(rows)})


def _large(image: torch.Tensor) -> torch.Tensor:
    """Pixels doubled where they are few, so that labels fit beneath."""
    return image.repeat_interleave(2, 1).repeat_interleave(2, 2) if image.shape[-1] <= figures.CELL // 2 else image


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.base_parser(__doc__, n=60, what="held-out captions")
    material.add_options(parser)
    parser.add_argument("--rows", type=int, default=8, help="captions in the sheet (default: 8)")
    figures.main("prior_importance", parser, draw, arguments)


if __name__ == "__main__":
    main()

"""How many principal components of z_i hold its variance, with and without SAM (unCLIP 2.2 and App. C).

    unclip train emoji.clip task.sam=0.1 train.steps=650 --run runs/clip_sam      # to compare with: 20 minutes
    python -m experiments.figures.explained_variance [MODEL] --clips "with SAM=runs/clip_sam" [-o FOLDER]

The AR prior predicts as many symbols as components are kept.  The paper keeps 319 of 1,024 for less than 1 % of mean squared
error, and says why so few are enough: its CLIP was trained with SAM.  --clips are run folders of `emoji.clip`, or folders of
saved CLIPs, as NAME=FOLDER.  Writes explained_variance.png and explained_variance.json, with each CLIP's retrieval beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.emoji.evaluation.measure import retrieval
from experiments.figures import common as figures
from experiments.figures.common import Drawn, Numbers, Run
from experiments.figures.plots import axes, png
from experiments.figures.priors import material
from unclip.clip import CLIP
from unclip.data.embeddings import Embeddings, precompute
from unclip.editing.pca import PCA

SHARES = (0.9, 0.95, 0.99, 0.999)


def draw(run: Run) -> Drawn:
    subject = material.subject_of(run.pipe, run.options)
    clips: dict[str, Embeddings] = {run.pipe.name or "the model's CLIP": subject.embeddings}
    for inputs in run.options.clips:
        name, equals, folder = inputs.partition("=")
        if not equals:
            raise ValueError(f"--clips takes NAME=FOLDER, not {inputs!r}")
        clips[name] = precompute(load(Path(folder)), subject.data)
    numbers: Numbers = {}
    curves: dict[str, list[float]] = {}
    for name, embeddings in clips.items():
        known = embeddings.select([subject.data.keys[i] for i in subject.members["train"]])
        pca = PCA.fit(known.image_embed)
        explained = pca.explained.double()
        curves[name] = [round(float(share), 6) for share in explained]
        about: dict[str, Any] = {
            f"components for {share:.1%} of the variance": {"value": int((explained < share).sum()) + 1} for share in SHARES
        }
        about["dimensions"] = {"value": len(explained)}
        about["effective rank"] = {"value": float(effective_rank(pca.variances.double()))}
        for split in ("train", "heldout"):
            for key, value in retrieval(embeddings, subject.members[split], subject.twins).items():
                about[f"{key}, {split}"] = value._asdict()
        numbers[name] = about
    return Drawn({".png": plot(curves)}, numbers, {"explained": curves})


def effective_rank(variances: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of the variances' shares (Roy and Vetterli 2007): as many equal components would have it."""
    share = variances / variances.sum()
    return (-(share * share.clamp(min=1e-300).log()).sum()).exp()


def load(folder: Path) -> CLIP:
    """A saved CLIP, or that of a run."""
    from unclip.runs import load_clip

    return load_clip(str(folder))


def plot(curves: dict[str, list[float]]) -> bytes:
    figure, (axis,) = axes(1, 1, "Principal components of CLIP image embeddings")
    for name, explained in curves.items():
        axis.plot(range(1, len(explained) + 1), [max(1 - share, 1e-6) for share in explained], label=name)
    axis.axhline(0.01, color="grey", linestyle=":", label="1 %: what the AR prior leaves out")
    axis.set_yscale("log")
    axis.set_xlabel("components kept")
    axis.set_ylabel("share of the variance left out")
    axis.legend()
    return png(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.base_parser(__doc__, n=1, what="has no meaning here: all pictures are used")
    material.add_options(parser)
    parser.add_argument("--clips", nargs="*", default=[], metavar="NAME=FOLDER", help="others to compare with")
    figures.main("explained_variance", parser, draw, arguments)


if __name__ == "__main__":
    main()

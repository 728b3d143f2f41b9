"""The CLIP that evaluation looks with: of the recipe `emoji.judge`, used nowhere in the pipeline, so that it has no stake in it.

    python -m experiments.emoji.evaluation.judge [--run runs/emoji.judge] [-o FOLDER]

trains it (some 15 minutes on two cores; the same command continues a run that was cut off, and takes one that has ended) and
puts it into $UNCLIP_CACHE/emoji/judge.  Like every component it has seen no held-out picture.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from experiments.emoji.data import source
from unclip import checkpoint
from unclip.clip import CLIP
from unclip.runs import train
from unclip.runs.recipes import find
from unclip.types import ImageTextEncoder

MAKE = "python -m experiments.emoji.evaluation.judge"


def folder() -> Path:
    return source.cache_folder() / "judge"


def load(path: Path | None = None, *, strange_to: ImageTextEncoder) -> CLIP | None:
    """The judge in `path` (default: `folder()`), None where there is none; ValueError when it is the judged one's own CLIP."""
    if path is None and not folder().exists():
        return None
    judge = CLIP.from_pretrained(path or folder())
    if checkpoint.fingerprint(judge) == checkpoint.fingerprint(strange_to):
        raise ValueError(f"{path or folder()} is the CLIP of the pipeline itself, which cannot judge it: {MAKE} makes another")
    return judge


@torch.no_grad()
def features(judge: CLIP, images: Float[Tensor, "n 3 h w"], batch: int = 64) -> Float[Tensor, "n d"]:
    """Directions of the embeddings, of length sqrt(d): KID's kernel is then (cosine + 1)^3 (on the CPU)."""
    rows = torch.cat([judge.encode_image(some).float().cpu() for some in images.split(batch)])
    return normalize(rows, dim=-1) * rows.shape[1] ** 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=MAKE, description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/emoji.judge"), help="folder of the training run")
    parser.add_argument("-o", "--output", type=Path, default=folder(), help="a new folder (default: where evaluate looks)")
    options = parser.parse_args(arguments)
    try:
        if options.output.exists():
            raise ValueError(f"{options.output} exists already: the judge is there, or remove it first")
        CLIP.from_pretrained(train(find("emoji.judge"), options.run)).save_pretrained(options.output)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(options.output)


if __name__ == "__main__":
    main()

"""The picture of every stage for one caption, whole and at one spot: the README's path from caption to 1024 pixels.

    python -m experiments.emoji.evaluation.stages [MODEL] [--caption "ninja medium skin tone"] [-o FILE]

Seed 0, one draw.  The spot is the window with the most edges in the 64-pixel picture.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from unclip.images import sheet, to_pil
from unclip.pipelines.unclip import UnCLIP

FILE = Path(__file__).parents[1] / "stages.png"
CELL, WINDOW = 256, 4  # pixels of a picture on the page; the spot is a WINDOW-th of the side


def page(pipe: UnCLIP, caption: str) -> Image.Image:
    """Above the whole pictures, below their spot; small pictures enlarged by whole pixels, large ones reduced."""
    made = pipe.generate(caption, seed=0)
    smallest = made.stages[min(made.stages)]
    row, column = spot(smallest[0])
    whole, parts, names = [], [], []
    for size, images in made.stages.items():
        picture, side = to_pil(images[0]), size // WINDOW
        left, top = (round(x * size / smallest.shape[-1]) for x in (column, row))
        whole.append(_shown(picture))
        parts.append(_shown(picture.crop((left, top, left + side, top + side))))
        names.append(f"{size} px")
    return sheet([whole, parts], [names, [f"{name}, {WINDOW} times closer" for name in names]], title=f'"{caption}"')


def spot(image: Float[Tensor, "3 s s"]) -> tuple[int, int]:
    """Row and column of the window with the most edges."""
    side = image.shape[-1] // WINDOW
    edges = image.diff(dim=-1).abs()[:, :-1] + image.diff(dim=-2).abs()[..., :-1]
    sums = avg_pool2d(edges.sum(0)[None, None], side, stride=1)[0, 0]
    return divmod(int(sums.argmax()), sums.shape[1])


def _shown(picture: Image.Image) -> Image.Image:
    how = Image.Resampling.NEAREST if picture.width < CELL else Image.Resampling.BOX
    return picture.resize((CELL, CELL), how)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.emoji.evaluation.stages", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="emoji")
    parser.add_argument("--caption", default="ninja medium skin tone")
    parser.add_argument("-o", "--output", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    try:
        picture = page(UnCLIP.from_pretrained(options.model), options.caption)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    picture.save(options.output, optimize=True)
    print(options.output)


if __name__ == "__main__":
    main()

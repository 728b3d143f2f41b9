"""Inpainting without trained channels: four kinds of mask, ways of sampling, and what needs no model (GLIDE 2.2, RePaint).

    python -m experiments.figures.inpainting [MODEL] [-o FOLDER] [--n 100] [--few 25]

Held-out pictures with their captions; what is in the hole is known to the measuring alone.  Measured in the decoder's pixels:
RMS in the hole, and the seam, the mean difference of neighbouring pixels across its border less the truth's.  The ways after the
first are measured on the first --few pictures.  Writes inpainting.png (the first --rows pictures) and inpainting.json; what was
drawn is kept in inpainting_chunks beside them, so that a run goes on where it was cut off, and several share it by --masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from experiments.figures import common as figures
from experiments.figures.chunks import drawn
from experiments.figures.common import Drawn, Numbers, Run
from unclip.editing.inpaint import inpaint_sampling
from unclip.randomness import Noise

AT_ONCE = 20
DEFAULT, SOLVER, REPAINT, NO_CAPTION, SOLVER_ALONE, MEAN, ANEW = (
    "ddpm 50 around what is kept",
    "the decoder's own solver around what is kept",
    "RePaint, 25 steps, jump 5, 4 times",
    "ddpm 50, without the caption",
    "the decoder's own solver, without the caption",
    "mean colour of what is kept",
    "drawn anew, what is kept pasted over",
)


def half(noise: Noise, size: int) -> Image.Image:
    """The right half."""
    mask = Image.new("L", (size, size))
    mask.paste(255, (size // 2, 0, size, size))
    return mask


def rectangle(noise: Noise, size: int) -> Image.Image:
    """Anywhere, its sides a third to two thirds of the picture's."""
    mask = Image.new("L", (size, size))
    width, height = (int(noise.at(name).integers(size // 3, 2 * size // 3)) for name in ("width", "height"))
    left, top = int(noise.at("left").integers(0, size - width + 1)), int(noise.at("top").integers(0, size - height + 1))
    mask.paste(255, (left, top, left + width, top + height))
    return mask


def outside(noise: Noise, size: int) -> Image.Image:
    """All but a rectangle."""
    return Image.eval(rectangle(noise, size), lambda level: 255 - level)


def strokes(noise: Noise, size: int) -> Image.Image:
    """Five strokes of a brush, a tenth of the picture wide."""
    mask = Image.new("L", (size, size))
    for points in noise.at("points").uniform((5, 3, 2))[0] * size:
        ImageDraw.Draw(mask).line([tuple(point) for point in points.tolist()], 255, max(1, size // 10), joint="curve")
    return mask


MASKS: dict[str, Callable[[Noise, int], Image.Image]] = {
    "half": half,
    "rectangle": rectangle,
    "all outside a rectangle": outside,
    "brush strokes": strokes,
}


def holes(kind: str, count: int, size: int, seed: int) -> Tensor:
    """Masks (n, 1, s, s) of a kind, True where pixels are to be drawn."""
    made = [MASKS[kind](Noise.of(seed, [i]).at(kind), size) for i in range(count)]
    return torch.stack([torch.tensor(list(mask.tobytes())).reshape(1, size, size) > 127 for mask in made])


def hole_rms(images: Tensor, truth: Tensor, hole: Tensor) -> Tensor:
    """Root of the mean squared difference in the hole (n)."""
    squared = ((images - truth).double().square().mean(1, keepdim=True) * hole).flatten(1).sum(1)
    return (squared / hole.flatten(1).sum(1)).sqrt()


def seam(images: Tensor, hole: Tensor) -> Tensor:
    """Mean absolute difference of neighbours of which one is in the hole (n)."""
    total, count = torch.zeros(len(images)).double(), torch.zeros(len(images))
    for dim in (-2, -1):
        across = hole.diff(dim=dim)  # of booleans: where they differ
        total += (images.diff(dim=dim).abs().double().mean(1, keepdim=True) * across).flatten(1).sum(1)
        count += across.flatten(1).sum(1)
    return total / count.clamp(min=1)


def draw(run: Run) -> Drawn:
    options, chosen = run.options, run.pictures()
    truth, captions = run.fitted(chosen.images), chosen.captions
    few = min(options.few, len(truth))
    own = run.pipe.decoder.resolve(None)
    ways: dict[str, tuple[int, dict[str, Any]]] = {
        DEFAULT: (len(truth), {}),
        SOLVER: (few, {"decoder": own}),
        REPAINT: (few, {"decoder": inpaint_sampling(run.pipe.decoder, True)}),
        NO_CAPTION: (few, {"caption": None}),
        SOLVER_ALONE: (few, {"caption": None, "decoder": own}),
    }
    numbers: Numbers = {}
    rows: list[list[Tensor]] = [[] for _ in range(min(options.rows, few))]
    kinds = [kind for kind in MASKS if kind in options.masks]
    with run.progress("drawing", len(truth) + len(kinds) * sum(count for count, _ in ways.values())) as bar:
        anew = torch.cat([generated(run, captions[i : i + AT_ONCE], i) for i in range(0, len(truth), AT_ONCE)])
        bar.update(len(truth))
        for kind in kinds:
            hole = holes(kind, len(truth), run.small, options.seed)
            made: dict[str, Tensor] = {}
            for name, (count, changes) in ways.items():
                parts = []
                for start in range(0, count, AT_ONCE):
                    some = slice(start, min(start + AT_ONCE, count))
                    asked = {"caption": captions[some], "seed": options.seed, "first": start, "size": run.small} | changes
                    parts.append(around(run, truth[some], hole[some], asked))
                    bar.update(len(parts[-1]))
                made[name] = torch.cat(parts)
            mean = (truth * ~hole).sum((2, 3), keepdim=True) / (~hole).sum((2, 3), keepdim=True)
            made[MEAN], made[ANEW] = torch.where(hole, mean, truth), torch.where(hole, anew, truth)
            for name, images in made.items():
                measure(numbers, f"{kind}: {name}", images, truth, hole)
                if len(images) > few:
                    measure(numbers, f"{kind}: {name}, of {few}", images[:few], truth, hole)
                if len(images) == len(truth):
                    assert torch.equal(torch.where(hole, 0, images), torch.where(hole, 0, truth))
            for row, shown, image in zip(rows, torch.where(hole, 0.0, truth), made[DEFAULT]):
                row.extend([shown, image])
    labels = [[label for kind in kinds for label in (kind, captions[i])] for i in range(len(rows))]
    page = run.sheet(rows, labels, f"{run.pipe.name}: the hole in grey, then drawn around what is kept")
    return Drawn({".png": page}, numbers, {"pictures": captions})


def generated(run: Run, captions: list[str], first: int) -> Tensor:
    options = {"captions": captions, "seed": run.options.seed, "first": first, "size": run.small}
    return drawn(run, options, torch.zeros(0), lambda: run.pipe.generate(**options).images)


def around(run: Run, truth: Tensor, hole: Tensor, options: dict[str, Any]) -> Tensor:
    """Pictures with the hole drawn anew, or as an earlier run drew them."""
    given = torch.where(hole, 0.0, truth)  # what is in the hole has no influence
    return drawn(run, options, given, lambda: run.pipe.inpaint(truth, mask=hole, **options).images)


def measure(numbers: Numbers, name: str, images: Tensor, truth: Tensor, hole: Tensor) -> None:
    truth, hole = truth[: len(images)], hole[: len(images)]
    numbers[name] = {
        "RMS in the hole": figures.mean(hole_rms(images, truth, hole)),
        "seam, beyond the truth's": figures.mean(seam(images, hole) - seam(truth, hole)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.parser(__doc__, n=100)
    parser.add_argument("--few", type=int, default=25, help="pictures for the other ways of sampling (default: 25)")
    parser.add_argument("--masks", nargs="+", choices=MASKS, default=list(MASKS), metavar="KIND", help=f"of {', '.join(MASKS)}")
    parser.add_argument("--rows", type=int, default=5, help="pictures in the sheet (default: 5)")
    figures.main("inpainting", parser, draw, arguments)


if __name__ == "__main__":
    main()

"""Image to image over `strength` (SDEdit): how far from the source picture, how near to the caption.

    python -m experiments.figures.img2img [MODEL] [-o FOLDER] [--n 60] [--strengths 0.3 ... 1]

Held-out pairs: each picture with the caption of the one n / 2 further in hash order.  Writes img2img.png (a sheet of the first
--rows pairs), img2img_curve.png, img2img.json: RMS to the source, CLIP's cosine to the caption and to the source picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from experiments.figures import common as figures
from experiments.figures.common import Drawn, Numbers, Run
from experiments.figures.plots import axes, band, png

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
AT_ONCE = 20
RMS, CAPTION, SOURCE = "RMS to the source", "CLIP cosine to the caption", "CLIP cosine to the source"


def draw(run: Run) -> Drawn:
    strengths = run.options.strengths
    chosen = run.pictures()
    if len(chosen) < 2:
        raise ValueError(f"{len(chosen)} pictures make no pair: each is drawn with another one's caption")
    half = len(chosen) // 2
    captions = chosen.captions[half:] + chosen.captions[:half]
    sources, texts = run.fitted(chosen.images), run.embed_text(captions)
    embeds = run.embed(sources)
    rows: list[list[Tensor]] = [[source] for source in sources[: run.options.rows]]
    numbers: Numbers = {}
    values: dict[float, dict[str, Tensor]] = {}
    with run.progress("drawing", len(chosen) * len(strengths)) as bar:
        for strength in strengths:
            parts = []
            for start in range(0, len(chosen), AT_ONCE):
                some = slice(start, start + AT_ONCE)
                options = {"strength": strength, "seed": run.options.seed, "first": start, "size": run.small}
                parts.append(run.pipe.img2img(sources[some], captions[some], **options).images)
                bar.update(len(parts[-1]))
            images = torch.cat(parts)
            drawn = run.embed(images)
            values[strength] = {
                RMS: figures.rms(images, sources),
                CAPTION: (drawn * texts).sum(1),
                SOURCE: (drawn * embeds).sum(1),
            }
            numbers[f"strength {strength:g}"] = {name: figures.mean(value) for name, value in values[strength].items()}
            for row, image in zip(rows, images):
                row.append(image)
    for before, after in pairwise(strengths):  # paired: is each step one away from the source, towards the caption?
        numbers[f"strength {after:g} less {before:g}"] = {
            name: figures.mean(values[after][name] - values[before][name]) for name in (RMS, CAPTION)
        }
    labels = [["given", *(f"{caption}: {s:g}" if s == strengths[0] else f"{s:g}" for s in strengths)] for caption in captions]
    page = run.sheet(rows, labels[: len(rows)], f"{run.pipe.name}: given, then drawn for another caption, by strength")
    return Drawn({".png": page, "_curve.png": plot(numbers, strengths)}, numbers, {"captions": captions})


def plot(numbers: Numbers, strengths: Sequence[float]) -> bytes:
    figure, (left, right) = axes(1, 2, "Image to image: another emoji's picture, drawn for a caption")
    found = [numbers[f"strength {strength:g}"] for strength in strengths]
    band(left, list(strengths), [row[RMS] for row in found], RMS, "tab:blue")
    band(right, list(strengths), [row[CAPTION] for row in found], CAPTION, "tab:green")
    band(right, list(strengths), [row[SOURCE] for row in found], SOURCE, "tab:orange")
    for axis in (left, right):
        axis.set_xlabel("strength")
        axis.legend()
    return png(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.parser(__doc__, n=60)
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--rows", type=int, default=5, help="pairs in the sheet (default: 5)")
    figures.main("img2img", parser, draw, arguments)


if __name__ == "__main__":
    main()

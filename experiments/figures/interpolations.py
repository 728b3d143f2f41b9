"""Interpolations (unCLIP 3.2, Fig. 4): slerp of z_i between two pictures, with slerp of x_T or one fixed x_T.

    python -m experiments.figures.interpolations [MODEL] [--pictures FILE...] [-o FOLDER] [--n 8] [--frames 9]

Pictures 1 and 2 make a pair, 3 and 4, ...  Writes interpolations.png, interpolations.gif (above slerped, below fixed x_T) and
interpolations.json: PSNR of the ends to the pictures, and how evenly the pictures change on the way.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from experiments.figures import common as figures
from experiments.figures.common import Drawn, Run

PATHS = {"slerp": "slerped x_T", "fixed": "fixed x_T"}


def draw(run: Run) -> Drawn:
    frames = run.options.frames
    chosen = run.pictures()
    if len(chosen) < 2 or frames < 3:
        raise ValueError(f"{len(chosen)} pictures, {frames} frames: a path goes from one picture to another in at least 3 frames")
    pairs = list(zip(range(0, len(chosen) - 1, 2), range(1, len(chosen), 2)))
    sources = run.fitted(chosen.images)
    latents = run.invert(chosen.images)
    rows: list[list[Tensor]] = []
    labels: list[list[str]] = []
    paths: dict[str, list[Tensor]] = {title: [] for title in PATHS.values()}
    results: dict[str, dict[str, list[float]]] = {title: {} for title in PATHS.values()}
    with run.progress("interpolating", len(pairs) * len(PATHS) * frames) as bar:
        for a, b in pairs:
            for x_t, title in PATHS.items():
                ends = [latents[a], latents[b]]
                made = run.pipe.interpolate(ends, frames, x_t, seed=run.options.seed, size=run.size)  # type: ignore[arg-type]
                rows.append([sources[a], *made.images, sources[b]])
                labels.append([chosen.captions[a], f"{title} 0", *made.labels[1:], chosen.captions[b]])
                paths[title].append(made.images)
                for name, values in measured(run, made.stages[run.small], sources[a], sources[b]).items():
                    results[title].setdefault(name, []).extend(values)
                bar.update(frames)
    numbers = {title: {name: figures.mean(values) for name, values in by_name.items()} for title, by_name in results.items()}
    steps = [[[path[k] for path in paths[title]] for title in paths] for k in range(frames)]
    page = run.sheet(rows, labels, f"{run.pipe.name}: given, the path, given")
    about = {"pairs": [[chosen.captions[a], chosen.captions[b]] for a, b in pairs], "frames": frames}
    return Drawn({".png": page, ".gif": run.animation(steps)}, numbers, about)


def measured(run: Run, images: Tensor, start: Tensor, end: Tensor) -> dict[str, list[float]]:
    """Of one path (frames, 3, s, s): how near its ends are to the pictures, and how even its steps."""
    steps = figures.rms(images[1:], images[:-1])
    across = figures.rms(images[-1:], images[:1])
    embeds = run.embed(images)
    cosines = (embeds[1:] * embeds[:-1]).sum(1)
    return {
        "PSNR of the ends to the pictures, dB": [
            *figures.psnr(images[:1], start[None]).tolist(),
            *figures.psnr(images[-1:], end[None]).tolist(),
        ],
        "RMS difference of neighbours": [float(steps.mean())],
        "largest step / mean step": [float(steps.max() / steps.mean().clamp(min=1e-9))],
        "RMS difference of the ends": across.tolist(),
        "CLIP cosine of neighbours": [float(cosines.mean())],
        "CLIP cosine of neighbours, the least": [float(cosines.min())],
        "CLIP cosine of the ends": [float(embeds[0] @ embeds[-1])],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.parser(__doc__, n=8)
    parser.add_argument("--frames", type=int, default=9, help="pictures on a path, both ends included (default: 9)")
    figures.main("interpolations", parser, draw, arguments)


if __name__ == "__main__":
    main()

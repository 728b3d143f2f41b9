"""Text diffs (unCLIP 3.3, Fig. 5): z_i turned towards the difference of two captions, x_T kept.

    python -m experiments.figures.text_diffs [MODEL] [-o FOLDER] [--n 8] [--theta 0.5] [--frames 5]
    python -m experiments.figures.text_diffs [MODEL] --pictures cat.png --captions "a cat" --to "a tiger"

A held-out emoji is asked for another skin tone and, where its caption names one, the other gender.  The baseline caption is
the picture's own, the empty one, or none at all; the sheet and the GIF show the first.  Writes text_diffs.png, text_diffs.gif
and text_diffs.json: over theta, CLIP's cosine of the drawn picture to both captions, how far the pixels have moved, and how far
they are from the true emoji of the target caption, where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from experiments.emoji.evaluation.siblings import TONE
from experiments.figures import common as figures
from experiments.figures.common import Drawn, Numbers, Run

FAR = {"light": "dark", "medium-light": "dark", "medium": "light", "medium-dark": "light", "dark": "light"}
OTHER = {"man": "woman", "woman": "man", "men": "women", "women": "men", "boy": "girl", "girl": "boy"}
GENDER = re.compile(rf"\b(?:{'|'.join(OTHER)})\b")
BASELINES = ("its own caption", "the empty caption", "no caption")


class Diff(NamedTuple):
    picture: int
    source: str
    target: str


def draw(run: Run) -> Drawn:
    frames = run.options.frames
    if not 0 < run.options.theta <= 1 or frames < 2:
        raise ValueError(f"--theta is {run.options.theta}, --frames {frames}: the one lies in (0, 1], the other is at least 2")
    chosen = run.pictures()
    diffs = [Diff(i, caption, target) for i, caption in enumerate(chosen.captions) for target in targets(run, caption)]
    if not diffs:
        raise ValueError("no caption names a skin tone or a gender to change: say what the pictures shall become with --to TEXT")
    truths = _truths(run, diffs)
    latents = run.invert(chosen.images)
    sources = run.fitted(chosen.images)
    results: dict[str, dict[str, list[float]]] = {}
    rows: list[list[Tensor]] = []
    labels: list[list[str]] = []
    with run.progress("turning", len(diffs) * len(BASELINES) * frames) as bar:
        for diff in diffs:
            both = run.embed_text([diff.target, diff.source])
            truth = truths.get(diff.target)
            for baseline, text in zip(BASELINES, (diff.source, "", None)):
                first = baseline == BASELINES[0]
                made = run.pipe.text_diff(
                    latents[diff.picture],
                    diff.target,
                    text,
                    theta=run.options.theta,
                    steps=frames,
                    guidance=run.options.guidance,
                    seed=run.options.seed,
                    size=run.size if first else run.small,
                )
                small = made.stages[run.small]
                cosines = run.embed(small) @ both.T
                moved = figures.rms(small, small[:1].expand_as(small))
                for k, label in enumerate(made.labels):
                    values = {
                        "CLIP cosine to the target": cosines[k, 0],
                        "CLIP cosine to the source": cosines[k, 1],
                        "RMS difference to theta 0": moved[k],
                    }
                    if truth is not None:
                        values["RMS difference to the true target"] = figures.rms(small[k : k + 1], truth[None])[0]
                    for name, value in values.items():
                        results.setdefault(f"from {baseline}, {label}", {}).setdefault(name, []).append(float(value))
                if first:
                    rows.append([sources[diff.picture], *made.images, *([truth] if truth is not None else [])])
                    message = [diff.source, *made.labels[:-1], f"{made.labels[-1]}: {diff.target}", "true target"]
                    labels.append(message[: len(rows[-1])])
                bar.update(frames)
    # One row per setting; settings of one baseline stay together.
    order = sorted(results, key=lambda setting: next(i for i, name in enumerate(BASELINES) if name in setting))
    numbers: Numbers = {setting: {name: figures.mean(values) for name, values in results[setting].items()} for setting in order}
    steps = [[[row[1 + k] for row in rows]] for k in range(frames)]
    page = run.sheet(rows, labels, f"{run.pipe.name}: given, then turned from the first caption to the last")
    about = {"diffs": [{"from": diff.source, "to": diff.target} for diff in diffs], "guidance": run.options.guidance or 1.0}
    return Drawn({".png": page, ".gif": run.animation(steps)}, numbers, about)


def targets(run: Run, caption: str) -> list[str]:
    """What a picture shall become."""
    if run.options.to:
        return [run.options.to]
    return [other for other in (other_tone(caption), other_gender(caption)) if other != caption]


def other_tone(caption: str) -> str:
    """Light and medium-light become dark, the others light."""
    return TONE.sub(lambda match: f"{FAR[match[1]]} skin tone", caption)


def other_gender(caption: str) -> str:
    """Where one person has a gender, the other one."""
    return GENDER.sub(lambda match: OTHER[match[0]], caption) if len(GENDER.findall(caption)) == 1 else caption


def _truths(run: Run, diffs: Sequence[Diff]) -> dict[str, Tensor]:
    """The emoji that target captions name."""
    if run.options.pictures:
        return {}
    data = run.emoji("all")
    row = {caption: i for i, caption in enumerate(data.captions)}
    known = sorted({diff.target for diff in diffs} & set(row))
    if not known:
        return {}
    images = data.batch([row[caption] for caption in known]).images
    assert images is not None
    return dict(zip(known, images))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.parser(__doc__, n=8)
    parser.add_argument("--to", metavar="TEXT", help="what all shall become; default: another skin tone, the other gender")
    parser.add_argument("--theta", type=float, default=0.5, help="part of the angle to turn by (default: 0.5)")
    parser.add_argument("--frames", type=int, default=5, help="pictures from 0 to theta (default: 5)")
    parser.add_argument("--guidance", type=float, help="of the decoder; default: 1, with which theta 0 is the picture itself")
    figures.main("text_diffs", parser, draw, arguments)


if __name__ == "__main__":
    main()

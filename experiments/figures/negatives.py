"""Negative captions: what guidance leads away from is seen less in the picture.

    python -m experiments.figures.negatives [MODEL] [-o FOLDER] [--n 60] [--prior-guidance 2]

Held-out captions, the same noise with and without.  The negative is the caption that CLIP finds nearest among the others held
out (mostly the same thing with another skin tone), or one that has nothing to do with it.  Writes negatives.png (the first --rows
captions) and negatives.json: CLIP's cosine of the picture to the negative and to its own caption, and the paired differences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from experiments.figures import common as figures
from experiments.figures.common import Drawn, Numbers, Run

AT_ONCE = 20
ITSELF, OWN = "cosine to the negative", "cosine to the caption"


def draw(run: Run) -> Drawn:
    options, captions = run.options, run.pictures().captions
    if len(captions) < 3:
        raise ValueError(f"{len(captions)} captions: at least 3 are needed, to have a near one and a far one")
    text = run.embed_text(captions)
    near = (text @ text.T).fill_diagonal_(-2).argmax(1).tolist()
    far = (text @ text.T).argmin(1).tolist()
    prior = run.pipe.prior.config.sampling.replace(guidance=options.prior_guidance)  # type: ignore[union-attr]
    plain = {True: images(run, captions, None, prior), False: images(run, captions, None, None)}
    rows = [[plain[False][i]] for i in range(min(options.rows, len(captions)))]
    numbers: Numbers = {}
    for name, others, both in (
        ("the nearest caption, in prior and decoder", near, True),
        ("the nearest caption, in the decoder", near, False),
        ("the farthest caption, in prior and decoder", far, True),
    ):
        negatives = [captions[k] for k in others]
        made = images(run, captions, negatives, prior if both else None)
        before, after = run.embed(plain[both]), run.embed(made)
        found = {ITSELF: text[others], OWN: text}
        numbers[name] = {f"{key}, without": figures.mean((before * value).sum(1)) for key, value in found.items()}
        numbers[name] |= {f"{key}, with": figures.mean((after * value).sum(1)) for key, value in found.items()}
        numbers[name] |= {f"{key}, difference": figures.mean(((after - before) * value).sum(1)) for key, value in found.items()}
        for row, image in zip(rows, made):
            row.append(image)
    labels = [
        [captions[i], f"away from: {captions[near[i]]}", "the same, decoder alone", f"away from: {captions[far[i]]}"]
        for i in range(len(rows))
    ]
    page = run.sheet(rows, labels, f"{run.pipe.name}: drawn for a caption, and away from another one")
    return Drawn({".png": page}, numbers, {"captions": captions, "prior_guidance": options.prior_guidance})


def images(run: Run, captions: Sequence[str], negatives: Sequence[str] | None, prior: object) -> Tensor:
    parts = []
    for start in range(0, len(captions), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        asked = {"seed": run.options.seed, "first": start, "size": run.small, "prior": prior}
        asked |= {} if negatives is None else {"negative": negatives[some]}
        parts.append(run.pipe.generate(captions[some], **asked).images)
    return torch.cat(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.parser(__doc__, n=60)
    parser.add_argument("--prior-guidance", type=float, default=2.0, help="of the prior, which ships with 1 = off (default: 2)")
    parser.add_argument("--rows", type=int, default=6, help="captions in the sheet (default: 6)")
    figures.main("negatives", parser, draw, arguments)


if __name__ == "__main__":
    main()

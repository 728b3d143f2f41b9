"""Re-ranking: of N pictures drawn for a caption the one that CLIP finds nearest to it is kept (DALL-E 1, 2.6).

    python -m experiments.figures.reranking [MODEL] [-o FOLDER] [--n 40] [--draws 16]

Held-out captions; the draws of a larger N hold those of a smaller one.  Judged by the CLIP that ranks, whose score can only rise,
and by others: the pixels of the true picture, ImageNet features of EfficientNet-Lite0 (where its weights are installed).
Guidance hides how draws differ, so they are drawn once as the decoder ships, once at guidance 1.  Writes reranking.png (curves),
reranking_sheet.png (the first --rows captions, from the best to the worst of the draws) and reranking.json.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from experiments.emoji.evaluation import lite0
from experiments.figures import common as figures
from experiments.figures.common import Drawn, Numbers, Run
from experiments.figures.plots import axes, band, png
from unclip import rerank

AT_ONCE = 5  # captions
SCORE, PIXELS, IMAGENET = "CLIP cosine to the caption", "RMS to the true picture", "ImageNet cosine to the true picture"
COLOURS = {"as it ships": "tab:blue", "guidance 1": "tab:orange"}


def draw(run: Run) -> Drawn:
    options, chosen = run.options, run.pictures()
    draws, own = options.draws, run.pipe.decoder.resolve(None)
    if draws < 2:
        raise ValueError(f"--draws is {draws}; ranking needs at least 2 pictures for a caption")
    counts = [2**k for k in range(draws.bit_length()) if 2**k <= draws]
    truth, captions = run.fitted(chosen.images), chosen.captions
    judge = lite0.network() if lite0.weights() else None
    numbers: Numbers = {}
    page = b""
    with run.progress("drawing", 2 * len(captions) * draws) as bar:
        for name, sampling in (("as it ships", own), ("guidance 1", own.replace(guidance=1.0, interval=None))):
            parts = []
            for start in range(0, len(captions), AT_ONCE):
                some = captions[start : start + AT_ONCE]
                asked = {"n": draws, "seed": options.seed, "first": start * draws, "size": run.small, "decoder": sampling}
                parts.append(run.pipe.generate(some, **asked).images)
                bar.update(len(parts[-1]))
            images = torch.cat(parts).unflatten(0, (-1, draws))  # (c, n, 3, s, s)
            scores = rerank(run.pipe.clip, images.flatten(0, 1), captions).scores  # (c, n)
            values = {SCORE: scores, PIXELS: torch.stack([figures.rms(x, y.expand_as(x)) for x, y in zip(images, truth)])}
            if judge is not None:
                real = lite0.features(judge, truth)
                values[IMAGENET] = (lite0.features(judge, images.flatten(0, 1)).unflatten(0, (-1, draws)) * real[:, None]).sum(-1)
            numbers |= curves(name, values, counts)
            if not page:
                page = sheet(run, images, scores, captions)
    return Drawn({".png": plot(numbers, counts, list(values)), "_sheet.png": page}, numbers, {"pictures": captions})


def curves(name: str, values: dict[str, Tensor], counts: Sequence[int]) -> Numbers:
    """Of the best of the first N by the ranking CLIP what each judge says; and what it says beyond a single draw, paired."""
    numbers: Numbers = {}
    single = {key: value.double().mean(1) for key, value in values.items()}  # of a draw that nothing chose, on average
    for count in counts:
        best = values[SCORE][:, :count].argmax(1, keepdim=True)
        kept = {key: value.gather(1, best)[:, 0].double() for key, value in values.items()}
        numbers[f"{name}, best of {count}"] = {key: figures.mean(value) for key, value in kept.items()}
        numbers[f"{name}, best of {count}"] |= {
            f"{key}, less a single draw's": figures.mean(value - single[key]) for key, value in kept.items()
        }
    return numbers


def sheet(run: Run, images: Tensor, scores: Tensor, captions: Sequence[str]) -> bytes:
    rows, labels = [], []
    for pictures, score, caption in list(zip(images, scores, captions))[: run.options.rows]:
        order = score.argsort(descending=True)[:: max(1, len(score) // 6)].tolist()
        rows.append([pictures[i] for i in order])
        labels.append([f"{caption}: {score[i]:.2f}" if k == 0 else f"{score[i]:.2f}" for k, i in enumerate(order)])
    return run.sheet(rows, labels, f"{run.pipe.name}: draws of a caption by CLIP's cosine to it")


def plot(numbers: Numbers, counts: Sequence[int], keys: Sequence[str]) -> bytes:
    figure, parts = axes(1, len(keys), "Held-out captions: the best of N pictures by CLIP")
    for axis, key in zip(parts, keys):
        for name, colour in COLOURS.items():
            band(axis, list(counts), [numbers[f"{name}, best of {count}"][key] for count in counts], name, colour)
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_xlabel("pictures drawn")
        axis.set_ylabel(key)
        axis.legend()
    return png(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.parser(__doc__, n=40)
    parser.add_argument("--draws", type=int, default=16, help="pictures for each caption (default: 16)")
    parser.add_argument("--rows", type=int, default=5, help="captions in the sheet (default: 5)")
    figures.main("reranking", parser, draw, arguments)


if __name__ == "__main__":
    main()

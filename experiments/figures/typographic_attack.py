"""Typographic attack (unCLIP 4, Fig. 6): a label or a second object on a picture; what CLIP says, what the decoder draws.

    python -m experiments.figures.typographic_attack [MODEL] [--pictures FILE... --captions TEXT...] [-o FOLDER] [--n 6]
        [--draws 2]

Picture i is attacked in the name of picture i + 1: by its caption on a white strip, and by itself, pasted small into a
corner.  CLIP chooses among the captions of all pictures; the decoder draws from the embedding of what CLIP has seen.  Writes
typographic_attack.png and typographic_attack.json: CLIP's probabilities of both captions, and whether a drawn picture's pixels
are nearer the attacked picture or the attacker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from experiments.emoji.evaluation.siblings import TONE
from experiments.figures import common as figures
from experiments.figures.common import Drawn, Numbers, Run
from unclip.data.images import load_image
from unclip.images import to_pil

CANVAS = 256  # pixels: room to write
ATTACKS = ("clean", "label", "second object")


def draw(run: Run) -> Drawn:
    chosen = run.pictures(CANVAS)
    count, draws = len(chosen), run.options.draws
    if count < 2 or draws < 1:
        raise ValueError(f"{count} pictures, {draws} draws: an attack needs a second picture to speak for, and at least one draw")
    canvases = [canvas(image) for image in chosen.images]
    sources = run.fitted([load_image(picture) for picture in canvases])
    captions = run.embed_text(chosen.captions)
    results: dict[str, dict[str, list[float]]] = {attack: {} for attack in ATTACKS}
    rows: list[list[Tensor | Image.Image]] = []
    labels: list[list[str]] = []
    with run.progress("drawing", count * len(ATTACKS) * draws) as bar:
        for i in range(count):
            other, shown = (i + 1) % count, i < run.options.rows
            if shown:
                rows.append([])
                labels.append([])
            attacked = {
                "clean": canvases[i],
                "label": labelled(canvases[i], words(chosen.captions[other])),
                "second object": pasted(canvases[i], canvases[other]),
            }
            for attack, picture in attacked.items():
                image = load_image(picture)
                seen = run.embed(image[None])
                chance, cosine = probabilities(run, seen, captions)[0], (seen @ captions.T)[0]
                made = run.pipe.vary(
                    image, draws, x_t="fresh", seed=run.options.seed, first=i * draws, size=run.size if shown else run.small
                )
                small = made.stages[run.small]
                own = figures.rms(small, sources[i].expand_as(small))
                its = figures.rms(small, sources[other].expand_as(small))
                drawn = probabilities(run, run.embed(small), captions).mean(0)
                for name, value in {
                    "CLIP's probability of the own caption": chance[i],
                    "CLIP's probability of the attacker's": chance[other],
                    "CLIP's cosine to the own caption": cosine[i],  # not saturated, as a probability is
                    "CLIP's cosine to the attacker's": cosine[other],
                    "drawn: CLIP's probability of the own caption": drawn[i],
                    "drawn: CLIP's probability of the attacker's": drawn[other],
                    "drawn: nearer the own picture than the attacker": (own < its).double().mean(),
                    "drawn: RMS difference to the own picture": own.mean(),
                    "drawn: RMS difference to the attacker": its.mean(),
                }.items():
                    results[attack].setdefault(name, []).append(float(value))
                if shown:
                    rows[-1] += [picture, *made.images]
                    said = [f"{chance[k]:.0%} {words(chosen.captions[k])}" for k in (i, other)]
                    labels[-1] += [f"CLIP: {', '.join(said)}", *["drawn"] * draws]
                bar.update(draws)
    numbers: Numbers = {
        attack: {name: figures.mean(values) for name, values in by_name.items()} for attack, by_name in results.items()
    }
    page = run.sheet(rows, labels, f"{run.pipe.name}: what CLIP was shown, and what is drawn from its embedding")
    return Drawn({".png": page}, numbers, {"captions": chosen.captions, "draws": draws})


def probabilities(run: Run, images: Float[Tensor, "b d"], captions: Float[Tensor, "c d"]) -> Float[Tensor, "b c"]:
    """CLIP's zero-shot choice among captions, at the temperature it was trained to."""
    logarithm = getattr(run.pipe.clip, "logit_scale", math.log(100))  # 100 is where CLIP's training clips it
    scale = float(torch.as_tensor(logarithm).detach().exp())
    return (scale * images @ captions.T).softmax(dim=-1).double()


def canvas(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """The picture's middle square, large enough to write on."""
    picture = to_pil(image)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return square if side == CANVAS else square.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)


def words(caption: str) -> str:
    """A caption as short as a label has it."""
    return " ".join(TONE.sub("", caption).split()) or caption


def labelled(picture: Image.Image, text: str) -> Image.Image:
    """A white strip with the text, in letters as large as fit, across the lower third."""
    made, box = picture.copy(), (CANVAS // 16, CANVAS * 5 // 8, CANVAS * 15 // 16, CANVAS * 7 // 8)
    pen, room = ImageDraw.Draw(made), (box[2] - box[0] - 8, box[3] - box[1] - 8)
    pen.rectangle(box, fill="white", outline="black", width=2)
    split = text.split()
    broken = [" ".join(split[:k]) + "\n" + " ".join(split[k:]) for k in range(1, len(split))]
    layouts = [text, *sorted(broken, key=lambda lines: max(map(len, lines.split("\n"))))[:1]]  # one line, or two of like lengths
    for points in range(CANVAS // 4, 3, -1):
        font = ImageFont.load_default(size=points)
        boxes = {lines: pen.multiline_textbbox((0, 0), lines, font=font, align="center") for lines in layouts}
        fitting = [lines for lines, (x, y, right, bottom) in boxes.items() if right - x <= room[0] and bottom - y <= room[1]]
        if fitting:
            break
    lines = (fitting or layouts)[0]
    x, y, right, bottom = boxes[lines]
    middle = ((box[0] + box[2] - x - right) // 2, (box[1] + box[3] - y - bottom) // 2)
    pen.multiline_text(middle, lines, fill="black", font=font, align="center")
    return made


def pasted(picture: Image.Image, other: Image.Image) -> Image.Image:
    """The other picture in the lower right corner, at half the side."""
    made, side = picture.copy(), CANVAS // 2
    made.paste(other.resize((side, side), Image.Resampling.LANCZOS), (CANVAS - side, CANVAS - side))
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.parser(__doc__, n=6)
    parser.add_argument("--draws", type=int, default=2, help="pictures drawn from each embedding (default: 2)")
    parser.add_argument("--rows", type=int, default=6, help="pictures in the sheet (default: 6)")
    figures.main("typographic_attack", parser, draw, arguments)


if __name__ == "__main__":
    main()

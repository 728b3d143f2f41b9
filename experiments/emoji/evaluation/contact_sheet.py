"""The contact sheet of the README: for the first ten captions of each split, ordered by SHA-1, the truth and the chain's picture.

    python -m experiments.emoji.evaluation.contact_sheet [MODEL] [-o FILE] [--size 256]

Seed 0, one picture a caption, no selection.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from experiments.emoji.data.emoji_data import EmojiData
from experiments.emoji.evaluation.measure import by_hash
from unclip.images import to_pil
from unclip.pipelines.unclip import UnCLIP

COLUMNS, CELL, TEXT = 5, 120, 30
FILE = Path(__file__).parents[1] / "contact_sheet.png"


def sheet(pipe: UnCLIP, size: int) -> Image.Image:
    """Ten trained captions above ten held-out ones; in each cell the true picture, then the drawn one."""
    cells = []
    for split in ("train", "heldout"):
        truth = EmojiData(split, 64)  # type: ignore[arg-type]
        rows = by_hash(truth.keys, truth.captions, 10)
        captions = [truth.captions[i] for i in rows]
        true = EmojiData(split, 256).batch(rows).images  # type: ignore[arg-type]
        assert true is not None
        drawn = pipe.generate(captions, seed=0, size=size).images
        cells.append([(caption, to_pil(a), to_pil(b)) for caption, a, b in zip(captions, true, drawn)])
    width, height = COLUMNS * (2 * CELL + 12), 2 * (20 + 2 * (CELL + TEXT))
    page = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=11)
    for block, (title, rows_) in enumerate(zip(("trained captions: truth, drawn", "held-out captions: truth, drawn"), cells)):
        top = block * height // 2
        draw.text((4, top + 3), title, fill="black", font=ImageFont.load_default(size=13))
        for i, (caption, a, b) in enumerate(rows_):
            x, y = (i % COLUMNS) * (2 * CELL + 12), top + 20 + (i // COLUMNS) * (CELL + TEXT)
            for j, picture in enumerate((a, b)):
                page.paste(picture.resize((CELL, CELL), Image.Resampling.LANCZOS), (x + j * CELL, y))
            draw.multiline_text((x + 4, y + CELL), "\n".join(textwrap.wrap(caption, 38)[:2]), fill="black", font=font, spacing=1)
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    prog = "python -m experiments.emoji.evaluation.contact_sheet"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="emoji")
    parser.add_argument("-o", "--output", type=Path, default=FILE)
    parser.add_argument("--size", type=int, default=256, help="resolution drawn at; cells show 120 pixels")
    options = parser.parse_args(arguments)
    try:
        page = sheet(UnCLIP.from_pretrained(options.model), options.size)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    page.save(options.output, optimize=True)
    print(options.output)


if __name__ == "__main__":
    main()

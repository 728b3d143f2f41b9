"""The table of emoji in four styles, `motifs.jsonl`, and what of it is held out: three tiers that no training ever sees.

    tone    a skin tone of a motif whose other tones are trained: the 205 that the first generation holds out, in every style
    style   a motif in one style, whatever its tone and gender, while other styles of it are trained
    motif   a whole motif, in no style at all; neither flags, as no other picture tells what is on one, nor the emoji of the first
            phones (version 0.6: red heart, pizza), which are what people ask for

Fixed by the SHA-1 of keys, and by nothing that anybody chose.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from experiments.emoji.data import drawings, source
from experiments.emoji.data.words import Name
from experiments.emoji.evaluation.siblings import motif

MOTIFS = Path(__file__).parents[1] / "motifs.jsonl"
FLAGS, CLASSICS = 9, 0.6  # the group of flags in emojibase; the version of the first emoji
Tier = Literal["train", "tone", "style", "motif"]
TIERS: tuple[Tier, ...] = get_args(Tier)
HELD_OUT = TIERS[1:]
# Trained tones whose picture is, bit for bit, that of a held-out one (an astronaut's visor hides the tone): held out with it.
TWINS = {
    "twemoji-1f469-1f3fc", "fluent-1f468-1f3fc", "fluent-1f469-1f3fc", "noto-1f468-1f3fb-200d-1f680",
    "noto-1f469-1f3fb-200d-1f680", "noto-1f9d1-1f3ff-200d-1f680",
}  # fmt: skip


class Row(NamedTuple):
    """One emoji: its code points, its English CLDR name without punctuation, group and version, the styles that draw it."""

    key: str
    name: str
    group: int
    version: float  # of Unicode's emoji
    styles: tuple[str, ...]
    icon: str | None = None  # the name of EmojiTwo's icon


class Picture(NamedTuple):
    """One drawing of an emoji."""

    style: str
    row: Row
    motif: str  # what it shows, whatever its skin tone and gender
    tier: Tier

    @property
    def key(self) -> str:
        return f"{self.style}-{self.row.key}"


@functools.cache
def read_table(path: Path = MOTIFS) -> tuple[Row, ...]:
    """The committed table, in the order of keys."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return tuple(Row(**row | {"styles": tuple(row["styles"].split())}) for row in rows)


@functools.cache
def pictures() -> tuple[Picture, ...]:
    """All drawings, style by style, each with its tier."""
    rows = read_table()
    shown = {row.key: motif(row.name) for row in rows}
    first: dict[str, str] = {}  # the key that stands for a motif: its first one
    for row in rows:
        first.setdefault(shown[row.key], row.key)
    spared = {shown[row.key] for row in rows if row.group == FLAGS or row.version <= CLASSICS}
    out = {name: held_out_style(first[name], drawn) for name, drawn in _styles_of_motifs(rows, shown).items()}
    tones = {drawings.normalised(row.key) for row in source.read_captions() if row.split == "heldout"}

    def tier(row: Row, style: str) -> Tier:
        name = shown[row.key]
        if name not in spared and is_held_out_motif(first[name]):
            return "motif"
        if row.key in tones or f"{style}-{row.key}" in TWINS:
            return "tone"
        return "style" if out[name] == style else "train"

    return tuple(
        Picture(style, row, shown[row.key], tier(row, style)) for style in drawings.STYLES for row in rows if style in row.styles
    )


def is_held_out_motif(key: str) -> bool:
    """One motif in ten, by its first key."""
    return _number(key) % 10 == 0


def held_out_style(key: str, styles: Iterable[str]) -> str | None:
    """For one motif in five a style that is held out, if there are at least two others to learn it from."""
    drawn, number = sorted(styles), _number(f"style {key}")
    return drawn[number // 5 % len(drawn)] if number % 5 == 0 and len(drawn) > 2 else None


def make_table(names: Mapping[str, Name], drawn: Mapping[str, Iterable[str]], icons: Mapping[str, str]) -> list[Row]:
    """names: by key; drawn: the keys of each style; icons: the key of each icon of EmojiTwo's."""
    icon_of = {key: icon for icon, key in icons.items()}
    keys = {style: set(of) for style, of in drawn.items()}
    rows = []
    for key, (name, group, version) in sorted(names.items()):
        styles = tuple(style for style in drawings.STYLES if key in keys[style])
        if styles:
            rows.append(Row(key, name, group, version, styles, icon_of.get(key) if "emojitwo" in styles else None))
    return rows


def table_text(rows: Iterable[Row]) -> str:
    lines = []
    for row in rows:
        fields = row._asdict() | {"styles": " ".join(row.styles)}
        lines.append(json.dumps({name: value for name, value in fields.items() if value is not None}, ensure_ascii=False) + "\n")
    return "".join(lines)


def _styles_of_motifs(rows: Iterable[Row], shown: Mapping[str, str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(shown[row.key], set()).update(row.styles)
    return found


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha1(text.encode()).digest(), "big")

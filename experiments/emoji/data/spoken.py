"""`spoken.jsonl`: 200 captions as newcomers type them, a third of them not in English, and the emoji that would please them.

Nobody trains on them: `StyledEmoji` says something else where chance has made one of them up.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

from experiments.emoji.data import motifs
from experiments.emoji.data.drawings import key_of
from experiments.emoji.evaluation.siblings import motif

SPOKEN = Path(__file__).parents[1] / "spoken.jsonl"


class Spoken(NamedTuple):
    caption: str
    language: str
    motifs: frozenset[str]  # any of which is what was meant, whatever its skin tone and gender


@functools.cache
def read_spoken(path: Path = SPOKEN) -> tuple[Spoken, ...]:
    names = {row.key: row.name for row in motifs.read_table()}
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        meant = frozenset(motif(names[key_of(emoji)]) for emoji in row["emoji"].split())
        found.append(Spoken(row["caption"], row["language"], meant))
    return tuple(found)


def plain(caption: str) -> str:
    """Captions that differ in case and spaces alone are one caption."""
    return " ".join(caption.casefold().split())


@functools.cache
def untrained() -> frozenset[str]:
    """What no training may say."""
    lines = SPOKEN.read_text(encoding="utf-8").splitlines()
    return frozenset(plain(json.loads(line)["caption"]) for line in lines)

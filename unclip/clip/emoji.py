"""Emoji characters read out by name, for text towers that know words: "a 🎂" is "a birthday cake"."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

TONES = {
    "\U0001f3fb": "light",
    "\U0001f3fc": "medium-light",
    "\U0001f3fd": "medium",
    "\U0001f3fe": "medium-dark",
    "\U0001f3ff": "dark",
}
NAMES = Path(__file__).with_name("emoji.tsv")
_VARIANT = re.compile("[\ufe0e\ufe0f]")


def spell_emoji(text: str, stays: Callable[[str], bool] = lambda emoji: False) -> str:
    """The text with each emoji replaced by its English CLDR name; skin tones follow it ("waving hand dark skin tone").

    Of a sequence that Unicode does not know the single emoji are named.  Characters that are letters, digits or punctuation too
    ("©", "3") stay as they are, and emoji for which `stays` is true.
    """
    if text.isascii():
        return text
    names, pattern = _table()
    plain, changed = _VARIANT.sub("", text), False

    def name(found: re.Match[str]) -> str:
        nonlocal changed
        if stays(found[0]):
            return found[0]
        changed = True
        return f" {_name(found[0], names)} "

    read = pattern.sub(name, plain)
    return " ".join(read.replace("\u200d", " ").split()) if changed else text


def _name(character: str, names: dict[str, str]) -> str:
    if character in names:
        return names[character]
    tones = dict.fromkeys(f"{TONES[c]} skin tone" for c in character if c in TONES)
    plain = "".join(c for c in character if c not in TONES)
    return " ".join([names.get(plain, ""), *tones]).strip()


@functools.cache
def _table() -> tuple[dict[str, str], re.Pattern[str]]:
    """Names by character, and what finds the longest ones first, each of their characters maybe toned.

    Toned ones are in the table only where the name is not that without tones and the tones behind it ("man dark skin tone bald").
    """
    lines = NAMES.read_text(encoding="utf-8").splitlines()
    names = dict(line.split("\t", 1) for line in lines)
    tone = f"[{''.join(TONES)}]?"
    longest = sorted(names, key=len, reverse=True)
    spelt = ["".join(re.escape(c) + (tone if c != "\u200d" else "") for c in character) for character in longest]
    return names, re.compile("|".join([*spelt, f"[{''.join(TONES)}]"]))

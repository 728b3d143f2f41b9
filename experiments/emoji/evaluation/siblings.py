"""Which emoji are one motif in several people: skin tones and genders, read off the captions."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

TONE = re.compile(r"\b(medium-light|medium-dark|light|medium|dark) skin tone\b")
_ADULTS = {"man", "woman", "person", "men", "women", "people"}
# CLDR names some motifs by words that hold the gender.
_NEUTRAL = {
    "boy": "child", "girl": "child", "old": "older", "merman": "merperson", "mermaid": "merperson",
    "prince": "with crown", "princess": "with crown",
}  # fmt: skip
_HAIR = {"red hair", "curly hair", "white hair", "bald"}  # the hair itself, on nobody's head


def motif(caption: str) -> str:
    """The caption without skin tones and genders: "woman and man holding hands dark skin tone" is "holding hands".

    A family keeps how many adults and children it has, who are as different as any two pictures.
    """
    words = TONE.sub("", caption).split()
    if not words:  # the five swatches of skin tones themselves
        return caption
    if caption in _HAIR:
        return f"{caption} alone"
    if words[-1] == "Claus":
        return "Claus"
    family = words[0] == "family"
    kept = []
    for i, word in enumerate(words):
        joins = word == "and" and i > 0 and i + 1 < len(words) and {words[i - 1], words[i + 1]} <= _ADULTS
        if word in _ADULTS and family:
            kept.append("person")
        elif word not in _ADULTS and not joins:
            kept.append(_NEUTRAL.get(word, word))
    return " ".join(kept) or "person"


def groups_of(names: Sequence[object]) -> Int[Tensor, " n"]:
    """Equal names, equal numbers, counted from 0 in the order of their first coming."""
    numbers: dict[object, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])

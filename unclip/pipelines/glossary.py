"""The captions that a model was trained on, as far as its folder tells them: what it can draw, and what it has no word for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

from unclip import checkpoint
from unclip.clip.pieces import is_unspaced, words
from unclip.files import read_text

FILE = "captions.txt"  # in a pipeline's folder: a caption a line, behind a tab other words that lead to it
# Words that say nothing of what is to be seen.
_SMALL = """
a an the of in on at by with and or to for from my your his her our some this that please draw paint show make me i want
picture image photo drawing sketch emoji icon style is are very
"""
SMALL = frozenset(_SMALL.split())


class Glossary:
    """Captions by the words in them and behind them, without case and accents."""

    def __init__(self, lines: Iterable[str]):
        rows = [line.split("\t", 1) for line in lines if line.strip()]
        self.captions = tuple(row[0] for row in rows)
        self._words = [frozenset(words(" ".join(row))) for row in rows]
        self.words = frozenset().union(*self._words)

    @classmethod
    def of(cls, model: str | Path) -> Glossary | None:
        """That of a pipeline by shipped name, folder or hub id, None where it has none; no weights are read."""
        path = checkpoint.open_pipeline(model).folder / FILE
        return cls(read_text(path).splitlines()) if path.is_file() else None

    def search(self, text: str, every: bool = True) -> list[str]:
        """The captions that have the words of the text, or words that begin so; the shortest first.

        every=False: at least one of those that tell what is to be seen.
        """
        wanted, enough = (words(text), all) if every else (self.content(text), any)
        matches = [
            caption
            for caption, known in zip(self.captions, self._words)
            if enough(any(word.startswith(start) for word in known) for start in wanted)
        ]
        return sorted(matches, key=lambda caption: (len(caption), caption))

    def near(self, text: str, n: int = 3) -> list[str]:
        """Known words that are spelt much like those of the text: for each word its nearest first."""
        matches = [difflib.get_close_matches(word, sorted(self.words), n, 0.75) for word in self.content(text)]
        ranked = [near for row in zip_longest(*matches) for near in row if near]
        return list(dict.fromkeys(ranked))[:n]

    def content(self, text: str) -> list[str]:
        """The words of a text that tell what is to be seen."""
        return [word for word in words(text) if word not in SMALL]

    def knows(self, word: str) -> bool:
        """Of scripts without spaces also a word that holds a known one."""
        return word in self.words or (is_unspaced(word) and any(known in word for known in self.words if is_unspaced(known)))

    def unknown(self, caption: str) -> str | None:
        """What to say of a caption of which no word is known; None of one of which some are, or that says nothing."""
        content = self.content(caption)
        if not content or any(self.knows(word) for word in content):
            return None
        near = self.near(caption)
        hint = f"; near: {', '.join(near)}" if near else ""
        return f"the model knows no word of {caption!r}: {', '.join(content)}{hint} (unclip captions WORD searches what it knows)"

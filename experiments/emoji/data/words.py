"""What people call an emoji: names and keywords in five languages, from emojibase (CLDR's, MIT) and emojilib (MIT).

Compiled once from the tarballs of npm into one file of the cache.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from experiments.emoji.data import packages
from experiments.emoji.data.drawings import normalised
from unclip.files import write_files

LANGUAGES = ("en", "de", "fr", "es", "zh")
_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")


class Words(NamedTuple):
    """Of one emoji in one language: its name without punctuation, and what else it is found by, tone words not among it."""

    name: str
    keywords: tuple[str, ...]


class Name(NamedTuple):
    """What an emoji is called in English, and where Unicode has it."""

    name: str
    group: int
    version: float


def english(tarball: Path) -> dict[str, Name]:
    """By key; emoji outside of any group (single regional letters) are left out."""
    entries = _entries(tarball, "en")
    return {
        key: Name(spoken(entry["label"]), entry["group"], base["version"]) for key, entry, base in entries if "group" in entry
    }


def compile_words(emojibase: Path, emojilib: Path) -> dict[str, dict[str, Words]]:
    """Language -> key -> words.  Keywords of an emoji with skin tones are those of the one without."""
    more = {_without_fe0f(character): words for character, words in _json(emojilib, "dist/emoji-en-US.json").items()}
    found: dict[str, dict[str, Words]] = {}
    for language in LANGUAGES:
        found[language] = {}
        for key, entry, base in _entries(emojibase, language):
            tags = [*base.get("tags", ())]
            if language == "en":
                tags += more.get(_without_fe0f(base["emoji"]), ())
            name = spoken(entry["label"])
            keywords = dict.fromkeys(spoken(tag) for tag in tags)
            kept = tuple(word for word in keywords if word and word.casefold() != name.casefold())
            found[language][key] = Words(name, kept)
    return found


def cached(folder: Path, npm: Path) -> dict[str, dict[str, Words]]:
    """`compile_words` of the pinned packages, from its file in `folder` or into it."""
    path = folder / f"words-{packages.EMOJIBASE.version}-{packages.EMOJILIB.version}.json"
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, Words]])
    made = compile_words(packages.fetch(packages.EMOJIBASE, npm), packages.fetch(packages.EMOJILIB, npm))
    write_files([(path, msgspec.json.encode(made))])
    return made


def spoken(label: str) -> str:
    """As one says it: "waving hand: dark skin tone" is "waving hand dark skin tone", "thumbs_up" is "thumbs up"."""
    return " ".join(re.sub("[\u2019\u02bc]", "'", re.sub("[:,_\u202f\u00a0“”«»„\u201c\u201d\uff1a，、]+", " ", label)).split())


def rarity(words: Mapping[str, Words]) -> dict[str, float]:
    """Of each keyword 1 / (motifs that it leads to), emoji with skin tones not counted."""
    counts: dict[str, int] = {}
    for key, (_, keywords) in words.items():
        if not is_toned(key):
            for word in keywords:
                counts[word] = counts.get(word, 0) + 1
    return {word: 1 / n for word, n in counts.items()}


def untoned(key: str, known: Mapping[str, Words]) -> str:
    """The key without its skin tones, if that is an emoji; else itself."""
    first, *points = key.split("-")
    plain = "-".join([first, *(point for point in points if point not in _TONES)])
    return plain if plain in known else key


def is_toned(key: str) -> bool:
    return "-" in key and any(point in _TONES for point in key.split("-")[1:])


def _entries(tarball: Path, language: str) -> Iterable[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Key, entry, and the entry without skin tones that it belongs to."""
    for base in _json(tarball, f"{language}/data.json"):
        for entry in (base, *base.get("skins", ())):
            yield normalised(entry["hexcode"]), entry, base


def _json(tarball: Path, name: str) -> Any:
    files = packages.read(tarball, lambda other: other == name)
    if name not in files:
        raise ValueError(f"{tarball} holds no {name}")
    return json.loads(files[name])


def _without_fe0f(text: str) -> str:
    return text.replace("\ufe0f", "")

"""Captions as people say them: "a red car", "face with tears of joy, noto style", "ein bild von Geburtstagskuchen".

A caption is made of the name or of keywords of one language, colours of the drawing, small talk and the style, each of which may
be left out.  Everything is drawn from one noise stream, so the same stream says the same.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from experiments.emoji.data.paraphrase import paraphrases
from experiments.emoji.data.words import LANGUAGES, Words, is_toned
from unclip.randomness import Noise

# English first; the others cost the text tower as much each, and the picture side nothing.
SHARES = {"en": 0.60, "de": 0.1, "fr": 0.1, "es": 0.1, "zh": 0.1}
OPENERS = {
    "de": ("ein", "eine", "einen", "bild von", "ein bild von", "zeichne", "ich möchte", "zeig mir", "kleine", "mein", "emoji"),
    "fr": ("un", "une", "le", "la", "un dessin de", "une image de", "dessine", "je veux", "montre-moi", "mon", "emoji"),
    "es": ("un", "una", "el", "la", "un dibujo de", "una imagen de", "dibuja", "quiero", "muéstrame", "mi", "emoji"),
    "zh": ("一个", "一只", "一张", "画一个", "我想要", "图片", "请画", "可爱的", "小"),
}
STYLED = {
    "en": (
        "{0}, {1} style", "{0} in {1} style", "{1} style {0}", "{0} {1} style", "{1} {0}", "{0} in the style of {1}", "{0} {1}",
    ),
    "de": ("{0} im {1} stil", "{0}, {1} stil", "{1} {0}"),
    "fr": ("{0} style {1}", "{0}, style {1}", "{0} {1}"),
    "es": ("{0} estilo {1}", "{0}, estilo {1}", "{0} {1}"),
    "zh": ("{1} 风格 {0}", "{0} {1} 风格", "{0} {1}"),
}  # fmt: skip
COLOURED = {
    "en": {},
    "de": {
        "red": "rot rote roter rotes", "orange": "orange", "yellow": "gelb gelbe gelber gelbes",
        "green": "grün grüne grüner grünes",
        "blue": "blau blaue blauer blaues", "purple": "lila", "pink": "rosa", "brown": "braun braune brauner braunes",
        "black": "schwarz schwarze schwarzer schwarzes", "gray": "grau graue grauer graues", "white": "weiß weiße weißer weißes",
    },
    "fr": {
        "red": "rouge", "orange": "orange", "yellow": "jaune", "green": "vert verte", "blue": "bleu bleue",
        "purple": "violet violette",
        "pink": "rose", "brown": "marron", "black": "noir noire", "gray": "gris grise", "white": "blanc blanche",
    },
    "es": {
        "red": "rojo roja", "orange": "naranja", "yellow": "amarillo amarilla", "green": "verde", "blue": "azul",
        "purple": "morado morada",
        "pink": "rosa", "brown": "marrón", "black": "negro negra", "gray": "gris", "white": "blanco blanca",
    },
    "zh": {
        "red": "红色的", "orange": "橙色的", "yellow": "黄色的", "green": "绿色的", "blue": "蓝色的", "purple": "紫色的",
        "pink": "粉色的", "brown": "棕色的", "black": "黑色的", "gray": "灰色的", "white": "白色的",
    },
}  # fmt: skip
AFTER = ("fr", "es")  # languages that say a colour behind what has it


class Said(NamedTuple):
    """What there is to say of one drawing: its words by language, the odds of its keywords, its colours and style."""

    words: Mapping[str, Words]
    odds: Mapping[str, tuple[float, ...]]  # cumulative, of the keywords of each language
    colours: tuple[str, ...]
    style: str
    tone: Mapping[str, str]  # the skin tone in each language, "" without one


def sayings(said: Sequence[Said], noise: Noise) -> list[str]:
    """One caption for each drawing; one stream each."""
    rows = noise.uniform((16,)).tolist()
    plain, languages, styled = [], [], []
    for one, row in zip(said, rows):
        chance = iter(row)
        languages.append(_one(LANGUAGES, chance, [SHARES[language] for language in LANGUAGES]))
        plain.append(_thing(one, languages[-1], chance))
        styled.append((next(chance) < 0.5, next(chance)))
    small_talk = paraphrases(plain, noise.at("paraphrase"))
    talks = noise.at("talk").uniform((2,)).tolist()
    captions = []
    for one, language, text, english, (with_style, form), (talk, opener) in zip(
        said, languages, plain, small_talk, styled, talks
    ):
        if language == "en":
            text = english if talk < 0.5 else text
        elif talk < 0.3:
            text = _pick(OPENERS[language], opener) + (" " if language != "zh" else "") + text
        captions.append(_pick(STYLED[language], form).format(text, one.style) if with_style else text)
    return captions


def odds(keywords: Sequence[str], rarity: Mapping[str, float]) -> tuple[float, ...]:
    """Cumulative odds of the keywords, those of few emoji first of all."""
    return tuple(itertools.accumulate(rarity.get(word, 1.0) for word in keywords))


def tone_of(key: str, words: Mapping[str, Words], plain: Mapping[str, Words]) -> dict[str, str]:
    """The skin tone of an emoji in each language: what its name has behind that of the emoji without."""
    if not is_toned(key):
        return dict.fromkeys(words, "")
    return {language: words[language].name.removeprefix(plain[language].name).strip() for language in words}


def _thing(one: Said, language: str, chance: Iterator[float]) -> str:
    """The name or keywords, in colour or not."""
    name, keywords = one.words[language]
    kind, toned, coloured = next(chance), next(chance), next(chance)
    first, second = next(chance), next(chance)
    if kind < 0.5 or not keywords:
        text = name
    elif kind < 0.72:
        text = _keyword(one, language, first)
    elif kind < 0.86:
        text = f"{_keyword(one, language, first)} {_keyword(one, language, second)}"
    elif kind < 0.95:
        text = f"{_keyword(one, language, first)} {name}" if second < 0.5 else f"{name} {_keyword(one, language, first)}"
    else:
        text = f"{name} {dict(en='with', de='mit', fr='avec', es='con', zh='和')[language]} {_keyword(one, language, first)}"
    if 0.5 <= kind < 0.86 and keywords and toned < 0.9 and one.tone[language]:
        text = f"{text} {one.tone[language]}"
    if language == "en" and next(chance) < 0.08 and not one.tone[language] and not text.endswith("s"):
        text = f"{text}s"  # "two red apples"; what is no noun does not mind either
    return _coloured(text, one, language, chance) if coloured < 0.25 and not one.tone[language] else text


def _keyword(one: Said, language: str, chance: float) -> str:
    cumulative = one.odds[language]
    return one.words[language].keywords[bisect.bisect_right(cumulative, chance * cumulative[-1] * (1 - 1e-9))]


def _coloured(text: str, one: Said, language: str, chance: Iterator[float]) -> str:
    if any(colour in text for colour in one.colours):  # "red heart"
        return text
    forms = [_pick(COLOURED[language].get(colour, colour).split(), next(chance)) for colour in one.colours]
    join = {"en": " and ", "de": " und ", "fr": " et ", "es": " y ", "zh": ""}[language]
    how = next(chance)
    told = forms[0] if how < 0.6 else join.join(forms)
    if language == "zh":
        return f"{told}{text}"
    if language == "en" and how > 0.9:
        return f"{text} in {told}"
    return f"{text} {told}" if language in AFTER else f"{told} {text}"


def _pick(choices: Sequence[str], chance: float) -> str:
    return choices[int(chance * len(choices))]


def _one(choices: Sequence[str], chance: Iterator[float], shares: Sequence[float]) -> str:
    cumulative = list(itertools.accumulate(shares))
    return choices[min(bisect.bisect_right(cumulative, next(chance) * cumulative[-1]), len(choices) - 1)]

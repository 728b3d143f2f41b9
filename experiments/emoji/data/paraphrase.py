"""Paraphrases of the captions, so that people need not know them: "please draw a cute sailboat" for "sailboat".

The CLIP learnt from the bare captions alone, and took any other word for a hint at something else.  `Paraphrase` teaches its text
tower that these say the same; priors and decoders are then trained on with `EmojiData(paraphrase=...)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import Tensor

from unclip.clip.encoder import CLIP
from unclip.config import Config
from unclip.randomness import Noise
from unclip.training.task import Task, require
from unclip.types import Batch, Losses

OPENERS = (
    "a picture of", "an emoji of", "an icon of", "a drawing of", "photo of", "a photo of", "image of", "draw", "please draw",
    "show me", "i want", "give me", "cartoon of", "a cute cartoon of", "here is", "look at", "there is", "make",
)  # fmt: skip
ARTICLES = ("a", "a", "a", "the", "the", "an", "my", "your", "this", "some", "one", "two", "any", "his", "her", "our")
MANNERS = (
    "cute", "nice", "small", "big", "little", "tiny", "beautiful", "funny", "lovely", "pretty", "simple", "colorful", "great",
    "fresh", "very nice", "good", "bright", "real", "huge", "sweet", "modern", "classic", "flat", "shiny",
)  # fmt: skip
TAILS = (
    "please", "emoji", "icon", "on white", "on a white background", "in the forest", "on the sea", "in winter", "at night",
    "today", "outside", "at home", "in the city", "on the table", "in the sky", "by the sea", "in summer", "for you", "now",
    "in color", "with style", "in my garden", "sign", "symbol", "picture", "that looks good", "and nothing else", "here",
)  # fmt: skip
TONE = re.compile(r"^(.+?) ((?:medium-|)(?:light|dark|medium)) skin tone$")
TONED = ("{0} with {1} skin tone", "{0} with {1} skin", "{1} skin tone {0}", "{0}, {1} skin tone", "{0} of {1} skin tone")


def paraphrases(captions: Sequence[str], noise: Noise) -> list[str]:
    """For each caption another way to say it; one stream each."""
    rows = noise.uniform((16,)).tolist()
    return [_paraphrase(caption, iter(row)) for caption, row in zip(captions, rows)]


def _paraphrase(caption: str, chance: Iterator[float]) -> str:
    def one(words: Sequence[str]) -> str:
        return words[int(next(chance) * len(words))]

    toned = TONE.match(caption)
    if next(chance) < 0.5 and toned:
        caption = one(TONED).format(*toned.groups())
    words = caption.split()
    if len(words) > 3 and next(chance) < 0.1:
        del words[int(next(chance) * len(words))]
    if len(words) > 9:  # the tower reads so many
        return " ".join(words)
    if next(chance) < 0.4:
        words.insert(0, one(MANNERS))
    if next(chance) < 0.6:
        words.insert(0, one(ARTICLES))
    if next(chance) < 0.25:
        words.insert(0, one(OPENERS))
    if next(chance) < 0.4:
        words.append(one(TAILS))
    return " ".join(words)


class ParaphraseConfig(Config, frozen=True, kw_only=True):
    """`Paraphrase` has no settings; this names it in a training."""


class Paraphrase(Task):
    """A CLIP's text tower learns paraphrases; what it answers to the captions themselves, batch.text, stays as it was.

    Squared errors in units of the answers' variance: of the embedding of a paraphrase and of the caption's own embedding and
    token states, which priors and decoders read.
    """

    config_class = ParaphraseConfig
    model: CLIP

    def __init__(self, model: CLIP, config: ParaphraseConfig | None = None):
        super().__init__()
        self.model = model

    @classmethod
    def reads(cls, config: Config) -> tuple[str, ...]:
        return "captions", "text"

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        require(batch, ["captions", "text"], "Paraphrase")
        captions, known = batch.captions, batch.text
        assert captions is not None and known is not None
        others = paraphrases(captions, noise.at("wording"))
        made = self.model.encode_text([*captions, *others])
        own, other = made.embed.split(len(captions))
        embed, states, mask = (x.to(own.device) for x in (known.embed, known.states, known.mask))
        kept = _error(own, embed)
        apart = (made.states[: len(captions)] - states).square().mean(2) / states[mask].var()
        kept = kept + (apart * mask).sum(1) / mask.sum(1)
        moved = _error(other, embed)
        return Losses(moved + kept, None, {"moved": moved, "kept": kept})


def _error(x: Tensor, true: Tensor) -> Tensor:
    return (x.float() - true).square().mean(1) / true.var(0).mean()

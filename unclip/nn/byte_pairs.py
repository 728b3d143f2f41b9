"""GPT-2's byte pairs, lower-cased, which GLIDE reads captions with; its merges are a tensor of the network that has them.

(`tokenizers` and `transformers` have them too, but read them from files; here they are stored, checked and moved with the
weights whose rows they name.)
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from unclip.config import visible

Pair = tuple[int, int]

# A caption falls into contractions, words, numbers and other signs, each with the space before it, and what spaces are left.
_CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
_WORD = re.compile(" ?L+| ?N+| ?o+|[ s]+(?![LNo])|[ s]+")  # of the kinds of characters
# The first 256 ids are the bytes: those that Latin-1 prints, then the others.  Files write the others as letters from U+0100.
_PRINTED = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
BYTES = (*_PRINTED, *(b for b in range(256) if b not in _PRINTED))
_ID_OF_BYTE = {b: i for i, b in enumerate(BYTES)}
LETTERS = tuple(chr(b) if i < len(_PRINTED) else chr(256 + i - len(_PRINTED)) for i, b in enumerate(BYTES))


class Vocabulary(NamedTuple):
    """What merges mean."""

    ids: dict[Pair, int]  # two tokens -> the token that they become; lower ones are made first
    bytes: list[bytes]  # of each token


class BytePairs(nn.Module):
    """Captions -> ids (b, context) and the mask of real tokens: no start, no end, cut at `context`, padding masked.

    vocab: of the embedding: 256 bytes, the merges in their order, and one id for the padding, which no caption has.
    """

    merges: Tensor

    def __init__(self, vocab: int, context: int):
        super().__init__()
        self.context = context
        self.register_buffer("merges", torch.full((merges_of(vocab), 2), -1, dtype=torch.int32))
        self._read: tuple[Tensor, Vocabulary] | None = None  # of which merges: loading puts others in their place

    @torch.no_grad()
    def set_merges(self, merges: Int[Tensor, "n 2"]) -> None:
        """Store a vocabulary (`parse_merges`); ValueError for one of another size than the embedding's."""
        if merges.shape != self.merges.shape:
            raise ValueError(
                f"the vocabulary has {len(merges)} merges, so {vocab_of(len(merges))} tokens; the embedding has "
                f"{vocab_of(len(self.merges))}: is it that of these weights?"
            )
        vocabulary(merges)
        self.merges.copy_(merges)
        self._read = None

    def forward(self, captions: Sequence[str]) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """On the CPU.  A longer caption is cut, with a warning that says what is left out."""
        words = self.vocabulary()
        ids = torch.zeros(len(captions), self.context, dtype=torch.int64)
        mask = torch.zeros(len(captions), self.context, dtype=torch.bool)
        for i, caption in enumerate(captions):
            row = tokens(caption, words)
            if len(row) > self.context:
                dropped = b"".join(words.bytes[t] for t in row[self.context :]).decode(errors="replace").strip()
                problem = f"the caption {caption!r} is longer than the {self.context} tokens that are read"
                warnings.warn(f"{problem}; dropped: {dropped!r}", stacklevel=2)
            row = row[: self.context]
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[i, : len(row)] = True
        return ids, mask

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._read = None  # numbers may have been written over in place

    def vocabulary(self) -> Vocabulary:
        """What the merges mean; ValueError where there are none yet."""
        if self._read is None or self._read[0] is not self.merges:
            if (self.merges < 0).all():
                problem = "this network reads captions with GPT-2's byte pairs, which it was not given"
                raise ValueError(f"{problem}: byte_pairs.set_merges(parse_merges(open('vocab.bpe').read()))")
            self._read = (self.merges, vocabulary(self.merges))
        return self._read[1]


def merges_of(vocab: int) -> int:
    """How many merges a vocabulary of so many tokens has."""
    return vocab - 257


def vocab_of(merges: int) -> int:
    """How many tokens so many merges make: the 256 bytes, and one for padding beside them."""
    return merges + 257


def vocabulary(merges: Int[Tensor, "n 2"]) -> Vocabulary:
    """ValueError unless every merge joins two tokens that are there before it, to one that is new."""
    ids: dict[Pair, int] = {}
    spelt = [bytes([b]) for b in BYTES]
    for i, (a, b) in enumerate(merges.tolist()):
        if not (0 <= a < len(spelt) and 0 <= b < len(spelt)) or (a, b) in ids:
            raise ValueError(f"merge {i} of the vocabulary joins the tokens {a} and {b}: no vocabulary has such a merge")
        ids[a, b] = len(spelt)
        spelt.append(spelt[a] + spelt[b])
    return Vocabulary(ids, spelt)


def split(caption: str) -> list[str]:
    """The pieces within which bytes are joined, as GPT-2 cuts them."""
    kinds, pieces, at = "".join(map(_kind, caption)), [], 0
    while at < len(caption):
        match = _CONTRACTION.match(caption, at) or _WORD.match(kinds, at)
        assert match is not None
        pieces.append(caption[at : match.end()])
        at = match.end()
    return pieces


def _kind(character: str) -> str:
    """L a letter, N a number, a space, s another white space, o anything else."""
    if character.isspace():
        return " " if character == " " else "s"
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "o"


def tokens(caption: str, words: Vocabulary) -> list[int]:
    """A caption's ids."""
    spelt = [[_ID_OF_BYTE[b] for b in word.encode()] for word in split(caption.lower())]
    return [t for word in spelt for t in merged(word, words.ids)]


def merged(word: list[int], ids: dict[Pair, int]) -> list[int]:
    """The bytes of a word, joined while there are two that go together, the earliest merge of the vocabulary first."""
    while len(word) > 1:
        pair = min(pairwise(word), key=lambda pair: ids.get(pair, len(ids) + 256))
        if pair not in ids:
            break
        joined: list[int] = []
        for t in word:  # from the left, so that of three equal ones the first two are joined
            if joined and (joined[-1], t) == pair:
                joined[-1] = ids[pair]
            else:
                joined.append(t)
        word = joined
    return word


def parse_merges(text: str, source: str = "the vocabulary") -> Int[Tensor, "n 2"]:
    """The merges in a `vocab.bpe` or `merges.txt`, one in a line, as pairs of ids; ValueError names a bad line."""
    known = {letter: i for i, letter in enumerate(LETTERS)}
    pairs = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        words = line.split(" ")
        if len(words) != 2 or any(word not in known for word in words) or "".join(words) in known:
            problem = f"{source}, line {number}: {visible(repr(line))} joins no two tokens that are there before it to a new one"
            raise ValueError(f"{problem}; expected the merges of GPT-2's byte pairs")
        pairs.append([known[word] for word in words])
        known["".join(words)] = len(known)
    if not pairs:
        raise ValueError(f"{source} has no merges; expected one in each line, as 'h e'")
    return torch.tensor(pairs, dtype=torch.int32)


def spelt(merges: Int[Tensor, "n 2"]) -> list[str]:
    """The tokens of a vocabulary by their ids, as files write them."""
    letters = dict(zip(BYTES, LETTERS))
    return ["".join(letters[b] for b in word) for word in vocabulary(merges).bytes]

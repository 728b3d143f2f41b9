"""A small vocabulary of word pieces, learnt on one's own captions: for languages that CLIP's byte pairs cut to crumbs.

CLIP's merges come from English: of the emoji captions in five languages 6 % are longer than 24 byte pairs, of which 8,800
different ones occur; of 6,144 own pieces 0.02 % are.  (The library `tokenizers` has such models too; it would be one more
dependency, a compiled one, for the lines below.)
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch

from .emoji import spell_emoji
from .tokenizer import PAD, UNKNOWN, Tokens, warn_dropped

INNER = "##"  # marks a piece that goes on with a word; pieces of scripts without spaces never do
_WORD = re.compile(r"[^\W_]+|[#*!?&+]")
_UNSPACED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")  # Thai, Kana, Han


def words(caption: str) -> list[str]:
    """What is tokenised: words without case, accents and punctuation, emoji characters by their names.

    "Un gâteau, 🎂!" is un, gateau, birthday, cake, !.
    """
    plain = unicodedata.normalize("NFKD", spell_emoji(caption).casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return _WORD.findall(unicodedata.normalize("NFC", plain))


def is_unspaced(word: str) -> bool:
    """Whether a word begins in a script that puts no spaces between words."""
    return bool(_UNSPACED.match(word))


class PieceTokenizer:
    """Each word to the longest pieces that it begins with, again and again; a character that none has is unknown.

    Rows of the vocabulary: 0 pad, 1 unknown, `pieces`, start, end, which is last, where open_clip's arg-max pooling looks for it.
    """

    def __init__(self, context_length: int, pieces: Sequence[str]):
        self.context_length, self.pieces = context_length, tuple(pieces)
        self.rows = {piece: row for row, piece in enumerate(self.pieces, UNKNOWN + 1)}
        self._longest = max(map(len, self.pieces), default=1)

    @property
    def vocab_size(self) -> int:
        return len(self.pieces) + 4

    def split(self, word: str) -> list[str]:
        """The pieces of a word of `words`; characters that none of them has, one by one."""
        found, place = [], 0
        while place < len(word):
            mark = INNER if place and not _UNSPACED.match(word[place]) else ""
            for end in range(min(len(word), place + self._longest), place, -1):
                if mark + word[place:end] in self.rows:
                    break
            else:
                end = place + 1
            found.append(mark + word[place:end])
            place = end
        return found

    def __call__(self, captions: Sequence[str]) -> Tokens:
        ids = torch.full((len(captions), self.context_length), PAD, dtype=torch.int64)
        mask = torch.zeros(len(captions), self.context_length, dtype=torch.bool)
        start, end, room = self.vocab_size - 2, self.vocab_size - 1, self.context_length - 2
        for i, caption in enumerate(captions):
            pieces = [piece for word in words(caption) for piece in self.split(word)]
            if len(pieces) > room:
                dropped = " ".join(pieces[room:]).replace(f" {INNER}", "").removeprefix(INNER)
                warn_dropped(caption, self.context_length, dropped)
            row = [start, *(self.rows.get(piece, UNKNOWN) for piece in pieces[:room]), end]
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return Tokens(ids, mask)


def learn_pieces(captions: Iterable[str], size: int) -> tuple[str, ...]:
    """At most `size` pieces for such captions, by byte-pair encoding over characters, in the order in which they were found.

    The single characters come first, the most frequent ones, and take at most half of the places.
    """
    counts = Counter(word for caption in captions for word in words(caption))
    spelt = {word: _characters(word) for word in counts}
    single: Counter[str] = Counter()
    for word, pieces in spelt.items():
        for piece in pieces:
            single[piece] += counts[word]
    known = [piece for piece, _ in sorted(single.items(), key=lambda item: (-item[1], item[0]))[: size // 2]]
    return tuple([*known, *_merges(spelt, counts, size - len(known), set(known))])


def check_pieces(pieces: Sequence[str]) -> None:
    """ValueError unless they are different pieces with something in them."""
    if not pieces or len(set(pieces)) < len(pieces) or any(not piece.removeprefix(INNER) for piece in pieces):
        raise ValueError(f"pieces must be different and not empty, given {len(pieces)}: learn_pieces(captions, size) makes such")


def _characters(word: str) -> list[str]:
    return [c if i == 0 or _UNSPACED.match(c) else INNER + c for i, c in enumerate(word)]


def _merges(spelt: dict[str, list[str]], counts: Mapping[str, int], size: int, known: set[str]) -> list[str]:
    """Join the most frequent pair of neighbours, again and again; of equally frequent ones the first by name."""
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for word, pieces in spelt.items():
        for pair in pairwise(pieces):
            pairs[pair] += counts[word]
            where[pair].add(word)
    queue = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(queue)
    made: list[str] = []
    while queue and len(made) < size:
        n, pair = heapq.heappop(queue)
        if -n != pairs[pair] or -n < 2:  # an old entry: the pair was counted anew since
            continue
        joined = pair[0] + pair[1].removeprefix(INNER)
        if joined not in known:
            known.add(joined)
            made.append(joined)
        changed = set()
        for word in sorted(where[pair]):
            before = spelt[word]
            spelt[word] = after = _joined(before, pair, joined)
            for sign, pieces in ((-1, before), (1, after)):
                for other in pairwise(pieces):
                    pairs[other] += sign * counts[word]
                    changed.add(other)
                    if sign > 0:
                        where[other].add(word)
        for other in changed:
            if pairs[other] > 0:
                heapq.heappush(queue, (-pairs[other], other))
    return made


def _joined(pieces: list[str], pair: tuple[str, str], joined: str) -> list[str]:
    found: list[str] = []
    for piece in pieces:
        if found and (found[-1], piece) == pair:
            found[-1] = joined
        else:
            found.append(piece)
    return found

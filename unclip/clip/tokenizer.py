"""Captions to token ids and the mask of real tokens, for every tokenizer that open_clip brings.

The mask comes from lengths, never from "id is not zero": open_clip pads with 0, which is also the exclamation mark.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unclip.nn.text import Caption
from unclip.types import Cond, rows_of

from .emoji import spell_emoji

PAD, UNKNOWN = 0, 1  # the first two rows of a compact vocabulary


class Tokens(NamedTuple):
    ids: Int[Tensor, "b l"]
    mask: Bool[Tensor, "b l"]  # True = real token, start and end included


@runtime_checkable
class Tokenizer(Protocol):
    context_length: int

    def __call__(self, captions: Sequence[str]) -> Tokens: ...


@lru_cache
def byte_pairs() -> Any:
    """CLIP's lower-casing byte-pair encoder, shared; its merges ship inside open_clip, so nothing is downloaded."""
    return _tokenizer_module().SimpleTokenizer()


def _tokenizer_module() -> Any:
    """open_clip's file of tokenizers by itself: importing the package would bring torchvision, timm and transformers."""
    if "open_clip" in sys.modules:
        return importlib.import_module("open_clip.tokenizer")
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.submodule_search_locations
    spec = importlib.util.spec_from_file_location(
        "unclip._tokenizer", Path(package.submodule_search_locations[0], "tokenizer.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BytePairTokenizer:
    """CLIP's byte pairs, over all 49,408 ids or over the compact vocabulary `token_ids`.

    Compact rows: 0 pad, 1 unknown, then `token_ids` ascending, which puts the end token last, where open_clip's arg-max
    pooling looks for it.  Emoji that a compact vocabulary lacks are read out by name.  Only the ids are kept here, so it copies
    and pickles with its model.
    """

    def __init__(self, context_length: int, token_ids: Sequence[int] | None = None, bpe: Any = None):
        self.context_length = context_length
        self.token_ids = None if token_ids is None else check_token_ids(token_ids)
        self.rows = None if self.token_ids is None else {t: i for i, t in enumerate(self.token_ids, UNKNOWN + 1)}
        self._bpe = bpe  # only for models whose own tokenizer cleans text differently

    @property
    def vocab_size(self) -> int:
        return len(byte_pairs().encoder) if self.token_ids is None else len(self.token_ids) + 2

    def __call__(self, captions: Sequence[str]) -> Tokens:
        bpe = self._bpe or byte_pairs()
        start, end = bpe.all_special_ids[:2]
        ids = torch.zeros(len(captions), self.context_length, dtype=torch.int64)
        mask = torch.zeros(len(captions), self.context_length, dtype=torch.bool)
        room = self.context_length - 2
        for i, caption in enumerate(captions):
            read = caption if self.rows is None else spell_emoji(caption, self._knows)
            # A caption that spells "<end_of_text>" must not end there.
            words = [t for t in bpe.encode(read) if t not in bpe.all_special_ids]
            if len(words) > room:
                warn_dropped(caption, self.context_length, bpe.decode(words[room:]).strip())
            row = [start, *words[:room], end]
            if self.rows is not None:
                row = [self.rows.get(t, UNKNOWN) for t in row]
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return Tokens(ids, mask)

    def _knows(self, text: str) -> bool:
        assert self.rows is not None
        return all(t in self.rows for t in (self._bpe or byte_pairs()).encode(text))


@lru_cache
def _clip_tokenizer(context_length: int) -> BytePairTokenizer:
    return BytePairTokenizer(context_length)


def tokenized(cond: Cond, caption: Caption | None) -> Cond:
    """The condition with tokens of the strings themselves, for a network that reads them with CLIP's vocabulary."""
    rows_of(cond)  # refuses what is none
    if caption is None or caption.tokenizer != "clip" or cond.text is None:
        return cond
    ids, mask = _clip_tokenizer(caption.context)(cond.text.strings)
    return cond._replace(text=cond.text._replace(tokens=ids, mask=mask))


class HuggingFaceTokenizer:
    """open_clip's wrapper of a Hugging Face tokenizer (SigLIP, XLM-R, ...), with the mask and the warning it lacks."""

    def __init__(self, wrapped: Any):
        if getattr(wrapped, "tokenizer_mode", ""):
            raise ValueError(
                f"open_clip's tokenizer mode {wrapped.tokenizer_mode!r} puts a class token behind the padding; "
                "such text towers have no states to read, choose another CLIP"
            )
        self.wrapped = wrapped
        self.context_length = int(wrapped.context_length)

    def __call__(self, captions: Sequence[str]) -> Tokens:
        ids = self.wrapped(list(captions))
        # Tokenised once more, unpadded: pad and end share one id in SigLIP, so lengths cannot be read from `ids`.
        inner, clean = self.wrapped.tokenizer, getattr(self.wrapped, "clean_fn", None) or _siglip_clean
        whole = inner([clean(caption) for caption in captions], truncation=False, padding=False).input_ids
        lengths = torch.tensor([min(len(row), ids.shape[1]) for row in whole])
        for caption, row in zip(captions, whole):
            over = len(row) - ids.shape[1]
            if over > 0:
                ends = sum(t in inner.all_special_ids for t in row[-2:])
                dropped = row[-over - ends : len(row) - ends]
                warn_dropped(caption, ids.shape[1], inner.decode(dropped).strip())
        return Tokens(ids, torch.arange(ids.shape[1]) < lengths[:, None])


def wrap_tokenizer(tokenizer: Any) -> Tokenizer:
    """The tokenizer that open_clip gives for a model, as a Tokenizer."""
    from open_clip.tokenizer import SimpleTokenizer

    if not isinstance(tokenizer, SimpleTokenizer):
        return HuggingFaceTokenizer(tokenizer)
    # open_clip's "reduction" (random cropping of long captions) is left out on purpose: same caption, same tokens.
    plain = tokenizer.clean_fn.__name__ == byte_pairs().clean_fn.__name__
    return BytePairTokenizer(int(tokenizer.context_length or 77), bpe=None if plain else tokenizer)


def compact_token_ids(captions: Iterable[str], min_count: int = 1) -> tuple[int, ...]:
    """The byte-pair ids seen at least `min_count` times in the training captions, start and end included, ascending.

    For `TextTower.token_ids`: a small CLIP does not want 49,408 rows.  Everything else is read as the unknown token.
    """
    bpe = byte_pairs()
    counts: dict[int, int] = {}
    for caption in captions:
        for t in bpe.encode(caption):
            counts[t] = counts.get(t, 0) + 1
    seen = {t for t, n in counts.items() if n >= min_count}
    return tuple(sorted(seen | set(bpe.all_special_ids)))


def check_token_ids(token_ids: Sequence[int]) -> tuple[int, ...]:
    """ValueError unless the ids are ascending, of CLIP's vocabulary, and end with its start and end tokens."""
    ids, last = tuple(token_ids), 49407
    if list(ids) != sorted(set(ids)) or ids[-2:] != (last - 1, last) or ids[0] < 0:
        raise ValueError(
            f"token_ids must be ascending byte-pair ids without repeats, {last - 1} and {last} (start, end) last; "
            f"given {len(ids)} ids ending in {ids[-2:]}. compact_token_ids(captions) builds such a list"
        )
    return ids


def warn_dropped(caption: str, context: int, dropped: str) -> None:
    warnings.warn(
        f"the caption {caption!r} is longer than CLIP's context of {context} tokens; dropped: {dropped!r}", stacklevel=2
    )


def _siglip_clean(text: str) -> str:
    from open_clip.tokenizer import basic_clean, canonicalize_text

    return canonicalize_text(basic_clean(text))

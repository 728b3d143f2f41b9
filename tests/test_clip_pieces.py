"""Word pieces as a vocabulary, and emoji characters read out by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from experiments.emoji.data import motifs
from unclip.clip.config import Architecture, CLIPConfig, TextTower, VisionTower
from unclip.clip.emoji import spell_emoji
from unclip.clip.encoder import CLIP
from unclip.clip.pieces import PieceTokenizer, learn_pieces, words
from unclip.clip.task import CLIPTask, CLIPTaskConfig
from unclip.clip.tokenizer import BytePairTokenizer, compact_token_ids
from unclip.randomness import Noise
from unclip.types import Batch

CAPTIONS = ["a red car", "two red cars", "Ein grünes Auto", "生日蛋糕", "蛋糕", "red hat"]


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("🎂", "birthday cake"),
        ("a 🎂, please", "a birthday cake , please"),
        ("👋🏿", "waving hand dark skin tone"),
        ("👩🏽‍🚀 in space", "woman astronaut medium skin tone in space"),  # a sequence, its tone inside of it
        ("🇫🇷🇩🇪", "flag France flag Germany"),
        ("❤️ ❤", "red heart red heart"),  # with and without the variation selector
        ("🏴󠁧󠁢󠁥󠁮󠁧󠁿", "flag England"),
        ("👩🏻‍🤝‍👩🏿", "women holding hands light skin tone dark skin tone"),
        ("🎂‍🚀", "birthday cake rocket"),  # which Unicode does not know
        ("1️⃣", "keycap 1"),
        ("© 3# naïve 日本", "© 3# naïve 日本"),  # no emoji
        ("🏽", "medium skin tone"),
        ("", ""),
    ],
)
def test_emoji_are_read_out(typed: str, read: str) -> None:
    assert spell_emoji(typed) == read


def test_every_emoji_of_the_table_has_its_name() -> None:
    """Those with skin tones too, whose names are put together."""
    rows = [row for row in motifs.read_table() if row.key not in ("a9", "ae")]
    typed = ["".join(chr(int(point, 16)) for point in row.key.split("-")) for row in rows]
    assert len(rows) > 3900
    assert [spell_emoji(character) for character in typed] == [row.name for row in rows]


def test_a_compact_vocabulary_reads_out_the_emoji_that_it_lacks() -> None:
    tokenizer = BytePairTokenizer(12, compact_token_ids(["birthday cake", "a rocket", "🚀"]))
    ids = tokenizer(["a 🎂", "a birthday cake", "🚀", "rocket", "🎂🚀", "birthday cake 🚀"]).ids
    assert torch.equal(ids[0], ids[1]) and torch.equal(ids[4], ids[5])
    assert not torch.equal(ids[2], ids[3])  # this one was trained on
    everything = BytePairTokenizer(12)  # OpenAI's vocabulary has emoji
    assert not torch.equal(*everything(["🎂", "birthday cake"]).ids)


def test_words_have_no_case_accents_and_punctuation() -> None:
    assert words("Un gâteau, l'Été: 🎂!") == ["un", "gateau", "l", "ete", "birthday", "cake", "!"]
    assert words("Straße 생일 생일") == ["strasse", "생일", "생일"]  # letters that are composed stay so
    assert words(" ,. ") == []


def test_pieces_are_learnt_from_frequent_pairs() -> None:
    pieces = learn_pieces(CAPTIONS, 60)
    assert len(learn_pieces(CAPTIONS, 8)) == 8 and len(set(pieces)) == len(pieces)
    assert "red" in pieces and "car" in pieces and "蛋糕" in pieces and "##糕" not in pieces
    assert pieces == learn_pieces(CAPTIONS, 60)  # the same again
    # Every merge joins two that were there before it: nothing is out of reach.
    singles = [piece for piece in pieces if len(piece.removeprefix("##")) == 1]
    assert pieces[: len(singles)] == tuple(singles)
    for i, piece in enumerate(pieces[len(singles) :], len(singles)):
        plain, marked = piece.removeprefix("##"), piece.startswith("##")
        halves = [(plain[:k], plain[k:]) for k in range(1, len(plain))]
        before = set(pieces[:i])
        assert any(("##" * marked + a) in before and {b, f"##{b}"} & before for a, b in halves), piece


def test_the_longest_piece_is_taken_and_nothing_is_lost() -> None:
    tokenizer = PieceTokenizer(8, ["c", "ca", "car", "##s", "##p", "蛋", "蛋糕"])
    assert tokenizer.split("cars") == ["car", "##s"]
    assert tokenizer.split("caps") == ["ca", "##p", "##s"]
    assert tokenizer.split("蛋糕蛋") == ["蛋糕", "蛋"]
    assert tokenizer.split("cxs") == ["c", "##x", "##s"]
    whole = PieceTokenizer(24, learn_pieces(CAPTIONS, 60))
    for caption in CAPTIONS:
        for word in words(caption):
            assert "".join(piece.removeprefix("##") for piece in whole.split(word)) == word


def test_ids_and_mask() -> None:
    tokenizer = PieceTokenizer(6, ["car", "##s", "red"])
    assert tokenizer.vocab_size == 7
    tokens = tokenizer(["red cars", "xy", ""])
    assert tokens.ids.tolist() == [[5, 4, 2, 3, 6, 0], [5, 1, 1, 6, 0, 0], [5, 6, 0, 0, 0, 0]]
    assert tokens.mask.sum(1).tolist() == [5, 4, 2]
    with pytest.warns(UserWarning, match="longer than CLIP's context of 6 tokens; dropped: 's'"):
        long = tokenizer(["red red red cars"])
    assert long.ids.tolist() == [[5, 4, 4, 4, 2, 6]]


def _clip(pieces: tuple[str, ...]) -> CLIP:
    vision = VisionTower(image_size=16, patch_size=8, width=16, layers=1, head_width=8)
    text = TextTower(context_length=16, width=16, layers=1, heads=2, pieces=pieces)
    return CLIP(CLIPConfig(architecture=Architecture(embed_dim=8, vision=vision, text=text)))


def test_a_clip_reads_them_and_is_stored_with_them(tmp_path: Path) -> None:
    clip = _clip(learn_pieces(CAPTIONS, 40)).eval()
    with torch.no_grad():
        text = clip.encode_text(["a red car", "A RED CAR!", "🎂"])
    assert text.embed.shape == (3, 8) and text.states is not None and text.states.shape == (3, 16, 16)
    clip.save_pretrained(tmp_path / "clip")
    again = CLIP.from_pretrained(tmp_path / "clip")
    with torch.no_grad():
        assert torch.equal(again.encode_text(["a red car"]).embed, text.embed[:1])
    pickle.loads(pickle.dumps(clip))
    # The end token is where the tower is read: what stands behind the mask does not matter.
    ids, mask = clip.tokenize(["red"])
    changed = ids.masked_fill(~mask, 3)
    with torch.no_grad():
        assert torch.equal(clip.encode_tokens(["red"], changed, mask).embed, clip.encode_tokens(["red"], ids, mask).embed)


def test_words_can_be_dropped_in_training() -> None:
    task = CLIPTask(_clip(learn_pieces(CAPTIONS, 40)), CLIPTaskConfig(drop_words=0.5)).train()
    task.model.train()
    batch = Batch(keys=list("ab"), images=torch.zeros(2, 3, 16, 16), captions=["a red car", "red hat"])
    assert torch.isfinite(task(batch, Noise.of(0, range(2))).total).all()


@pytest.mark.parametrize(("pieces", "told"), [((), "not empty"), (("a", "a"), "different"), (("a", "##"), "not empty")])
def test_a_broken_vocabulary_is_refused(pieces: tuple[str, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TextTower(width=8, layers=1, heads=1, pieces=pieces)


def test_one_vocabulary_at_a_time() -> None:
    with pytest.raises(ValueError, match="either byte pairs .* or word pieces"):
        TextTower(width=8, layers=1, heads=1, pieces=("a",), token_ids=(49406, 49407))

"""Captions in the decoder: GLIDE's transformer over tokens, or CLIP's states."""

from __future__ import annotations

import pytest
import torch
from tiny_decoder import CLIP_STATES, CONTEXT, TOKENS, VOCAB, disturb, texts
from torch.nn.functional import layer_norm, linear

from unclip.nn.text import Caption, TextEncoder
from unclip.types import Text

LENGTHS = (3, 6, 1)


def make(config: Caption = TOKENS) -> TextEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = TextEncoder(config, width=24, emb=40).eval()
        disturb(encoder, 0.3)
    return encoder


def same(a: tuple, b: tuple) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b))


@torch.no_grad()
def test_tokens_are_glides_transformer():
    encoder, text = make(), texts(LENGTHS)
    pooled, states, mask = encoder(text, 3)
    rows = []
    for i, length in enumerate(LENGTHS):
        x = encoder.encoder.padding.clone()  # a vector of its own at every position
        x[:length] = encoder.encoder.embedding.weight[text.tokens[i, :length]] + encoder.encoder.positions[:length]
        rows.append(encoder.encoder.transformer(x[None])[0])  # no causal mask
    expected = torch.cat(rows)
    assert states.shape == (3, CONTEXT, 24) and mask.all()
    assert torch.allclose(states, linear(expected, encoder.to_states.weight, encoder.to_states.bias), atol=1e-5)
    # Pooled is literally the last position, padding in all of these, not the last token.
    assert torch.allclose(pooled, linear(expected[:, -1], encoder.to_emb.weight, encoder.to_emb.bias), atol=1e-5)


@torch.no_grad()
def test_padding_vectors_stand_where_there_is_no_token():
    encoder, text = make(), texts(LENGTHS)
    before = encoder(text, 3)
    for position in range(CONTEXT):
        kept = encoder.encoder.padding[position].clone()
        encoder.encoder.padding[position] += torch.linspace(-1, 1, 16)
        changed = (encoder(text, 3)[0] - before[0]).abs().amax(1) > 1e-4
        assert changed.tolist() == [position >= length for length in LENGTHS]
        encoder.encoder.padding[position] = kept
    encoder.encoder.positions[max(LENGTHS) :] += 1  # a padding position has no other
    other = text._replace(tokens=torch.where(text.mask, text.tokens, 49 - text.tokens), embed=text.embed + 1)
    assert same(encoder(other, 3), before)


@torch.no_grad()
def test_early_tokens_see_late_ones():
    encoder, text = make(), texts((6, 6))
    tokens = text.tokens.clone()
    tokens[:, 5] = (tokens[:, 5] + 1) % VOCAB
    _, before, _ = encoder(text, 2)
    _, after, _ = encoder(text._replace(tokens=tokens), 2)
    assert (after - before).abs().amax(-1).min() > 1e-4  # at every position, the first too


@torch.no_grad()
def test_tokens_beyond_the_vocabulary_are_refused():
    text = texts(LENGTHS)
    tokens = text.tokens.clone()
    tokens[1, 2] = VOCAB
    with pytest.raises(ValueError, match="token 50, the vocabulary ends at 49"):
        make()(text._replace(tokens=tokens), 3)


@torch.no_grad()
def test_clip_states_are_projected_normed_and_masked():
    encoder, text = make(CLIP_STATES), texts(LENGTHS)
    pooled, states, mask = encoder(text, 3)
    assert torch.allclose(pooled, linear(text.embed, encoder.to_emb.weight, encoder.to_emb.bias), atol=1e-6)
    projection, norm = encoder.to_states
    expected = layer_norm(linear(text.states, projection.weight, projection.bias), (24,), norm.weight, norm.bias)
    assert states.shape == (3, 1 + CONTEXT, 24) and torch.allclose(states[:, 1:7], expected, atol=1e-5)
    assert not mask[:, 0].any()  # the null is hidden behind a caption
    assert torch.equal(mask[:, 1:7], text.mask) and not mask[:, 7:].any()


@torch.no_grad()
def test_absent_clip_states_are_one_learned_token():
    encoder = make(CLIP_STATES)
    pooled, states, mask = encoder(None, 3)
    assert torch.equal(mask, (torch.arange(1 + CONTEXT) == 0).expand(3, -1))
    assert torch.equal(states[:, 0], encoder.null_state.expand(3, -1))
    assert torch.equal(pooled, encoder.null_pooled.expand(3, -1))


@torch.no_grad()
@pytest.mark.parametrize("config", [TOKENS, CLIP_STATES])
def test_dropped_captions_are_absent_ones(config):
    encoder, text = make(config), texts(LENGTHS, strings=["a", "b", "  "])
    drop = torch.tensor([True, False, False])
    pooled, states, mask = encoder(text, 3, drop)
    none, whole = encoder(None, 3), encoder(text._replace(strings=["a", "b", "c"]), 3)
    for row, (expected, other) in enumerate([(none, whole), (whole, none), (none, whole)]):  # the third is blank
        assert torch.allclose(pooled[row], expected[0][row], atol=1e-6) and torch.equal(mask[row], expected[2][row])
        seen = mask[row]
        assert torch.allclose(states[row, seen], expected[1][row, seen], atol=1e-6)
        assert not torch.allclose(pooled[row], other[0][row], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("config", [TOKENS, CLIP_STATES])
def test_longer_captions_are_cut_and_shorter_ones_padded(config):
    encoder = make(config)
    long = texts((9, 4), context=10)
    cut = Text(long.strings, long.tokens[:, :CONTEXT], long.embed, long.states[:, :CONTEXT], long.mask[:, :CONTEXT])
    assert same(encoder(long, 2), encoder(cut, 2))
    short = texts((2, 3), context=6)
    tight = Text(short.strings, short.tokens[:, :3], short.embed, short.states[:, :3], short.mask[:, :3])
    for a, b in zip(encoder(short, 2), encoder(tight, 2)):
        keep = encoder(tight, 2)[2] if a.ndim == 3 else slice(None)
        assert torch.allclose(a[keep].float(), b[keep].float(), atol=1e-6)


@pytest.mark.parametrize("config", [TOKENS, CLIP_STATES])
def test_one_caption_for_each_picture(config):
    with pytest.raises(ValueError, match="4 pictures but 3 captions"):
        make(config)(texts(LENGTHS), 4)


def test_another_clips_captions_are_refused():
    encoder, text = make(CLIP_STATES), texts(LENGTHS)
    for wrong, message in (
        (text._replace(states=torch.zeros(3, 6, 13)), "13"),
        (text._replace(embed=torch.zeros(3, 11)), "11"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder(wrong, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": "tokens"}, "needs a transformer"),
        ({"kind": "clip_states"}, "states_width and embed_dim"),
        ({"kind": "clip_states", "states_width": 12}, "states_width and embed_dim"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Caption(**changes)

"""How conditions enter the decoder: where each one goes, nulls and drops, and that everything counts."""

from __future__ import annotations

import pytest
import torch
from tiny_decoder import CONTEXT, EMBED, TEXTS, build, conditions, conds, embeds, random, texts
from torch import Tensor
from torch.nn.functional import linear

from decoder.network import DecoderNetwork, Encoded
from unclip.trees import tree_map
from unclip.types import Cond

KINDS = list(TEXTS)
T = torch.tensor([1, 500, 1000])


def network(text: str = "no text", **changes) -> DecoderNetwork:
    return build(text=text, **changes).network


def dropped(image_embed: Tensor, text: Tensor) -> dict[str, Tensor]:
    return {"image_embed": image_embed, "text": text}


def same(a: Encoded, b: Encoded) -> bool:
    """To the UNet: what the mask hides does not count."""
    seen = [torch.equal(x[a.mask], y[a.mask]) for x, y in zip(a.context, b.context)]
    return torch.equal(a.emb, b.emb) and torch.equal(a.mask, b.mask) and all(seen)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_its_formula(kind):
    net, cond, x_t = network(kind), conds(kind), random(3, 3, 8, 8)
    image, unit = net.conditions.image_embed, cond.image_embed / cond.image_embed.norm(dim=1, keepdim=True) * EMBED**0.5
    emb = net.time(T) + linear(unit, image.to_emb.weight, image.to_emb.bias)
    tokens = linear(unit, image.to_tokens.weight, image.to_tokens.bias).reshape(3, 4, 24)
    mask = torch.ones(3, 4, dtype=torch.bool)
    if net.conditions.text is not None:
        pooled, states, real = net.conditions.text(cond.text, 3)
        emb, tokens, mask = emb + pooled, torch.cat([tokens, states], 1), torch.cat([mask, real], 1)
    expected = net.unet(x_t, emb, net.unet.encode_context(tokens), mask)
    assert torch.allclose(net(x_t, T, net.encode(cond, 3)), expected, atol=1e-5)
    assert expected.shape == (3, 6, 8, 8) and expected.square().mean() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("kind, length", [("no text", 4), ("tokens", 4 + CONTEXT), ("clip_states", 4 + 1 + CONTEXT)])
def test_encoded_has_one_shape_with_and_without_conditions(kind, length):
    """Guidance joins the rows of a condition and its null."""
    net = network(kind)
    for encoded in (net.encode(conds(kind), 3), net.encode(Cond(), 3), net.encode(Cond(image_embed=embeds(3)), 3)):
        assert encoded.mask.shape == (3, length) and encoded.emb.shape == (3, 128)
        assert [layer.shape for layer in encoded.context] == [(3, length, 2 * 64)] * 4


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_dropping_everything_is_the_null(kind):
    net, cond, yes = network(kind), conds(kind), torch.ones(3, dtype=torch.bool)
    null = net.encode(Cond(), 3)
    assert same(net.encode(cond, 3, dropped(yes, yes)), null)
    assert not same(net.encode(cond, 3, dropped(~yes, ~yes)), null)
    assert same(net.encode(cond, 3, dropped(~yes, ~yes)), net.encode(cond, 3))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["tokens", "clip_states"])
def test_each_condition_is_dropped_by_itself_and_by_row(kind):
    net, cond = network(kind), conds(kind)
    some, none = torch.tensor([True, False, False]), torch.zeros(3, dtype=torch.bool)
    whole = net.encode(cond, 3)
    for drops, kept in (((some, none), Cond(text=cond.text)), ((none, some), Cond(image_embed=cond.image_embed))):
        mixed, without = net.encode(cond, 3, dropped(*drops)), net.encode(kept, 3)
        first, others = (lambda e: tree_map(lambda x: x[:1], e)), (lambda e: tree_map(lambda x: x[1:], e))
        assert same(first(mixed), first(without)) and not same(first(mixed), first(whole))
        assert same(others(mixed), others(whole))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["tokens", "clip_states"])
def test_a_blank_caption_is_the_null(kind):
    net, text = network(kind), texts((3, 6, 5), strings=["a cat", " ", ""])
    image = embeds(3)
    encoded, absent = net.encode(Cond(image, text), 3), net.encode(Cond(image), 3)

    def row(encoded: Encoded, i: int) -> Encoded:
        return tree_map(lambda x: x[i : i + 1], encoded)

    assert [same(row(encoded, i), row(absent, i)) for i in range(3)] == [False, True, True]


def test_nulls_are_learned():
    for kind in KINDS:
        net = network(kind)
        net(random(3, 3, 8, 8), T, net.encode(Cond(), 3)).square().mean().backward()
        nulls = [net.conditions.image_embed.null]
        if kind == "clip_states":
            nulls += [net.conditions.text.null_state, net.conditions.text.null_pooled]
        elif kind == "tokens":
            nulls += [net.conditions.text.encoder.padding]
        assert all(null.grad is not None and (null.grad != 0).all() for null in nulls)


@torch.no_grad()
def test_unit_ignores_the_length_of_an_embedding_and_raw_does_not():
    image, scaled = embeds(3), embeds(3) * torch.tensor([[2.0], [0.1], [30.0]])
    unit, raw = (network(conditions=conditions(scale=scale)) for scale in ("unit", "raw"))
    for a, b in zip(unit.encode(Cond(image), 3).context, unit.encode(Cond(scaled), 3).context):
        assert torch.allclose(a, b, atol=1e-5)
    assert not torch.allclose(raw.encode(Cond(image), 3).emb, raw.encode(Cond(scaled), 3).emb, atol=0.1)
    expected = linear(scaled, *raw.conditions.image_embed.to_emb.parameters())
    assert torch.allclose(raw.encode(Cond(scaled), 3).emb, expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_every_condition_changes_the_output(kind):
    net, cond, x_t = network(kind), conds(kind), random(3, 3, 8, 8)
    expected = net(x_t, T, net.encode(cond, 3))

    def differs(t: Tensor = T, x_t: Tensor = x_t, **fields) -> bool:
        out = net(x_t, t, net.encode(cond._replace(**fields), 3))
        return bool((out - expected).abs().amax((1, 2, 3)).min() > 1e-3)  # in every row

    assert not differs()
    assert differs(t=T + torch.tensor([1, 1, -1])) and differs(x_t=random(3, 3, 8, 8, seed=9))
    assert differs(image_embed=embeds(3, seed=9)) and differs(image_embed=None)
    if cond.text is None:
        return
    assert differs(text=None)
    fields = ["tokens"] if kind == "tokens" else ["embed", "states"]
    for field in ("tokens", "embed", "states"):
        given = cond.text._replace(**{field: getattr(texts((3, 6, 5), seed=9), field)})
        assert differs(text=given) == (field in fields)


@torch.no_grad()
@pytest.mark.parametrize("width", [24, EMBED])
def test_each_of_the_four_tokens_matters(width):
    """Also when the embedding is as wide as the context, where a published decoder fed it in unprojected (traps C3)."""
    net = network(conditions=conditions().replace(width=width))
    x_t, encoded = random(3, 3, 8, 8), net.encode(Cond(embeds(3)), 3)
    expected, where = net(x_t, T, encoded), torch.arange(4)
    assert encoded.mask.shape == (3, 4)
    for token in range(4):
        hidden = encoded._replace(mask=(where != token).expand(3, 4))
        assert (net(x_t, T, hidden) - expected).abs().max() > 1e-3
        weight = net.conditions.image_embed.to_tokens.weight
        kept = weight.clone()
        weight[token * width : (token + 1) * width] += 0.1
        assert (net(x_t, T, net.encode(Cond(embeds(3)), 3)) - expected).abs().max() > 1e-3
        weight.copy_(kept)
    # And the sum with the timestep embedding is a way in of its own.
    other = net.encode(Cond(embeds(3, seed=9)), 3)
    assert (net(x_t, T, encoded._replace(emb=other.emb)) - expected).abs().max() > 1e-3


def test_encoded_half_precision_conditions_are_read():
    """CLIP may answer in another type than the decoder computes in."""
    net, cond = network("clip_states"), conds("clip_states")
    half = Cond(cond.image_embed.half(), cond.text._replace(embed=cond.text.embed.half(), states=cond.text.states.half()))
    with torch.no_grad():
        assert torch.allclose(net.encode(half, 3).emb, net.encode(cond, 3).emb, atol=0.02)

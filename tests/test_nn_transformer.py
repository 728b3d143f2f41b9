"""The transformer: pieces equal the whole, padding is invisible, shared pasts equal repeated ones."""

import math

import pytest
import torch

from unclip.nn.attention import KeyValue
from unclip.nn.cpu import linear
from unclip.nn.cpu.linear import Linear
from unclip.nn.embeddings import TimestepEmbedding, sinusoid
from unclip.nn.transformer import Cache, Transformer, TransformerConfig


def make(**changes):
    torch.manual_seed(0)
    return Transformer(TransformerConfig(width=32, layers=3, heads=4).replace(**changes)).eval()


def test_matches_torch_encoder_layer():
    # torch's own pre-norm layer with the same weights is the reference.
    model = make(layers=1)
    block = model.blocks[0]
    reference = torch.nn.TransformerEncoderLayer(32, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    names = {
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj.": "attention.out.",
        "linear1.": "up.",
        "linear2.": "down.",
    }
    names |= {"norm1.": "norm1.", "norm2.": "norm2."}
    state = block.state_dict()
    reference.load_state_dict({a + end: state[b + end] for a, b in names.items() for end in ("weight", "bias")})
    x = torch.randn(2, 7, 32)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 5:] = False
    triangle = torch.nn.Transformer.generate_square_subsequent_mask(7)
    expected = model.norm(reference(x, triangle, is_causal=True))
    assert torch.allclose(model(x, causal=True)[0], expected, atol=1e-5)
    expected = model.norm(reference(x, src_key_padding_mask=~mask))
    assert torch.allclose(model(x, mask)[0][mask], expected[mask], atol=1e-5)


@pytest.mark.parametrize("grad", [True, False])
def test_pieces_equal_the_whole(grad):
    model = make()
    x, mask = torch.randn(2, 9, 32), torch.ones(2, 9, dtype=torch.bool)
    mask[0, 3:5] = False
    with torch.set_grad_enabled(grad):
        whole, _ = model(x, mask, causal=True)
        first, cache = model(x[:, :4], mask[:, :4], causal=True)
        second, new = model(x[:, 4:6], mask[:, 4:6], causal=True, past=[cache])
        third, _ = model(x[:, 6:], mask[:, 6:], causal=True, past=[cache.extend(new)])
        apart, _ = model(x[:, 6:], mask[:, 6:], causal=True, past=[cache, new])
    pieces = torch.cat([first, second, third], dim=1)
    assert (pieces - whole).abs().max() < 1e-5
    assert (apart - third).abs().max() < 1e-5
    assert cache.extend(new).mask.shape == (2, 6)


def test_padding_is_invisible_and_harmless():
    model = make()
    x, mask = torch.randn(2, 8, 32), torch.ones(2, 8, dtype=torch.bool)
    mask[0, 5:] = False
    mask[1, 0] = False  # a causal row that sees nothing but itself
    other = torch.where(mask[..., None], x, torch.randn(2, 8, 32))
    for causal in (False, True):
        a, b = model(x, mask, causal)[0], model(other, mask, causal)[0]
        assert torch.isfinite(a).all()
        assert torch.allclose(a[mask], b[mask], atol=1e-6)
    assert torch.allclose(model(x, mask)[0][0, :5], model(x[:1, :5])[0][0], atol=1e-5)


def test_causal_does_not_look_ahead():
    model = make()
    x = torch.randn(1, 6, 32)
    changed = x.clone()
    changed[:, 4] = torch.randn(32)
    before, after = model(x, causal=True)[0], model(changed, causal=True)[0]
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.allclose(before[:, 4:], after[:, 4:])
    assert not torch.allclose(model(x)[0][:, :4], model(changed)[0][:, :4])


@torch.no_grad()
def test_candidates_share_a_past():
    model = make()
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    _, cache = model(torch.randn(2, 5, 32), mask, causal=True)
    x = torch.randn(6, 2, 32)
    repeated = Cache(
        tuple(KeyValue(k.repeat_interleave(3, 0), v.repeat_interleave(3, 0)) for k, v in cache.layers),
        mask.repeat_interleave(3, 0),
    )
    shared, new = model(x, causal=True, past=[cache])
    assert torch.allclose(shared, model(x, causal=True, past=[repeated])[0], atol=1e-5)
    assert new.layers[0].k.shape == (6, 4, 2, 8)  # own keys are not shared
    with pytest.raises(ValueError, match="multiple"):
        model(x[:5], causal=True, past=[cache])


@torch.no_grad()
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 12])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_linear(monkeypatch, onednn, rows, bias):
    if not onednn:
        monkeypatch.setattr(linear, "onednn_linear", lambda dtype: None)
    layer = Linear(16, 24, bias=bias)
    for x in (torch.randn(rows, 16), torch.randn(rows, 2, 16)[:, 0], torch.randn(1, rows, 16)):
        assert torch.allclose(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5)
    half = layer.bfloat16()
    x = torch.randn(rows, 16).bfloat16()
    assert half(x).dtype == torch.bfloat16
    assert torch.allclose(half(x), torch.nn.functional.linear(x, half.weight, half.bias), atol=0.03)
    assert Linear(16, 24)(torch.zeros(0, 16)).shape == (0, 24)


def test_sinusoid():
    wave = sinusoid(torch.tensor([0, 500]), 6)
    frequencies = [1, 10000 ** (-1 / 3), 10000 ** (-2 / 3)]
    expected = [math.cos(500 * f) for f in frequencies] + [math.sin(500 * f) for f in frequencies]
    assert wave[0].tolist() == [1, 1, 1, 0, 0, 0]
    assert torch.allclose(wave[1], torch.tensor(expected), atol=1e-4)
    with pytest.raises(ValueError, match="even"):
        sinusoid(torch.tensor([1]), 7)


def test_timestep_embedding_can_count_from_zero():
    torch.manual_seed(0)
    one, zero = TimestepEmbedding(8, 16), TimestepEmbedding(8, 16, first=0)
    zero.load_state_dict(one.state_dict())
    t = torch.tensor([1, 77])
    assert torch.equal(zero(t + 1), one(t)) and not torch.allclose(zero(t), one(t))
    assert one.bfloat16()(t).dtype == torch.bfloat16


@pytest.mark.parametrize("wrong", [{"heads": 5}, {"layers": 0}, {"dropout": 1.0}])
def test_bad_configs_are_refused(wrong):
    with pytest.raises(ValueError):
        TransformerConfig(width=32, layers=3, heads=4).replace(**wrong)

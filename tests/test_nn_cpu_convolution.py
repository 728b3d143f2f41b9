"""The short ways of a convolution and of attention on the CPU give the numbers of the long ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d, interpolate, scaled_dot_product_attention

from unclip.nn.cpu import attention as attention_file
from unclip.nn.cpu import convolution, switch, winograd
from unclip.nn.cpu.attention import attention
from unclip.nn.cpu.convolution import Conv3x3
from unclip.nn.cpu.linear import Linear
from unclip.nn.cpu.switch import plain


def layer(width_in: int, width: int, dtype: torch.dtype = torch.float32) -> Conv3x3:
    made = Conv3x3(width_in, width).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for p in made.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator))
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def picture(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)


def expected(made: Conv3x3, x: torch.Tensor) -> torch.Tensor:
    bias = made.bias.double() if made.bias is not None else None
    return conv2d(x.double(), made.weight.double(), bias, padding=1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Thresholds low enough for small layers; which oneDNN products and convolutions were made."""
    seen: list[str] = []
    for name in ("HEAVY", "LARGE", "WIDE"):
        monkeypatch.setattr(convolution, name, 0)
    product, plain = convolution.onednn_linear(torch.float32), torch.nn.Conv2d.forward

    def counted(*args: object) -> torch.Tensor:
        seen.append("product")
        assert product is not None
        return product(*args)  # type: ignore[no-any-return]

    def forward(self: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        seen.append("convolution")
        return plain(self, x)

    monkeypatch.setattr(convolution, "onednn_linear", lambda dtype: product and counted)
    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    return seen


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 4, 4), (3, 7, 5)])
def test_one_product(calls: list[str], shape: tuple[int, int, int]) -> None:
    made, (b, h, w) = layer(6, 10), shape
    x = picture(b, 6, h, w)
    with torch.no_grad():
        torch.testing.assert_close(made(x), expected(made, x).float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(made(x.contiguous()), expected(made, x).float(), rtol=1e-5, atol=1e-5)
    if convolution.onednn_linear(torch.float32):
        assert calls == ["product", "product"]


@pytest.mark.parametrize("tiles", [1, 5, 1024])
@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 4, 6), (3, 10, 4)])
def test_winograd(calls: list[str], monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], tiles: int) -> None:
    """However many rows of tiles fit at a time; a picture of odd height goes the long way."""
    monkeypatch.setattr(convolution, "SMALL", 0)
    monkeypatch.setattr(winograd, "TILES", tiles)
    made, (b, h, w) = layer(6, 10), shape
    x = picture(b, 6, h, w)
    with torch.no_grad():
        out = made(x)
        torch.testing.assert_close(out, expected(made, x).float(), rtol=1e-5, atol=1e-5)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert bool(calls) == bool(convolution.onednn_linear(torch.float32)) and "convolution" not in calls
        made(x[:, :, 1:])
        assert calls[-1] == "convolution"


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 4, 4), (3, 7, 5)])
def test_doubled(calls: list[str], shape: tuple[int, int, int]) -> None:
    made, (b, h, w) = layer(6, 10), shape
    x = picture(b, 6, h, w)
    with torch.no_grad():
        out = made.doubled(x)
    torch.testing.assert_close(out, expected(made, interpolate(x, scale_factor=2)).float(), rtol=1e-5, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last) and calls == []


def test_the_long_way(calls: list[str]) -> None:
    """With gradients, in autocast, in another memory format and, for sums of weights, in bfloat16: nn.Conv2d's own."""
    made, x = layer(6, 10), picture(2, 6, 4, 4)
    y = made(x)
    y.sum().backward()
    assert made.weight.grad is not None
    made.doubled(x)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            made(x)
            made.doubled(x)
        assert calls == ["convolution"] * 4
        layer(6, 10, torch.bfloat16).doubled(x.bfloat16())  # a product of the doubled picture
        contiguous = layer(6, 10).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        torch.testing.assert_close(contiguous(x), y.detach(), rtol=1e-5, atol=1e-5)
        assert calls[-1] == "convolution"


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, error: float, masked: bool) -> None:
    """Head by head, over queries in several parts, at least as exactly as torch's own."""
    monkeypatch.setattr(attention_file, "LONG", 3)
    monkeypatch.setattr(attention_file, "ROWS", 4)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator).to(dtype) for n in (10, 14, 14))
    visible = torch.arange(14) < torch.tensor([[14], [5]]) if masked else None
    bias = None if visible is None else visible[:, None, None]
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=bias)
    with torch.no_grad():
        ours = attention(q, k, v, visible)
    assert ours.dtype == dtype and ours.shape == q.shape
    theirs = scaled_dot_product_attention(q, k, v, attn_mask=bias)
    far, torch_far = ((x.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt() for x in (ours, theirs))
    assert far < error and far < 2 * torch_far
    q.requires_grad_(True)
    assert attention(q, k, v, visible).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_type(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """What oneDNN or the processor cannot compute goes the long way, in its own precision."""
    monkeypatch.setattr(convolution, "HEAVY", 0)
    monkeypatch.setattr(convolution, "LARGE", 0)
    monkeypatch.setattr(attention_file, "LONG", 0)
    error = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 3e-2)
    made, x = layer(6, 10, dtype), picture(2, 6, 4, 4).to(dtype)
    linear, tokens = Linear(8, 8).to(dtype), torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
    with torch.no_grad():
        pairs = [
            (made(x), expected(made, x)),
            (made.doubled(x), expected(made, interpolate(x, scale_factor=2))),
            (linear(tokens), tokens.double() @ linear.weight.double().T + linear.bias.double()),
            (attention(tokens, tokens, tokens), scaled_dot_product_attention(*[tokens.double()] * 3)),
        ]
    for ours, exact in pairs:
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), exact, rtol=error, atol=error * float(exact.abs().max()))


def test_the_switch_turns_every_way_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "HEAVY", 0)
    x = picture(2, 6, 4, 4)
    with torch.no_grad():
        assert plain(x)
        monkeypatch.setenv(switch.OFF, "1")
        assert not plain(x)
        made = layer(6, 10)
        assert torch.equal(made(x), torch.nn.Conv2d.forward(made, x))

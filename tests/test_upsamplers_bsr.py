"""The BSR degradation: ranges, chances, order, and that the picture stays where it is."""

from __future__ import annotations

import pytest
import torch

from unclip.randomness import Noise
from upsamplers import bsr as module
from upsamplers.bsr import FULL, LIGHT, bsr, draw_kernel, gaussian_noise, jpeg, strided

STEPS = ["blur0", "blur1", "shrink", "fit", "noise", "jpeg", "camera"]


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    grid = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(grid, (height, width), mode="bicubic")[0].clamp(0, 1)


@pytest.mark.parametrize("strength", [FULL, LIGHT])
@pytest.mark.parametrize("shape, scale", [((64, 96), 4), ((36, 24), 4), ((48, 40), 2), ((45, 60), 3)])
def test_exact_size_and_range(strength, shape, scale):
    for index in range(6):
        low = bsr(picture(*shape), scale, strength, Noise.of(0, index))
        assert low.shape == (3, shape[0] // scale, shape[1] // scale)
        assert low.isfinite().all() and low.min() >= 0 and low.max() <= 1


def test_light_is_lighter():
    image = picture(128, 128)
    clean = torch.nn.functional.interpolate(image[None], (32, 32), mode="bicubic", antialias=True)[0]

    def error(strength: module.Strength) -> float:
        errors = [(bsr(image, 4, strength, Noise.of(1, i)) - clean).square().mean() for i in range(40)]
        return float(torch.stack(errors).mean())

    assert error(LIGHT) < 0.25 * error(FULL)


def test_equal_streams_give_equal_pictures_and_others_do_not():
    image = picture(64, 64)
    batch = Noise.of(7, [0, 1, 2])
    alone = bsr(image, 4, FULL, Noise.of(7, 2))
    assert torch.equal(alone, bsr(image, 4, FULL, batch[2:3]))
    assert not torch.equal(alone, bsr(image, 4, FULL, batch[1:2]))


def test_order_is_shuffled_and_the_fit_follows_the_shrinking():
    orders = [module._order(STEPS, Noise.of(0, i)) for i in range(300)]
    assert all(sorted(order) == sorted(STEPS) for order in orders)
    assert all(order.index("shrink") < order.index("fit") for order in orders)
    first = {name: sum(order[0] == name for order in orders) / 300 for name in STEPS}
    assert first["fit"] == 0 and first["shrink"] == pytest.approx(2 / 7, abs=0.09)
    assert all(first[name] == pytest.approx(1 / 7, abs=0.07) for name in STEPS if name not in ("fit", "shrink"))


def test_chances(monkeypatch):
    calls = {"camera": 0, "jpeg": 0, "strided": 0}

    def count(name: str, result) -> object:
        def counted(*args):
            calls[name] += 1
            return result(*args)

        return counted

    monkeypatch.setattr(module, "camera_noise", count("camera", lambda x, *_: x))
    monkeypatch.setattr(module, "jpeg", count("jpeg", lambda x, *_: x))
    monkeypatch.setattr(module, "strided", count("strided", strided))
    image = picture(16, 16)
    for index in range(400):
        bsr(image, 4, LIGHT, Noise.of(2, index))
    assert calls["camera"] / 400 == pytest.approx(0.25, abs=0.07)
    assert calls["jpeg"] / 400 == pytest.approx(1.9, abs=0.05)  # 0.9, and always the last one
    assert calls["strided"] / 400 == pytest.approx(0.2, abs=0.06)


@pytest.mark.parametrize("strength, sizes, limit", [(FULL, range(7, 26, 2), 8.0), (LIGHT, range(5, 16, 2), 2.0)])
def test_kernels_are_within_the_published_ranges(strength, sizes, limit):
    seen, spread = set(), []
    for index in range(150):
        kernel = draw_kernel(4, strength, Noise.of(0, index))
        seen.add(len(kernel))
        offset = (torch.arange(len(kernel)) - len(kernel) // 2).float()
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-5)
        assert abs(float((kernel.sum(0) * offset).sum())) < 1e-4  # centred
        spread.append(float((kernel.sum(0) * offset**2).sum()))
    assert seen == set(sizes)
    assert max(spread) <= limit * 1.01 and max(spread) > 0.5 * limit


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.4])
@pytest.mark.parametrize("factor", [2, 4])
def test_stride_keeps_the_picture_in_place(factor, sigma):
    ramp = (torch.arange(128) + 0.5).expand(3, 16, 128) / 128
    out = strided(ramp, factor, sigma)
    expected = (torch.arange(128 // factor) + 0.5) * factor / 128
    edge = 16 // factor
    assert torch.allclose(out[..., edge:-edge], expected[edge:-edge].expand_as(out[..., edge:-edge]), atol=1e-4)


@pytest.mark.parametrize("strength", [FULL, LIGHT])
def test_degrading_does_not_move_the_picture(strength):
    width = 256
    ramp = (0.2 + 0.6 * (torch.arange(width) + 0.5) / width).expand(3, 64, width).contiguous()
    expected = 0.2 + 0.6 * (torch.arange(width // 4) + 0.5) / (width // 4)
    per_pixel = 0.6 / (width // 4)
    moved = [
        float((bsr(ramp, 4, strength, Noise.of(0, i)).mean((0, 1)) - expected)[10:-10].mean()) / per_pixel for i in range(60)
    ]
    assert abs(sum(moved) / len(moved)) < 0.12  # in pixels; one careless half pixel in every sample would be 0.5


def test_gaussian_noise_comes_in_three_kinds():
    grey, levels = 0, []
    for index in range(200):
        extra = gaussian_noise(torch.full((3, 24, 24), 0.5), 2, 25, Noise.of(0, index)) - 0.5
        if (extra[0] - extra[1]).abs().max() < 1e-6:
            grey += 1
            levels.append(float(extra[0].std()) * 255)
    assert grey / 200 == pytest.approx(0.4, abs=0.1)
    assert 1.5 < min(levels) < 4 and 22 < max(levels) < 28


def test_jpeg_loses_more_at_lower_quality():
    image = picture(64, 64, seed=3)
    loss = [float((jpeg(image, quality) - image).abs().mean()) for quality in (30, 80, 95)]
    assert loss[0] > loss[1] > loss[2] and loss[2] < 0.02
    flat = torch.full((3, 17, 9), 0.4)
    assert (jpeg(flat, 95) - flat).abs().max() < 0.01

"""Degrade the whole picture first, crop after, on the grid; nothing depends on the neighbours in the batch."""

from __future__ import annotations

import math

import pytest
import torch

from unclip.nn.unet import UNetConfig
from unclip.randomness import Noise
from upsamplers import CorruptionConfig, UpsamplerConfig
from upsamplers.corruption import crop_pairs, degrade, mod_crop
from upsamplers.filters import blur, gaussian_kernel, resize

KINDS = ["none", "blur", "bsr", "bsr_light"]


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    grid = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return resize(grid, (height, width))[0].clamp(-1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_range_size_and_stream(kind):
    config, image = CorruptionConfig(kind=kind), picture(64, 96)
    batch = Noise.of(4, range(3))
    lows = [degrade(image, 4, config, batch[i : i + 1]) for i in range(3)]
    for i, low in enumerate(lows):
        assert low.shape == (3, 16, 24) and low.min() >= -1 and low.max() <= 1
        assert torch.equal(low, degrade(image, 4, config, Noise.of(4, i)))
        assert (low - resize(image[None], (16, 24))[0]).abs().mean() < 0.2
    assert torch.equal(lows[0], lows[1]) == (kind in ("none", "blur"))


def test_blur_is_on_the_low_resolution_picture():
    image = picture(32, 32)
    low = resize(image[None], (8, 8))[0]
    expected = blur(low, gaussian_kernel(3, (0.36, 0.36)))
    assert torch.equal(degrade(image, 4, CorruptionConfig(kind="blur"), Noise.of(0)), expected)


def test_blur_is_decided_per_picture():
    image = picture(16, 16)
    config = CorruptionConfig(kind="blur", probability=0.5)
    plain = resize(image[None], (4, 4))[0].clamp(-1, 1)
    kept = [torch.equal(degrade(image, 4, config, Noise.of(0, i)), plain) for i in range(300)]
    assert sum(kept) / 300 == pytest.approx(0.5, abs=0.09)


def test_heights_and_widths_are_cut_each_by_itself():
    image = torch.zeros(3, 103, 66)
    assert mod_crop(image, 4).shape == (3, 100, 64)
    with pytest.raises(ValueError, match="too small"):
        mod_crop(torch.zeros(3, 3, 66), 4)
    with pytest.raises(ValueError, match="multiples of 4"):
        degrade(image, 4, CorruptionConfig(), Noise.of(0))


def test_crops_lie_on_the_grid_and_show_the_same_place():
    scale, size, step, height, width = 4, 16, 8, 48, 72
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    high = torch.stack([y, x, y]).float()
    low = high[:, ::scale, ::scale]
    lows, highs = crop_pairs(low, high, scale, size, step, 300, Noise.of(0))
    assert lows.shape == (300, 3, 4, 4) and highs.shape == (300, 3, 16, 16)
    assert torch.equal(lows, highs[..., ::scale, ::scale])
    top, left = highs[:, 0, 0, 0], highs[:, 1, 0, 0]
    assert set(top.tolist()) == set(range(0, height - size + 1, step))
    assert set(left.tolist()) == set(range(0, width - size + 1, step))
    with pytest.raises(ValueError, match="whole low-resolution pixels"):
        crop_pairs(low, high, scale, size, 6, 1, Noise.of(0))


@pytest.mark.parametrize("patch, scale", [(1, 4), (2, 4), (8, 4), (3, 2)])
def test_pairs_are_cut_from_a_picture_degraded_whole(patch, scale):
    unet = UNetConfig(channels=32, depth=1, multiple=(1, 1), patch=patch)
    corruption = CorruptionConfig(kind="bsr")
    config = UpsamplerConfig(scale=scale, unet=unet, corruption=corruption, crop=0.5, crops_per_image=5)
    image, noise = picture(97, 121), Noise.of(3)
    lows, highs = config.make_pairs(image, noise)
    whole = degrade(mod_crop(image, scale), scale, corruption, noise.at("degrade"))
    grid, size = math.lcm(scale, patch), highs.shape[-1]
    assert len(lows) == len(highs) == 5 and size == lows.shape[-1] * scale and size % (2 * patch) == 0
    for low, high in zip(lows, highs):
        places = [
            (y, x)
            for y in range(0, 97 // scale * scale - size + 1, grid)
            for x in range(0, 121 // scale * scale - size + 1, grid)
            if torch.equal(high, image[:, y : y + size, x : x + size])
        ]
        assert len(places) == 1
        y, x = (place // scale for place in places[0])
        assert torch.equal(low, whole[:, y : y + size // scale, x : x + size // scale])


def test_paper_crops_are_a_quarter_of_the_side():
    for side, channels, multiple in ((256, 320, (1, 2, 3, 4)), (1024, 192, (1, 1, 2, 2, 4, 4))):
        unet = UNetConfig(channels=channels, multiple=multiple)
        low, high = UpsamplerConfig(unet=unet).make_pairs(torch.zeros(3, side, side), Noise.of(0))
        assert high.shape == (1, 3, side // 4, side // 4) and low.shape == (1, 3, side // 16, side // 16)


@pytest.mark.parametrize(
    "bad",
    [{"kernel": 4}, {"probability": 1.5}, {"sigma": (0.6, 0.4)}, {"sigma": (-1.0, 0.4)}],
    ids=lambda bad: next(iter(bad)),
)
def test_bad_configs_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        CorruptionConfig(kind="blur", **bad)


def test_one_row_of_noise_per_picture():
    with pytest.raises(ValueError, match="one row"):
        degrade(torch.zeros(3, 8, 8), 4, CorruptionConfig(), Noise.of(0, [0, 1]))

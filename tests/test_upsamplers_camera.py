"""The simulated camera: there and back is nearly nothing, and its noise has the mean and variance of a sensor's."""

from __future__ import annotations

import math

import pytest
import torch

from unclip.randomness import Noise
from upsamplers.bsr import FULL, LIGHT
from upsamplers.camera import bayer, camera_noise, demosaic, display, linear

NONE = (1e-14, 1e-14)


def smooth(size: int) -> torch.Tensor:
    grid = 0.25 + 0.6 * torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(grid, (size, size), mode="bicubic")[0].clamp(0, 1)


def test_developing_undoes_exposing():
    y = torch.linspace(0, 1, 1001)
    assert torch.allclose(display(linear(y)), y, atol=2e-4)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (2, 3)])
def test_demosaic_of_a_flat_colour_is_the_colour(row, column, size):
    colour = torch.tensor([0.8, 0.3, 0.1])
    sites = bayer(*size, row, column)
    assert sites[row, column] == 0 and sites[1 - row, 1 - column] == 2 and sites[row, 1 - column] == 1
    assert torch.allclose(demosaic(colour[sites], sites), colour[:, None, None].expand(3, *size), atol=1e-6)


@pytest.mark.parametrize("row", [0, 1])
def test_demosaic_of_a_ramp_is_the_ramp(row):
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    image = torch.stack([0.1 * x + 0.05 * y + c for c in (0.0, 1.0, 2.0)])
    sites = bayer(12, 16, row, 1)
    out = demosaic(image.gather(0, sites[None])[0], sites)
    assert torch.allclose(out[:, 2:-2, 2:-2], image[:, 2:-2, 2:-2], atol=1e-5)


@pytest.mark.parametrize("index", range(4))
def test_without_noise_the_camera_is_nearly_the_identity(index):
    image = smooth(128)
    difference = (camera_noise(image, Noise.of(0, index), NONE) - image).abs()
    assert difference.max() < 0.02 and difference.mean() < 0.001


@pytest.mark.parametrize("shot", [FULL.shot[0], 1e-3, FULL.shot[1]])
def test_noise_has_the_mean_and_variance_of_a_sensor(shot):
    grey = torch.full((3, 200, 200), 0.5)
    out = camera_noise(grey, Noise.of(3), (shot, shot))
    light = float(linear(torch.tensor(0.5)))
    slope = float((display(torch.tensor(light + 1e-4)) - display(torch.tensor(light - 1e-4))) / 2e-4)
    read = math.exp(2.18 * math.log(shot) + 1.2)
    green = slope * math.sqrt(shot * light + read)  # at green sites, where nothing is interpolated and the gain is 1
    assert (out.mean((1, 2)) - 0.5).abs().max() < 0.012
    # Interpolated sites average neighbours and are quieter; red and blue were amplified and are louder.
    assert 0.7 * green < float(out[1].std()) < 1.1 * green
    assert float(out[0].std()) > float(out[1].std()) and float(out[2].std()) > float(out[1].std())


@pytest.mark.parametrize("strength", [FULL, LIGHT])
def test_ranges_match_the_gaussian_noise_of_the_same_strength(strength):
    grey = torch.full((3, 100, 100), 0.5)
    for shot, level in zip(strength.shot, strength.noise):
        measured = float(camera_noise(grey, Noise.of(1), (shot, shot)).std()) * 255
        assert level / 2 < measured < level * 2


def test_stays_in_range_and_depends_on_its_stream_alone():
    image = smooth(32)
    one, again, other = (camera_noise(image, Noise.of(5, i), FULL.shot) for i in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert one.min() >= 0 and one.max() <= 1

"""Resizing without aliasing, mirrored padding, blurs that are exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import conv2d, pad

from upsamplers.filters import blur, gaussian_kernel, reflect_pad, resize


def ramp(height: int, width: int) -> torch.Tensor:
    """A picture whose values are the x coordinates of the pixel centres, in units of the whole width."""
    return ((torch.arange(width) + 0.5) / width).expand(1, 3, height, width).contiguous()


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "area"])
@pytest.mark.parametrize("size", [16, 23, 64])
def test_a_ramp_stays_a_ramp(mode, size):
    out = resize(ramp(32, 64), (size, size), mode)
    edge = max(2, size // 12)  # filters are cut at the borders
    inside = slice(edge, -edge)
    assert out.shape == (1, 3, size, size)
    assert (out - ramp(size, size))[..., inside].abs().max() < 2e-3


@pytest.mark.parametrize("factor", [2, 4])
def test_enlarging_a_ramp_with_bicubic_is_exact(factor):
    out = resize(ramp(16, 16), (16 * factor, 16 * factor))
    assert (out - ramp(16 * factor, 16 * factor))[..., 3 * factor : -3 * factor].abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "area"])
@pytest.mark.parametrize("size", [16, 20, 32])
def test_a_checkerboard_shrinks_to_grey(mode, size):
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    board = (((y + x) % 2) * 2.0 - 1).expand(1, 3, 64, 64)
    grey = resize(board, (size, size), mode)[..., 2:-2, 2:-2]
    # Nearest-neighbour resizing would return full black and white here.
    assert grey.abs().max() < 0.12


def test_area_averages_what_a_pixel_covers():
    image = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    doubled = image.repeat_interleave(2, 2).repeat_interleave(2, 3)  # 6 -> 4 pixels: one covers three halves
    expected = torch.nn.functional.avg_pool2d(doubled, (3, 6))
    assert torch.allclose(resize(image, (4, 3), "area"), expected, atol=1e-6)


@pytest.mark.parametrize("by", [0, 3, 7, 25])
def test_reflect_pad_mirrors_at_any_width(by):
    line = torch.arange(8.0).expand(1, 1, 8, 8)
    out = reflect_pad(line, by, by, by, by)
    expected = line
    for step in [7] * (by // 7) + [by % 7]:  # torch mirrors once; a mirrored picture mirrored again goes on
        expected = pad(expected, (step,) * 4, mode="reflect")
    assert torch.equal(out, expected)
    assert reflect_pad(torch.ones(1, 3, 1, 1), 2, 2, 2, 2).eq(1).all()


def test_kernel_3_sigma_06_has_the_exact_values():
    kernel = gaussian_kernel(3, (0.36, 0.36))
    side, corner = math.exp(-1 / 0.72), math.exp(-2 / 0.72)
    total = 1 + 4 * side + 4 * corner
    expected = torch.tensor([[corner, side, corner], [side, 1, side], [corner, side, corner]]) / total
    assert torch.allclose(kernel, expected, atol=1e-7)


def test_turned_kernel_has_the_covariance_asked_for():
    angle, (l1, l2) = 0.7, (4.0, 1.0)
    kernel = gaussian_kernel(25, (l1, l2), angle).double()
    offset = torch.arange(25.0, dtype=torch.float64) - 12
    y, x = offset[:, None], offset[None, :]
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    cov = turn @ torch.diag(torch.tensor([l1, l2], dtype=torch.float64)) @ turn.T
    measured = [(kernel * a * b).sum() for a, b in ((x, x), (x, y), (y, y))]
    assert torch.allclose(torch.stack(measured), torch.stack([cov[0, 0], cov[0, 1], cov[1, 1]]), atol=1e-3)


@pytest.mark.parametrize("variances", [(0.0, 0.0), (1e-12, 4.0), (1e-30, 1e-30)])
def test_kernels_survive_sigma_near_zero(variances):
    for centre in ((0.0, 0.0), (1.5, 1.5)):
        kernel = gaussian_kernel(7, variances, angle=0.4, centre=centre)
        assert kernel.isfinite().all() and abs(float(kernel.sum()) - 1) < 1e-6
    assert gaussian_kernel(7, (0.0, 0.0))[3, 3] == 1


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="half a pixel"):
        gaussian_kernel(6, (1.0, 1.0))


@pytest.mark.parametrize("shape", [(40, 57), (33, 64), (9, 5)])
def test_blur_equals_the_direct_sum(shape):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(3, *shape, generator=generator)
    kernel = torch.rand(25, 25, generator=generator)  # not symmetric, so that a flip would show
    kernel /= kernel.sum()
    expected = conv2d(reflect_pad(image, 12, 12, 12, 12)[:, None], kernel[None, None])[:, 0]
    assert torch.allclose(blur(image, kernel), expected, atol=1e-5)

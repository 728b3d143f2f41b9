"""Masks: what they mean, at which size, and that nothing of a hole reaches what is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unclip.clip.preprocess import fit_square
from unclip.editing.mask import at_size, filled, keep_masks, weights
from unclip.randomness import Noise

SIZE = (6, 8)
LEFT = torch.zeros(SIZE, dtype=torch.bool)
LEFT[:, :4] = True


def pictures(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [Noise.of(i).uniform((3, *size)) * 1.6 - 0.8 for i, size in enumerate(sizes)]


def test_keep_and_mask_mean_opposite_parts_whatever_they_are_made_of(tmp_path: Path) -> None:
    (expected,) = keep_masks(LEFT, None, [SIZE])
    assert expected.shape == (1, 1, *SIZE) and torch.equal(expected[0, 0], LEFT)
    white = Image.fromarray(LEFT.numpy().astype(np.uint8) * 255)
    white.save(tmp_path / "left.png")
    white.convert("1").save(tmp_path / "bits.png")
    for same in (
        LEFT.numpy(),
        LEFT.float() * 0.8,
        LEFT.byte() * 200,
        LEFT.byte(),
        LEFT.long(),
        LEFT[None, None],
        white,
        white.convert("RGB"),
        tmp_path / "left.png",
        str(tmp_path / "bits.png"),
        [LEFT],
    ):
        assert torch.equal(keep_masks(same, None, [SIZE])[0], expected), same
        assert torch.equal(keep_masks(None, same, [SIZE])[0], ~expected), same
    two = keep_masks(torch.stack([LEFT, ~LEFT])[:, None], None, [SIZE, SIZE])
    assert torch.equal(two[0], expected) and torch.equal(two[1], ~expected)
    assert len(keep_masks(LEFT, None, [SIZE] * 3)) == 3  # one for all


def test_masks_that_cannot_be_meant(tmp_path: Path) -> None:
    glass = Image.new("RGBA", (8, 6), (255, 255, 255, 255))
    glass.putpixel((1, 1), (0, 0, 0, 0))
    glass.save(tmp_path / "glass.png")
    for keep, mask, told in (
        (LEFT, LEFT, "both keep and mask were given; give one: keep, True or white where pixels stay"),
        (None, None, "neither keep nor mask was given"),
        (LEFT[:, :5], None, "keep has 5 x 6 pixels, its picture 8 x 6: a mask is as large as its picture"),
        (None, LEFT.T, "mask has 6 x 8 pixels, its picture 8 x 6"),
        (torch.stack([LEFT] * 3)[:, None], None, "3 masks came with 1 pictures"),
        (LEFT.expand(1, 3, 6, 8), None, r"keep has shape \(1, 3, 6, 8\)"),
        (LEFT.float() * 2 - 1, None, "keep holds torch.float32 from -1 to 1"),
        (LEFT.long() * 255, None, "keep holds torch.int64 from 0 to 255"),
        (None, 3, "mask is a int; give a file"),
        (None, tmp_path / "glass.png", "glass.png has transparent parts"),
        (None, tmp_path / "none.png", "there is no picture file"),
    ):
        with pytest.raises(ValueError, match=told):
            keep_masks(keep, mask, [SIZE])


def test_a_pixel_is_kept_as_far_as_all_that_it_covers_is() -> None:
    keep = torch.ones(1, 1, 8, 8)
    keep[..., 3, 5] = 0
    small = at_size(keep, 4)
    assert small.sum() == 15 and small[0, 0, 1, 2] == 0
    assert torch.equal(at_size(small, 8), small.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.equal(at_size(keep, 8), keep)
    odd = at_size(keep, 5)  # of a size that does not divide: every pixel that touches the hole
    assert (odd[0, 0] == 0).nonzero().tolist() == [[1, 3], [2, 3]]
    # Cut to a square as pictures are: where a picture says 1 the mask does.
    wide = torch.zeros(1, 1, 6, 20)
    wide[..., 7:13] = 1
    assert torch.equal(at_size(wide, 6), (fit_square(wide.expand(1, 3, -1, -1), 6)[:, :1] == 1).float())
    assert torch.equal(at_size(wide, 3)[0, 0], torch.tensor([1.0, 1, 0]).expand(3, 3))  # columns 8 to 13 of the wide one


def test_feathered_weights_rise_by_equal_steps_over_kept_pixels() -> None:
    (keep,) = keep_masks(None, LEFT, [SIZE])
    assert torch.equal(weights(keep)[0, 0], (~LEFT).float())
    soft = weights(keep, 3)[0, 0]
    assert torch.equal(soft, torch.tensor([0, 0, 0, 0, 0.25, 0.5, 0.75, 1]).expand(6, 8))


@pytest.mark.parametrize("size", [(16, 16), (17, 29), (1, 5)])
def test_filled_holes_tell_nothing_of_what_was_there(size: tuple[int, int]) -> None:
    one, two = pictures(size, size)
    keep = Noise.of(6).uniform((1, *size)) > 0.4
    assert keep.any() and not keep.all()
    shown = filled(one, keep)
    assert torch.equal(shown, filled(torch.where(keep, one, two), keep))
    assert torch.equal(torch.where(keep, shown, 0), torch.where(keep, one, 0))
    assert shown.isfinite().all() and shown.abs().max() <= one.abs().max()
    flat = torch.full((1, 3, *size), 0.3)
    assert torch.allclose(filled(torch.where(keep, flat, -1.0), keep), flat)
    assert torch.equal(filled(flat, torch.ones_like(keep)), flat)
    assert filled(flat, torch.zeros_like(keep)).isfinite().all()

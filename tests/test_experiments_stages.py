"""The picture of every stage, on a tiny pipeline."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from PIL import Image

from experiments.emoji.evaluation.stages import CELL, main, spot


def test_the_spot_is_where_the_edges_are() -> None:
    image = torch.zeros(3, 16, 16)
    assert spot(image) == (0, 0)
    image[:, 9::2, 5:8] = 1  # stripes
    row, column = spot(image)
    assert row >= 8 and 4 <= column <= 6


def test_every_stage_is_on_the_page(tmp_path: Path) -> None:
    tiny.pipeline().save_pretrained(tmp_path / "tiny")
    main([str(tmp_path / "tiny"), "--caption", "two dogs", "-o", str(tmp_path / "stages.png")])
    with Image.open(tmp_path / "stages.png") as page:
        assert page.width > 3 * CELL and page.height > 2 * CELL

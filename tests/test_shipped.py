"""The shipped weights draw the pictures that they drew before they were stored under other names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unclip import UnCLIP
from unclip.images import to_pil

STORED = np.load(Path(__file__).parent / "data" / "shipped.npz")  # drawn at 777bfba on a machine with AVX-512


@pytest.fixture(scope="module")
def pipe() -> UnCLIP:
    return UnCLIP.from_pretrained("emoji")


@pytest.mark.parametrize("size", [64, 256])
def test_pictures_are_those_of_before(pipe: UnCLIP, size: int) -> None:
    """One 8-bit level on that machine, a few where a CPU rounds otherwise: pictures agree within 0.02 of [-1, 1]."""
    expected, captions = STORED[str(size)].astype(int), STORED["captions"].tolist()
    for k, picture in enumerate(expected):
        drawn = np.asarray(to_pil(pipe.generate(captions[k], seed=k, size=size).images[0]), dtype=int)
        error = np.abs(drawn.transpose(2, 0, 1) - picture)
        assert error.max() <= 4 and error.mean() <= 0.2, (captions[k], error.max(), error.mean())

"""Previews: what they show, when, at which cost, and that the drawing never notices."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from unclip import Cancelled, Preview, Step
from unclip.images import to_pil
from unclip.pipelines.preview import small


def step(x0: torch.Tensor, number: int = 3) -> Step:
    return Step("decoder", number, 9, 500, x0, slice(0, len(x0)), len(x0))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def test_the_predicted_picture_is_written_in_whole_pixels_every_few_steps(tmp_path: Path) -> None:
    see, x0 = Preview(tmp_path / "x.png", every=2), torch.rand(1, 3, 64, 64) * 2 - 1
    see(step(x0, 1))
    assert not (tmp_path / "x.png").exists()
    see(step(x0, 2))
    assert np.array_equal(pixels(tmp_path / "x.png"), np.array(to_pil(x0[0])).repeat(4, 0).repeat(4, 1))
    see.ready = 0.0
    see(step(torch.full((20, 3, 128, 128), 3.0), 4))  # of several the first sixteen; what is out of range is clipped
    assert pixels(tmp_path / "x.png").shape == (4 * 128, 4 * 128, 3) and (pixels(tmp_path / "x.png") == 255).all()
    see.ready = 0.0
    see(step(torch.zeros(3, 12), 6))  # embeddings: nothing to see
    assert pixels(tmp_path / "x.png").shape[0] == 512 and list(tmp_path.iterdir()) == [tmp_path / "x.png"]
    assert small(torch.zeros(2, 3, 1024, 1024), 256).shape == (2, 3, 256, 256) == small(torch.zeros(2, 3, 128, 128), 256).shape


def test_previews_take_a_hundredth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [0.0], []

    def write(*files: Any) -> None:
        written.append(now[0])
        now[0] += 0.5

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr("unclip.pipelines.preview.write_files", write)
    see = Preview(tmp_path / "x.png", every=1)
    for k in range(1, 2001):
        now[0] += 0.1
        see(step(torch.zeros(1, 3, 4, 4), k))
    assert len(written) == 4 and 0.5 * len(written) <= 0.01 * now[0]  # 2,000 steps of 0.1 seconds


def test_previews_change_no_bit_and_stay_when_the_run_is_cancelled(tmp_path: Path) -> None:
    pipe = tiny.pipeline()
    see = Preview(tmp_path / "x.png", every=1)
    made = pipe.generate(tiny.CAPTIONS[:2], seed=1, callback=see)
    assert torch.equal(made.images, pipe.generate(tiny.CAPTIONS[:2], seed=1).images) and (tmp_path / "x.png").exists()
    see = Preview(tmp_path / "y.png", every=1)

    def cancel(step: Step) -> None:
        see(step)
        if step.stage == "upsampler_64":
            raise Cancelled

    with pytest.raises(Cancelled):
        pipe.generate(tiny.CAPTIONS[0], callback=cancel)
    assert pixels(tmp_path / "y.png").shape == (256, 256, 3)


def test_a_preview_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    for path, told in ((tmp_path / "x.jpg", "not as '.jpg'"), (tmp_path, "not as|is a folder")):
        with pytest.raises(ValueError, match=told):
            Preview(path)
    with pytest.raises(ValueError, match="every is 0"):
        Preview(tmp_path / "x.png", every=0)
    see = Preview(tmp_path / "x.png", every=1)
    (tmp_path / "x.png").mkdir()
    with pytest.warns(UserWarning, match="no more previews: cannot write .*x.png"):
        see(step(torch.zeros(1, 3, 4, 4)))
    see(step(torch.zeros(1, 3, 4, 4)))

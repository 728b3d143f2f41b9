"""The measurements of steering, each from end to end on a tiny pipeline, and what their numbers must be whatever the model."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from test_experiments_figures import emoji, least, leaves, model, run  # noqa: F401 (fixtures)

from experiments.figures import img2img, inpainting, negatives, reranking
from unclip import UnCLIP

pytestmark = pytest.mark.filterwarnings("ignore:.*cut to.*")

SCRIPTS: list[tuple[ModuleType, list[str], list[str]]] = [
    (img2img, ["--n", "3", "--strengths", "0.3", "1"], [".png", "_curve.png"]),
    (inpainting, ["--n", "3", "--few", "2", "--masks", "half", "brush strokes"], [".png"]),
    (negatives, ["--n", "3"], [".png"]),
    (reranking, ["--n", "2", "--draws", "3"], [".png", "_sheet.png"]),
]


@pytest.mark.parametrize(("script", "arguments", "files"), SCRIPTS, ids=[script.__name__ for script, _, _ in SCRIPTS])
def test_a_script_from_end_to_end(
    script: ModuleType,
    arguments: list[str],
    files: list[str],
    model: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = run(script, model, tmp_path, "--seed", "3", *arguments)
    numbers = dict(leaves(record["numbers"]))
    assert len(numbers) > 10 and all(math.isfinite(value) for value in numbers.values()) and record["seed"] == 3
    for suffix in files:
        with Image.open(tmp_path / f"{record['experiment']}{suffix}") as picture:
            assert len(set(picture.convert("L").tobytes())) > 20
    if script is img2img:
        assert record["numbers"]["strength 1 less 0.3"][img2img.RMS]["n"] == 3
    if script is reranking:
        score, beyond = least(record, reranking.SCORE), least(record, f"{reranking.SCORE}, less a single draw's")
        for name in reranking.COLOURS:
            one, two = f"{name}, best of 1", f"{name}, best of 2"
            assert score[one] <= score[two] and beyond[two] - beyond[one] == pytest.approx(score[two] - score[one])
    if script is inpainting:
        monkeypatch.setattr(UnCLIP, "generate", lambda *a, **k: pytest.fail("drawn again"))
        again = run(script, model, tmp_path, "--seed", "3", *arguments)
        assert again["numbers"] == record["numbers"]
        assert least(record, "RMS in the hole")[f"half: {inpainting.MEAN}"] > 0


@pytest.mark.parametrize("kind", inpainting.MASKS)
def test_masks_have_a_part_of_both(kind: str) -> None:
    holes = inpainting.holes(kind, 8, 64, 0)
    shares = holes.float().mean((1, 2, 3))
    assert holes.shape == (8, 1, 64, 64) and shares.min() > 0.05 and shares.max() < 0.95
    assert kind == "half" or len(set(shares.tolist())) > 4
    assert torch.equal(inpainting.holes(kind, 9, 64, 0)[:8], holes)  # a mask is its picture's, however many there are


def test_seam_and_hole_count_what_they_say() -> None:
    hole = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    hole[..., 2:] = True
    image = torch.zeros(1, 3, 4, 4)
    image[..., 2:] = 0.5
    assert inpainting.seam(image, hole).tolist() == [0.5] and inpainting.seam(image * 0, hole).tolist() == [0.0]
    assert inpainting.hole_rms(image, image * 0, hole).tolist() == [0.5]
    assert inpainting.hole_rms(image, image * 0, ~hole).tolist() == [0.0]

"""What edits are saved as."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from unclip import PCA, Edit, Latent, Sampling
from unclip.images import metadata, sheet, to_pil
from unclip.randomness import Noise

IMAGES = Noise.of(0, range(6)).normal((3, 32, 32)).clamp(-1, 1)
LATENT = Latent(torch.zeros(6, 2), IMAGES, Sampling(steps=(9, 0)), ("",) * 6)
LABELS = tuple(f"theta {k}" for k in range(6))
EDIT = Edit("text diff", IMAGES, LATENT, {32: IMAGES}, LABELS, 3, sources=IMAGES[:2], metadata={"edit": "text diff", "seed": "0"})


def test_a_sheet_holds_every_picture_and_what_was_given(tmp_path: Path) -> None:
    page = EDIT.sheet()
    assert page.width > 4 * 96 and page.height > 2 * 96  # small pictures are shown three times as large
    assert EDIT.save(tmp_path / "x.png") == [tmp_path / "x.png"]
    with Image.open(tmp_path / "x.png") as saved:
        pixels = saved.convert("RGB")
    for column, picture in enumerate([to_pil(IMAGES[0]), *EDIT.pil()[:3]]):
        shown = pixels.crop((4 + column * 100, 4, 100 + column * 100, 100)).resize((32, 32), Image.Resampling.NEAREST)
        assert shown.tobytes() == picture.tobytes()
    assert metadata(tmp_path / "x.png")["edit"] == "text diff"


def test_labels_are_written_below_and_long_ones_wrapped() -> None:
    picture = Image.new("RGB", (96, 96), "white")
    bare, named = sheet([[picture]], [[""]]), sheet([[picture]], [["a label"]])
    long = sheet([[picture]], [["a label that is far too long for the width of a picture"]])
    assert bare.size == named.size and bare.tobytes() != named.tobytes() and long.height > named.height
    assert named.crop((0, 0, named.width, 98)).getextrema() == ((255, 255),) * 3  # nothing is written on the picture
    assert sheet([[picture]], [["x"]], title="title").height > named.height


def test_one_picture_is_saved_as_itself(tmp_path: Path) -> None:
    one = Edit("reconstruct", IMAGES[:1], LATENT.rows(slice(0, 1)), {32: IMAGES[:1]}, ("reconstruction",), 1)
    one.save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as saved:
        assert saved.tobytes() == to_pil(IMAGES[0]).tobytes()


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animations(tmp_path: Path, suffix: str) -> None:
    EDIT.save(tmp_path / f"x.{suffix}")
    with Image.open(tmp_path / f"x.{suffix}") as saved:
        assert saved.format == suffix.upper() and saved.n_frames == 6 and saved.info["loop"] == 0  # type: ignore[attr-defined]
        saved.seek(5)
        shown = saved.convert("RGB")
    if suffix == "webp":  # without loss
        assert shown.tobytes() == to_pil(IMAGES[5]).tobytes()


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    files = EDIT.save(tmp_path / "out")
    assert [file.name for file in files] == [f"{k:05d}.png" for k in range(6)]
    assert metadata(files[4])["label"] == "theta 4" and metadata(files[4])["seed"] == "0"


def test_pictures_are_numbered_from_the_first(tmp_path: Path) -> None:
    files = replace(EDIT, first=10).save(tmp_path / "out")
    assert [file.name for file in files] == [f"{k:05d}.png" for k in range(10, 16)]
    assert [metadata(file)["index"] for file in files] == [str(k) for k in range(10, 16)]
    one = Edit("vary", IMAGES[:1], LATENT.rows(slice(0, 1)), {32: IMAGES[:1]}, ("eta 1",), 1, first=7)
    assert metadata(one.save(tmp_path / "x.png")[0])["index"] == "7"


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"written as .png or .gif or .webp or into a folder, not as '.jpg'"):
        EDIT.save(tmp_path / "x.jpg")


def test_principal_components(tmp_path: Path) -> None:
    data = Noise.of(1, range(300)).normal((5,)) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2]) + torch.tensor([1.0, 0, 0, 0, 0])
    unit = torch.nn.functional.normalize(data, dim=-1)
    pca = PCA.fit(data)
    u, s, v = torch.linalg.svd((unit - unit.mean(0)).double(), full_matrices=False)
    assert torch.allclose(pca.variances.double(), s**2 / 300, atol=1e-6)
    assert torch.allclose((pca.components.double() * v.T).sum(0).abs(), torch.ones(5, dtype=torch.double), atol=1e-4)
    assert torch.allclose(pca.explained[-1], torch.tensor(1.0)) and (pca.explained.diff() > 0).all()
    assert torch.allclose(pca.reduce(data, 5), data, atol=1e-4)
    assert torch.allclose(pca.reduce(data, 0), pca.mean / pca.mean.norm() * data.norm(dim=1, keepdim=True), atol=1e-5)
    errors = [float((torch.nn.functional.normalize(pca.reduce(data, k), dim=-1) - unit).square().sum()) for k in range(6)]
    assert errors == sorted(errors, reverse=True) and errors[2] < 0.5 * errors[0]
    pca.save(tmp_path / "pca.safetensors")
    again = PCA.load(tmp_path / "pca.safetensors")
    assert torch.equal(again.reduce(data, 2), pca.reduce(data, 2))


def test_what_are_no_principal_components(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 embeddings do not span the 5 dimensions"):
        PCA.fit(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="all the same"):
        PCA.fit(torch.ones(9, 5))
    pca = PCA.fit(Noise.of(1, range(9)).normal((5,)))
    with pytest.raises(ValueError, match="components of 5 dimensions, the embeddings have 4"):
        pca.reduce(torch.ones(1, 4), 2)
    LATENT.save(tmp_path / "latent.safetensors")
    with pytest.raises(ValueError, match="holds no principal components"):
        PCA.load(tmp_path / "latent.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read as principal components"):
        PCA.load(tmp_path / "x.safetensors")

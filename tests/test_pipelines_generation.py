"""What a pipeline returns: pictures as PNGs with their metadata, there whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unclip import __version__
from unclip.editing.latent import Latent
from unclip.files import check_files, write_files
from unclip.images import metadata, png, to_pil
from unclip.pipelines.generation import Generation, picture_paths
from unclip.sampling import Sampling

HOW = Sampling(steps=(900, 450, 0))
LATENT = Latent(torch.randn(2, 5), torch.randn(2, 3, 4, 4), HOW, ("a heart", "ein Löwe 🦁"), {"clip": "c0ffee"})
IMAGES = torch.rand(2, 3, 8, 8) * 2 - 1
GENERATION = Generation(IMAGES, LATENT, {8: IMAGES}, LATENT.captions, ((5, 7), (5, 8)), "tiny")


def one(k: int) -> Generation:
    latent = replace(LATENT, image_embed=LATENT.image_embed[:1], x_t=LATENT.x_t[:1], captions=LATENT.captions[k : k + 1])
    return replace(GENERATION, images=IMAGES[k : k + 1], latent=latent, captions=latent.captions, seeds=((5, 7 + k),))


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Files cannot grow beyond `room` bytes: the system's own error, as from a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_pixels() -> None:
    image = torch.tensor([-1.0, 0.0, 1.0, -9.0, 9.0, 1 / 127.5 - 1])[None, None].expand(3, 1, 6)
    assert [to_pil(image).getpixel((x, 0))[0] for x in range(6)] == [0, 128, 255, 0, 255, 1]
    bars = torch.stack([torch.full((2, 3), value) for value in (1.0, -1.0, 0.0)])
    assert to_pil(bars).mode == "RGB" and to_pil(bars).size == (3, 2) and to_pil(bars).getpixel((0, 0)) == (255, 0, 128)


def test_a_png_tells_its_story(tmp_path: Path) -> None:
    assert one(1).save(tmp_path / "new" / "x.png") == [tmp_path / "new" / "x.png"]
    expected = {"caption": "ein Löwe 🦁", "seed": "5", "index": "8", "model": "tiny", "version": __version__}
    assert expected.items() <= metadata(tmp_path / "new" / "x.png").items()
    with Image.open(tmp_path / "new" / "x.png") as picture:
        assert picture.tobytes() == to_pil(IMAGES[1]).tobytes() == one(1).pil()[0].tobytes()


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_other_formats_tell_the_same_and_lose_as_much_as_asked_for(suffix: str, tmp_path: Path) -> None:
    smooth = replace(one(1), images=torch.linspace(-1, 1, 64).expand(1, 3, 64, 64).contiguous())
    (good,), (poor,) = smooth.save(tmp_path / f"a{suffix}"), smooth.save(tmp_path / f"b{suffix}", quality=5)
    expected = {"caption": "ein Löwe 🦁", "seed": "5", "index": "8", "model": "tiny", "version": __version__}
    assert metadata(good) == metadata(poor) == expected
    with Image.open(good) as picture:
        assert picture.format == {".webp": "WEBP"}.get(suffix, "JPEG") and picture.size == (64, 64)
        off = np.abs(np.asarray(picture.convert("RGB")).astype(float) - np.asarray(smooth.pil()[0])).mean()
        assert off < 3
    assert poor.stat().st_size < good.stat().st_size
    for quality in (0, 101):
        with pytest.raises(ValueError, match=f"quality is {quality}; it must be"):
            one(1).save(tmp_path / f"c{suffix}", quality=quality)
    with pytest.raises(ValueError, match="quality is 80, but PNG loses nothing"):
        one(1).save(tmp_path / "c.png", quality=80)
    assert GENERATION.save(tmp_path / f"two{suffix}")[1] == tmp_path / f"two-1{suffix}"


def test_pictures_by_number_are_generations_of_one() -> None:
    assert len(GENERATION) == 2 and [picture.captions for picture in GENERATION] == [(c,) for c in GENERATION.captions]
    last = GENERATION[-1]
    assert torch.equal(last.images, IMAGES[1:]) and last.seeds == ((5, 8),) and last.captions == ("ein Löwe 🦁",)
    assert last.latent is not None and torch.equal(last.latent.x_t, LATENT.x_t[1:]) and last.model == "tiny"
    assert all(torch.equal(images, GENERATION.stages[size][1:]) for size, images in last.stages.items())
    assert len(GENERATION[:1]) == 1 and len(GENERATION[5:]) == 0 and torch.equal(GENERATION[np.int64(0)].images, IMAGES[:1])
    for wrong in (2, -3):
        with pytest.raises(IndexError, match=f"there is no picture {wrong}: there are 2, counted from 0"):
            GENERATION[wrong]
    assert repr(last) == f"Generation of 1 picture, {IMAGES.shape[-1]} pixels: 'ein Löwe 🦁' (seed 5, number 8)"


def test_a_notebook_shows_the_picture_or_all_with_their_captions() -> None:
    with Image.open(BytesIO(GENERATION[0]._repr_png_())) as alone, Image.open(BytesIO(GENERATION._repr_png_())) as both:
        assert alone.tobytes() == GENERATION.pil()[0].tobytes()
        assert both.width > 2 * alone.width and both.height > alone.height  # captions below


def test_several_pictures(tmp_path: Path) -> None:
    assert GENERATION.save(tmp_path / "x.png") == [tmp_path / "x-0.png", tmp_path / "x-1.png"]
    assert GENERATION.save(tmp_path / "folder") == [tmp_path / "folder" / "00007.png", tmp_path / "folder" / "00008.png"]
    (tmp_path / "with.dot").mkdir()
    assert GENERATION.save(tmp_path / "with.dot")[0] == tmp_path / "with.dot" / "00007.png"
    assert one(0).save(tmp_path / "UPPER.PNG") == [tmp_path / "UPPER.PNG"]
    assert metadata(tmp_path / "x-1.png")["caption"] == "ein Löwe 🦁"
    assert [p.name for p in tmp_path.rglob(".*")] == []


def test_outputs_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.png").mkdir()
    for path, message in {
        "x.gif": "written as .png or .jpg or .jpeg or .webp or into a folder, not as '.gif'",
        "folder.png": "is a folder",
        "file": "cannot write .*file.*: Not a directory",
        "file/x.png": "cannot write .*x.png: ",
        "/proc/unclip/x.png": "cannot write /proc/unclip/x.png: ",
        "n" * 300 + ".png": "cannot write .*name too long",
    }.items():
        with pytest.raises(ValueError, match=message):
            check_files(picture_paths(tmp_path / path, [0]))
        with pytest.raises(ValueError, match=message.replace("Not a directory", "File exists")):
            one(0).save(tmp_path / path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"] and (tmp_path / "file").read_text() == "kept"


def test_a_full_disk_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "x-0.png").write_text("before")
    noisy = torch.rand(3, 64, 64) * 2 - 1
    large = replace(GENERATION, images=torch.stack([torch.zeros(3, 64, 64), noisy]))
    assert len(png(large.images[0], {})) < 4000 < len(png(noisy, {}))
    with full_disk(4000), pytest.raises(ValueError, match=f"cannot write .*x-1.png: {os.strerror(errno.EFBIG)}"):
        large.save(tmp_path / "x.png")
    assert [p.name for p in tmp_path.iterdir()] == ["x-0.png"] and (tmp_path / "x-0.png").read_text() == "before"


def test_files_are_renamed_when_all_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write_files([(tmp_path / "a", b"1"), (tmp_path / "b" / "c", b"2")])
    assert (tmp_path / "a").read_bytes() == b"1" and (tmp_path / "b" / "c").read_bytes() == b"2" and len(synced) == 2

    def broken(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(ValueError, match="cannot write .*a: No space left on device"):
        write_files([(tmp_path / "a", b"3")])
    assert (tmp_path / "a").read_bytes() == b"1" and sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]

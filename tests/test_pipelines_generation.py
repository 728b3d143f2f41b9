"""What a pipeline returns: pictures as PNGs with their metadata, there whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

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
        "x.jpg": "written as .png or into a folder, not as '.jpg'",
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

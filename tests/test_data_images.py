"""Every kind of picture that people have, and one clear error for the rest."""

from __future__ import annotations

import io
import zlib
from struct import pack

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from unclip.data import images
from unclip.data.images import MAX_PIXELS, decode_image, load_image, read_size

RAMP = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
COLOUR = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=-1)
EXACT = torch.from_numpy(COLOUR.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)


def test_files_pil_pictures_and_tensors_say_the_same(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    bytes_tensor = torch.from_numpy(COLOUR).permute(2, 0, 1)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(COLOUR), EXACT, bytes_tensor):
        picture = load_image(source)
        assert picture.dtype == torch.float32 and picture.shape == (3, 8, 8)
        torch.testing.assert_close(picture, EXACT, rtol=0, atol=1e-6)


MODES = ["1", "L", "P", "RGB", "RGBX", "RGBA", "RGBa", "LA", "La", "PA", "CMYK", "YCbCr", "HSV", "LAB", "F", "I"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_read(mode):
    grey = mode in ("1", "L", "LA", "La", "F", "I")
    source = Image.fromarray(COLOUR[..., 0] if grey else COLOUR)
    if mode in ("RGBa", "La"):
        picture = source.convert({"RGBa": "RGBA", "La": "LA"}[mode]).convert(mode)
    elif mode == "LAB":
        picture = Image.merge("LAB", [Image.fromarray(RAMP)] * 3)
    elif mode == "PA":
        picture = source.convert("P").convert("PA")
    elif mode == "I":
        picture = Image.fromarray(RAMP.astype(np.int32) * 257)
    else:
        picture = source.convert(mode)
    result = load_image(picture)
    assert result.shape == (3, 8, 8) and result.abs().max() <= 1
    if mode in ("L", "LA", "La", "F", "I"):
        torch.testing.assert_close(result, EXACT[:1].expand(3, -1, -1), rtol=0, atol=1e-5)
    if mode in ("RGBX", "RGBA", "RGBa", "CMYK"):
        torch.testing.assert_close(result, EXACT, rtol=0, atol=1e-6)


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    torch.testing.assert_close(load_image(tmp_path / "deep.png"), EXACT[:1].expand(3, -1, -1), rtol=0, atol=1e-5)


def test_numbers_of_any_range_are_read_for_what_they_are_or_refused():
    wide, unit = RAMP.astype(np.int32), RAMP.astype(np.float32) / 255
    for grey in (wide, wide * 257, unit, unit * 255):
        torch.testing.assert_close(load_image(Image.fromarray(grey)), EXACT[:1].expand(3, -1, -1), rtol=0, atol=1e-5)
    overshoot = load_image(Image.fromarray(unit * 1.04 - 0.02))  # as resizing leaves it
    assert overshoot.min() == -1 and overshoot.max() > 0.98
    for grey, told in (
        (wide - 128, "mode is I and its numbers go from -128 to 124, not from 0 to 255 or 0 to 65535"),
        (wide * 10**6, "go from 0 to 2.52e[+]08"),
        (unit * 2 - 1, "mode is F and its numbers go from -1 to 0.97.*, not from 0 to 1 or 0 to 255"),
        (unit * 1000, "go from 0 to 988"),
        (unit * np.float32("nan"), "go from nan to nan"),
    ):
        with pytest.raises(ValueError, match=told):
            load_image(Image.fromarray(grey))


def test_a_dark_file_of_sixteen_bits_stays_dark(tmp_path):
    dark = Image.fromarray(RAMP.astype(np.uint16))
    dark.save(tmp_path / "deep.png")
    assert load_image(tmp_path / "deep.png").max() < -0.99 and load_image(dark).max() < -0.99


def test_transparency_lies_on_white(tmp_path):
    rgba = np.concatenate([COLOUR, np.zeros((8, 8, 1), np.uint8)], axis=-1)
    rgba[:4, :, 3] = 255
    rgba[4, :, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    picture = load_image(tmp_path / "a.png")
    torch.testing.assert_close(picture[:, :4], EXACT[:, :4], rtol=0, atol=1e-6)
    assert (picture[:, 5:] == 1).all()
    torch.testing.assert_close(picture[:, 4], EXACT[:, 4] * 128 / 255 + 127 / 255, rtol=0, atol=0.01)
    palette = Image.fromarray(RAMP).convert("P")
    palette.save(tmp_path / "p.png", transparency=0)  # the colour of index 0 becomes transparent
    assert (load_image(tmp_path / "p.png")[:, 0, 0] == 1).all() and (load_image(palette)[:, 0, 0] == -1).all()


def test_exif_orientation_turns_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    Image.fromarray(COLOUR[:, :5]).save(tmp_path / "a.png", exif=exif)
    torch.testing.assert_close(load_image(tmp_path / "a.png"), EXACT[:, :, :5].rot90(-1, (1, 2)), rtol=0, atol=1e-6)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif")[:, 0, 0].tolist() == [1, -1, -1]


def huge_png(width, height):
    """A few bytes that claim to be a picture of any size."""

    def chunk(kind, data):
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    header = pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_bad_files_are_refused_with_one_message(tmp_path):
    def refused(name, data, match):
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(ValueError, match=match) as error:
            load_image(path)
        assert name in str(error.value) and "\n" not in str(error.value)

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    refused("absent.png", None, "no picture file")
    refused("text.png", b"hello", "cannot be decoded")
    refused("empty.png", b"", "cannot be decoded")
    refused("cut.jpg", buffer.getvalue()[: len(buffer.getvalue()) // 2], "cannot be decoded")
    refused("cut.png", huge_png(64, 64), "cannot be decoded")
    refused("bomb.png", huge_png(100_000, 100_000), "too large")
    with pytest.raises(ValueError, match="it is a folder"):
        load_image(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_of_data_sets_are_read_from_their_bytes():
    for form in ("PNG", "WEBP", "BMP", "GIF", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(COLOUR).save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
        picture = decode_image(buffer.getvalue(), "x.jpg")  # the name tells nothing
        assert picture.is_contiguous()
        if form != "GIF":
            torch.testing.assert_close(picture, EXACT, rtol=0, atol=1e-6)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"  # would be run by Ghostscript
    bad = {b"": "is empty", eps: "is none, or of another format", huge_png(13_000, 13_000): "too large", b"\x89PNG": "cannot"}
    for data, match in bad.items():
        with pytest.raises(ValueError, match=match) as error:
            decode_image(data, "shard.tar:x.png")
        assert str(error.value).startswith("shard.tar:x.png ") and "0x" not in str(error.value)


def smooth(size):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8))
    return picture.resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "LA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_pictures_are_read_smaller_in_pieces(mode, orientation, monkeypatch, tmp_path):
    if mode in ("I", "F", "I;16"):
        grey = np.asarray(smooth((90, 72)).convert("L"), np.float32)
        deep = {"I": (grey * 257).astype(np.int32), "F": grey / 255, "I;16": (grey * 257).astype(np.uint16)}
        picture = Image.fromarray(deep[mode])
    else:
        picture = smooth((90, 72)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "x.tif", exif=exif)
    whole = load_image(tmp_path / "x.tif")
    assert whole.shape == ((3, 72, 90) if orientation == 1 else (3, 90, 72))
    monkeypatch.setattr(images, "LARGE", 720)  # 90 x 72 is three times as long and wide as what is allowed
    monkeypatch.setattr(images, "BAND", 900)
    small = load_image(tmp_path / "x.tif")
    assert small.is_contiguous()
    torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(whole, 3), rtol=0, atol=1.1 / 127.5)


def test_large_jpegs_are_made_smaller_by_their_decoder(monkeypatch):
    buffer = io.BytesIO()
    smooth((256, 256)).save(buffer, "JPEG", quality=95)
    whole = decode_image(buffer.getvalue(), "x")
    for large, side in ((256**2, 256), (256**2 - 1, 128), (100**2, 64), (30**2, 16)):
        monkeypatch.setattr(images, "LARGE", large)
        small = decode_image(buffer.getvalue(), "x")
        assert small.shape == (3, side, side)
        torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(whole, 256 // side), rtol=0, atol=0.06)


def test_a_photograph_of_a_hundred_megapixels_is_data():
    """Only its header is looked at here: it is cut off behind that."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = pack(">HH", 10_000, 10_000)
    with pytest.raises(ValueError, match="cannot be decoded") as error:
        decode_image(bytes(data[: at + 20]), "x")
    assert "too large" not in str(error.value)
    assert read_size(bytes(data)) == (10_000, 10_000)


def test_broken_exif_does_not_break_a_picture():
    buffer = io.BytesIO()
    for exif in (b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40):
        Image.fromarray(COLOUR).save(buffer, "PNG", exif=exif)
        torch.testing.assert_close(decode_image(buffer.getvalue(), "x"), EXACT, rtol=0, atol=1e-6)
        buffer.seek(0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_as_pillow_turns_it(orientation):
    picture = Image.fromarray(COLOUR[:, :5])
    exif = picture.getexif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    image = decode_image(buffer.getvalue(), "x")
    torch.testing.assert_close(image, torch.from_numpy(expected).permute(2, 0, 1) / 127.5 - 1, rtol=0, atol=1e-6)


def test_huge_pil_pictures_are_refused_before_they_are_decoded():
    picture = Image.new("1", (20_000, MAX_PIXELS // 20_000 + 1))
    with pytest.raises(ValueError, match="too large: 20000 x 8948"):
        load_image(picture)


@pytest.mark.parametrize(
    "source",
    [torch.zeros(4, 8, 8), torch.zeros(1, 3, 8, 8), torch.zeros(3, 0, 8), torch.full((3, 2, 2), 200.0),
     torch.full((3, 2, 2), float("nan")), torch.zeros(3, 2, 2, dtype=torch.int64), 7, None],
)  # fmt: skip
def test_things_that_are_no_pictures_are_refused(source):
    with pytest.raises(ValueError, match="expected"):
        load_image(source)


def test_arrays_are_pictures_as_other_libraries_hold_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    expected = load_image(Image.fromarray(pixels))
    assert torch.equal(load_image(pixels), expected)
    for kind in (np.float64, np.float32):
        assert torch.equal(load_image((pixels / 255).astype(kind)), expected)
    assert torch.equal(load_image(pixels[::2, ::-1]), expected[:, ::2].flip(2))  # strides of any kind
    grey = load_image(pixels[..., 0])
    assert torch.equal(grey, expected[:1].expand(3, -1, -1)) and torch.equal(load_image(pixels[..., :1]), grey)
    clear = np.dstack([pixels, np.zeros((9, 7), np.uint8)])
    assert (load_image(clear) == 1).all()  # white, where nothing covers it


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 9, 7), np.uint8), r"picture array \(h, w, 3\), .*given \(3, 9, 7\)"),
        (np.zeros((2, 9, 7, 3), np.uint8), "a batch is given as a list of its pictures"),
        (np.zeros((0, 7, 3), np.uint8), r"given \(0, 7, 3\)"),
        (np.zeros(5), r"given \(5,\)"),
        (np.zeros((9, 7, 3), np.int64), "of uint8, or float in .*given int64"),
        (np.full((9, 7, 3), 200.0), "given values from 200 to 200"),
        (np.full((9, 7, 3), -1.0), r"pictures in \[-1, 1\] are tensors"),
        (np.full((9, 7, 3), np.nan), "given values from nan to nan"),
        (np.full((9, 7), "x"), "given <U1"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_image(array)

"""Colours as littleCMS gives them for a profile, and transparency on white in every mode and depth."""

from __future__ import annotations

import io
import warnings
import zlib
from struct import pack
from typing import Any

import icc
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor

from unclip.data import colour
from unclip.data.images import decode_image, load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
PROFILES = {
    "p3": icc.rgb(icc.P3, 2.2), "adobe": icc.rgb(icc.ADOBE, 2.2), "linear": icc.rgb(icc.SRGB, 1.0), "mac": icc.rgb(icc.SRGB, 1.8),
}  # fmt: skip
SRGB = ImageCms.createProfile("sRGB")


def encoded(picture: Image.Image, form: str, profile: bytes | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, icc_profile=profile, **options)
    return file.getvalue()


def right(data: bytes, profile: bytes) -> Tensor:
    """What littleCMS makes of a file's decoded pixels."""
    with Image.open(io.BytesIO(data)) as picture:
        mode = picture.mode if picture.mode in ("L", "CMYK") else "RGB"
        shown = ImageCms.profileToProfile(picture.convert(mode), io.BytesIO(profile), SRGB, outputMode="RGB")
    return levels(np.asarray(shown))


def levels(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)


def close(a: Tensor, b: Tensor, levels: float = 0) -> None:
    assert a.shape == b.shape and (a - b).abs().max() <= levels / 127.5 + 1e-6


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("JPEG", {"quality": 95}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("WEBP", {"quality": 60}), ("AVIF", {})],
)
def test_colours_are_brought_to_srgb(form: str, options: dict[str, Any], name: str) -> None:
    if form == "AVIF" and "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    data = encoded(Image.fromarray(PIXELS), form, PROFILES[name], **options)
    image = decode_image(data, "x")
    close(image, right(data, PROFILES[name]))
    plain = decode_image(encoded(Image.fromarray(PIXELS), form, **options), "x")
    assert (image - plain).abs().mean() > 0.01
    with Image.open(io.BytesIO(data)) as picture:
        close(load_image(picture), image)


def test_an_srgb_profile_changes_nothing() -> None:
    data = encoded(Image.fromarray(PIXELS), "PNG", ImageCms.ImageCmsProfile(SRGB).tobytes())
    close(decode_image(data, "x"), levels(PIXELS))


def test_known_colours_of_known_spaces() -> None:
    """The full green of Display P3 and of Adobe RGB lie outside sRGB; their greys lie on its own."""
    green = np.array([[[0, 255, 0], [128, 128, 128], [255, 255, 255]]], np.uint8)
    for name in ("p3", "adobe"):
        image = decode_image(encoded(Image.fromarray(green), "PNG", PROFILES[name]), "x")
        assert image[:, 0, 0].tolist() == [-1, 1, -1] and (image[:, 0, 2] == 1).all()
        assert (image[:, 0, 1] - (128 / 127.5 - 1)).abs().max() < 3 / 127.5
    linear = decode_image(encoded(Image.fromarray(green), "PNG", PROFILES["linear"]), "x")
    assert ((linear[:, 0, 1] + 1) * 127.5).round().tolist() == [188, 188, 188]


@pytest.mark.parametrize("mode", ["RGBA", "P", "PA", "RGBa", "1", "L", "LA", "La"])
def test_every_mode_has_its_profile_applied(mode: str) -> None:
    source = Image.fromarray(PIXELS)
    if mode == "PA":
        picture = source.convert("P").convert("PA")
    elif mode in ("RGBa", "La"):
        picture = source.convert({"RGBa": "RGBA", "La": "LA"}[mode]).convert(mode)
    else:
        picture = source.convert(mode)
    plain = picture.convert({"La": "LA", "RGBa": "RGBA"}[mode]) if mode in ("La", "RGBa") else picture
    opaque = plain.convert("RGB")
    picture.info["icc_profile"] = PROFILES["p3"]
    expected = ImageCms.profileToProfile(opaque, io.BytesIO(PROFILES["p3"]), SRGB, outputMode="RGB")
    close(load_image(picture), levels(np.asarray(expected)))


def test_transparency_is_laid_on_white_after_the_profile() -> None:
    rgba = np.concatenate([PIXELS, np.full((6, 9, 1), 255, np.uint8)], -1)
    rgba[:2, :, 3], rgba[2:4, :, 3] = 0, 128
    image = decode_image(encoded(Image.fromarray(rgba), "PNG", PROFILES["p3"]), "x")
    opaque = right(encoded(Image.fromarray(PIXELS), "PNG", PROFILES["p3"]), PROFILES["p3"])
    assert (image[:, :2] == 1).all()
    close(image[:, 4:], opaque[:, 4:])
    close(image[:, 2:4], opaque[:, 2:4] * 128 / 255 + 127 / 255, levels=1)


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
def test_grey_profiles(gamma: float) -> None:
    grey, profile = Image.fromarray(PIXELS[..., 0]), icc.grey(gamma)
    for form in ("PNG", "JPEG", "TIFF"):
        data = encoded(grey, form, profile)
        close(decode_image(data, "x"), right(data, profile))
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    close(decode_image(encoded(deep, "PNG", profile), "x"), right(encoded(grey, "PNG", profile), profile))
    for alpha in (grey.convert("LA"), Image.merge("LA", [grey, grey.point(lambda level: 255)])):
        close(decode_image(encoded(alpha, "PNG", profile), "x"), right(encoded(grey, "PNG", profile), profile))
    deep_alpha = png(16, 4, [257 * level for level in (100, 255, 200, 255)], None, profile=profile)
    expected = right(encoded(Image.fromarray(np.array([[100, 200]], np.uint8)), "PNG", profile), profile)
    close(decode_image(deep_alpha, "x"), expected)
    keyed = encoded(grey, "PNG", profile, transparency=int(PIXELS[0, 0, 0]))
    shown = right(encoded(grey, "PNG", profile), profile)
    shown[:, torch.from_numpy(PIXELS[..., 0] == PIXELS[0, 0, 0])] = 1
    close(decode_image(keyed, "x"), shown)
    between = Image.fromarray(np.array([[100 * 257 + 128]], np.uint16))
    ends = right(encoded(Image.fromarray(np.array([[100, 101]], np.uint8)), "PNG", profile), profile)
    value = decode_image(encoded(between, "PNG", profile), "x")[0, 0, 0]
    assert ends[0, 0, 0] - 1e-6 <= value <= ends[0, 0, 1] + 1e-6


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_inks_are_mixed_as_their_profile_says(form: str) -> None:
    inks = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8, 4), np.uint8), mode="CMYK")
    data = encoded(inks, form, icc.cmyk())
    image = decode_image(data, "x")
    close(image, right(data, icc.cmyk()))
    assert (image - decode_image(encoded(inks, form), "x")).abs().mean() > 0.05


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        (b"no profile at all", "cannot open profile"),
        (PROFILES["p3"][:200], "cannot open profile|cannot build transform"),
        (icc.grey(2.0), "it is one for L and the picture is RGB"),
        (icc.cmyk(), "it is one for CMYK and the picture is RGB"),
    ],
)
def test_a_profile_that_cannot_be_used_is_ignored_and_told_once(
    profile: bytes, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(colour, "_warned", set())
    data = encoded(Image.fromarray(PIXELS), "PNG", profile)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for name in ("first.png", "second.png"):
            close(decode_image(data, name), levels(PIXELS))
    (message,) = [str(w.message) for w in seen]
    assert message.startswith("the colour profile of first.png is ignored: ") and any(t in message for t in told.split("|"))


# Transparency in PNGs of every depth


def png(
    depth: int, kind: int, samples: list[int], transparent: bytes | None, palette: bytes = b"", profile: bytes = b""
) -> bytes:
    """One row of pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + name + data + pack(">I", zlib.crc32(name + data))

    bits = "".join(f"{sample:0{depth}b}" for sample in samples)
    row = b"\0" + bytes(int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8))
    width = len(samples) // {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    out += chunk(b"iCCP", b"icc\0\0" + zlib.compress(profile)) if profile else b""
    out += chunk(b"PLTE", palette) if palette else b""
    out += chunk(b"tRNS", transparent) if transparent is not None else b""
    return out + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("which", ["black", "white", "middle"])
def test_a_transparent_grey_is_white_in_every_depth(depth: int, which: str) -> None:
    most = 2**depth - 1
    samples = [0, most, most // 3, 0] if depth > 1 else [0, 1, 1, 0]
    transparent = {"black": 0, "white": most, "middle": samples[2]}[which]
    image = decode_image(png(depth, 0, samples, pack(">H", transparent)), "x")
    expected = [1 if sample == transparent else 2 * sample / most - 1 for sample in samples]
    torch.testing.assert_close(image[:, 0], torch.tensor(expected).expand(3, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_white_in_every_depth(depth: int) -> None:
    scale = 2 ** (depth - 8)
    colours = [(10, 20, 30), (40, 50, 60), (10, 20, 31)]
    samples = [scale * number + scale // 3 for one in colours for number in one]  # of 16 bits, the two bytes differ
    image = decode_image(png(depth, 2, samples, pack(">HHH", *samples[:3])), "x")
    assert (image[:, 0, 0] == 1).all()
    torch.testing.assert_close(image[:, 0, 1:], torch.tensor(colours[1:]).T / 127.5 - 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_with_half_transparent_colours(depth: int) -> None:
    image = decode_image(png(depth, 3, [0, 1, 1, 0], b"\x80\xff", palette=b"\x00\x00\x00\xff\x00\x00"), "x")
    expected = torch.tensor([[127.0, 255, 255, 127], [127, 0, 0, 127], [127, 0, 0, 127]]) / 127.5 - 1
    torch.testing.assert_close(image[:, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", [4, 6])
def test_an_alpha_channel_of_every_depth(depth: int, kind: int) -> None:
    scale = 2**depth // 255 if depth == 16 else 1
    alphas, grey = (0, 255, 128), 100
    samples = [scale * number for alpha in alphas for number in ([grey] * (1 if kind == 4 else 3) + [alpha])]
    image = decode_image(png(depth, kind, samples, None), "x")
    expected = torch.tensor([(grey * alpha + 255 * (255 - alpha)) / 255 for alpha in alphas]) / 127.5 - 1
    torch.testing.assert_close(image[:, 0], expected.expand(3, -1), rtol=0, atol=0.9 / 127.5)

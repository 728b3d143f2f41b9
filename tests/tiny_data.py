"""Tiny captioned pictures in every layout, and every kind of broken file."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from struct import pack

import numpy as np
from PIL import Image


def picture(i: int, form: str = "PNG", size: tuple[int, int] = (6, 4)) -> bytes:
    """A picture of one colour, another one for every i below 2**16."""
    file = io.BytesIO()
    Image.new("RGB", size, (i % 256, i // 256 % 256, 77)).save(file, form)
    return file.getvalue()


def noisy(i: int) -> bytes:
    """A picture that does not get smaller when it is packed."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (24, 32, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def caption(i: int) -> str:
    return f"picture number {i}"


def folder(path: Path, n: int, prefix: str = "p") -> Path:
    """n pictures p000.png and so on, with their texts."""
    path.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (path / f"{prefix}{i:03d}.png").write_bytes(picture(i))
        (path / f"{prefix}{i:03d}.txt").write_text(caption(i))
    return path


def tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def members(numbers: range) -> dict[str, bytes]:
    """Of a shard, the same pictures as those of `folder`."""
    pairs = ((f"p{i:03d}", i) for i in numbers)
    return {f"{k}.{s}": d for k, i in pairs for s, d in (("png", picture(i)), ("txt", caption(i).encode()))}


def shards(path: Path, n: int, per_shard: int) -> Path:
    for s in range(-(-n // per_shard)):
        tar(path / f"s-{s:03d}.tar", members(range(s * per_shard, min(n, (s + 1) * per_shard))))
    return path


def bomb(width: int = 100_000, height: int = 100_000) -> bytes:
    """A few bytes that claim to be a picture of ten thousand megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    header = pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def flipped(data: bytes) -> bytes:
    """One byte of a PNG's pixels changed, which its checksum tells."""
    at = data.index(b"IDAT") + 6
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


BROKEN = {
    "zero bytes": b"",
    "truncated": picture(1, "JPEG", (64, 64))[:300],
    "corrupt": flipped(picture(1)),
    "no picture": b"<html>404 not found</html>",
    "bomb": bomb(),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "noise": bytes(range(256)),
}

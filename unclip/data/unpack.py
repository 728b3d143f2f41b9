"""Compressed files unpacked as a stream, told by their first bytes and not by their names."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

# What each begins with, and what unpacks one of the streams that may follow each other in a file.
KINDS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(31),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lzma.LZMADecompressor,
}
LONGEST = max(map(len, KINDS))
PIECE = 2**14  # bytes read at once: they may become thousands of times as many


def copy_unpacked(source: Any, target: Any) -> str | None:
    """Write what a file holds, compressed or not, as far as it can be unpacked; what is wrong behind that."""
    data = source.read(PIECE)
    make = kind(data)
    if make is None:
        while data:
            target.write(data)
            data = source.read(2**20)
        return None
    stream = make()
    while data:
        try:
            block = stream.decompress(data)
        except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:  # each library has its own
            return f"holds what cannot be unpacked: {error}"
        target.write(block)
        data = stream.unused_data if stream.eof else source.read(PIECE)
        if stream.eof:
            while not (data := data.lstrip(b"\0")):  # padding
                if not (data := source.read(PIECE)):
                    return None
            stream = make()
    return "ends in the middle of its compressed data"


def kind(start: bytes) -> Callable[[], Any] | None:
    """What unpacks a file that begins so; None = it is not compressed."""
    return next((make for magic, make in KINDS.items() if start.startswith(magic)), None)

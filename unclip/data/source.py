"""What the reader asks of a folder, a table or tar shards: keys, captions, labels, and a picture's bytes by row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from unclip.files import visible

LONGEST_NAME = 4096  # of a file, as systems have it


@runtime_checkable
class Source(Protocol):
    """Captioned pictures somewhere.  Rows are sorted by key, so that their order does not tell how they are stored."""

    name: str
    left_out: dict[str, list[str]]  # what is wrong -> names of what is left out for it
    captioned: bool  # whether any picture has a caption; without labels each has

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Sequence[str] | None:
        """The name of each row's class, where labels were asked for."""
        ...

    def where(self, row: int) -> str:
        """A name of the picture for people, with the suffix of its file."""
        ...

    def image_bytes(self, row: int) -> bytes:
        """The picture's file.  ValueError: it is broken; OSError: its place cannot be reached."""
        ...

    def captions(self, row: int) -> list[str]:
        """At least one, which may be empty; none where nothing is `captioned`.  ValueError: they are broken."""
        ...

    def digest(self) -> str:
        """Another one when keys, captions or pictures differ, as far as that shows without reading the pictures."""
        ...


def clean(name: str) -> str:
    """A file's name as text that can be written: bytes in it that are no UTF-8 as \\xe9."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def say_left_out(left_out: dict[str, list[str]]) -> None:
    for what, names in left_out.items():
        if names:
            warnings.warn(f"{len(names)} {what} and are left out: {listed(names)}", stacklevel=1)


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first of many, for people."""
    return ", ".join(visible(name, 100) for name in names[:most]) + (", …" if len(names) > most else "")

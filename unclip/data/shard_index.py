"""What a tar shard holds, and at which bytes: made by going once through its headers."""

from __future__ import annotations

import tarfile
from typing import Any, Literal, NamedTuple

from unclip.config import Config

from .files import Stamp
from .pictures import SUFFIXES
from .source import clean

BLOCK = 512  # bytes: everything in a tar starts at a multiple
TEXTS = ("txt", "json")  # where captions are looked for, in this order


class Entry(NamedTuple):
    """A picture and what belongs to it: its members' suffixes, and where their bytes begin.  Size 0: there is no such member."""

    key: str
    suffix: str
    offset: int
    size: int
    text_suffix: str  # of the captions; "" = there are none
    text_offset: int
    text_size: int
    record_offset: int  # of the .json
    record_size: int
    class_offset: int  # of the .cls, webdataset's place for the number of a class
    class_size: int


class Index(Config, frozen=True, kw_only=True):
    """`size` and `tag` are those of the shard when it was read; `problem` says where a broken one ends."""

    format: Literal["unclip.shard.2"] = "unclip.shard.2"
    size: int
    tag: str
    copied: bool  # it is read from an uncompressed copy in the cache
    entries: tuple[Entry, ...]
    pictureless: tuple[str, ...]
    problem: str | None


def scan(file: Any, size: int, stamped: Stamp, copied: bool) -> Index:
    """Go through a tar of `size` bytes.  Nothing in it is an error: what is broken is told in `problem`."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    problem = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # or it keeps them all
                if not member.isreg() or member.issparse():
                    continue
                name = clean(member.name)
                if member.offset_data + member.size > size:
                    problem = f"is truncated after {size} bytes, in the middle of {name}"
                    break
                key, suffix = split(name)
                if key:
                    found.setdefault(key, {}).setdefault(suffix, (member.offset_data, member.size))
            end = tar.offset
        if problem is None:
            file.seek(end)
            # Tarfile takes a broken header for the end; the real one is a block of zeros.
            if file.read(BLOCK).strip(b"\0") or end + BLOCK > size:
                problem = f"is broken or truncated at byte {end} of {size}"
    except (tarfile.TarError, EOFError) as error:
        problem = f"is no whole tar: {error}"
    entries, pictureless = [], []
    for key, members in found.items():
        picture = next((suffix for suffix in members if f".{suffix.lower()}" in SUFFIXES), None)
        text = next((suffix for suffix in TEXTS if suffix in members), None)
        if picture:
            others = (members.get(suffix or "", (0, 0)) for suffix in (text, "json", "cls"))
            caption, record, number = others
            entries.append(Entry(key, picture, *members[picture], text or "", *caption, *record, *number))
        elif text:
            pictureless.append(key)
    return Index(
        size=stamped.size,
        tag=stamped.tag,
        copied=copied,
        entries=tuple(entries),
        pictureless=tuple(pictureless),
        problem=problem,
    )


def split(name: str) -> tuple[str, str]:
    """A member's key and suffix; no key for files that are hidden or have no suffix."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, dot, suffix = last.partition(".")
    if not stem or not suffix:
        return "", ""
    return f"{folder}{slash}{stem.replace('%2E', '.').replace('%25', '%')}", suffix


def member_name(key: str) -> str:
    """The name, still without suffix, of which `split` makes that key again."""
    folder, slash, last = key.rpartition("/")
    return f"{folder}{slash}{last.replace('%', '%25').replace('.', '%2E')}"

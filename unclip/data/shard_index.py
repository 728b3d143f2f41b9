"""What a tar shard holds, and at which bytes: made by going once through its headers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import chain, count
from typing import Any, Literal, NamedTuple

from unclip.config import Config

from .files import Stamp
from .naming import Files, group, key_of
from .sample import MAX_TEXT, read_captions
from .tar import Member, bundles, read_members


class SampleEntry(NamedTuple):
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


class ShardIndex(Config, frozen=True, kw_only=True):
    """`size` and `tag` are those of the shard when it was read; `problem` says where a broken one ends."""

    format: Literal["unclip.shard.2"] = "unclip.shard.2"
    size: int
    tag: str
    copied: bool  # it is read from an uncompressed copy in the cache
    entries: tuple[SampleEntry, ...]
    lost: dict[str, tuple[str, ...]]  # what is wrong -> names of what is left out
    problem: str | None


def scan(file: Any, size: int, stamped: Stamp, copied: bool, problem: str | None = None) -> ShardIndex:
    """Go through tars of `size` bytes.  Nothing in them is an error: what is broken is told in `problem`, or was before."""
    contents = read_members(file, size)
    entries: dict[str, SampleEntry] = {}
    lost = contents.lost
    for members in bundles(contents, file):
        grouped = group(members, joins=True)
        for stem, files in grouped.samples.items():
            key = _unused(key_of(stem), entries)
            if files.text and files.text == files.record and _has_none(file, members[files.text]):
                files = files._replace(text=None)
            entries[key] = _entry(key, stem, files, members)
        lost.setdefault("captions have no picture", []).extend(map(key_of, grouped.texts))
        lost.setdefault("pictures have the name of another", []).extend(
            name for twins in grouped.twins.values() for name in twins
        )
        lost.setdefault("pictures are of a kind that is not read", []).extend(grouped.unread)
    return ShardIndex(
        size=stamped.size,
        tag=stamped.tag,
        copied=copied,
        entries=tuple(entries.values()),
        lost={what: tuple(names) for what, names in lost.items() if names},
        problem=problem or contents.problem,
    )


def _has_none(file: Any, member: Member) -> bool:
    """Whether a .json says that there are no captions.  What cannot be read is told when it is wanted."""
    file.seek(member.offset)
    try:
        return not read_captions(member.name, file.read(min(member.size, MAX_TEXT)))
    except ValueError:
        return False


def _entry(key: str, stem: str, files: Files, members: Mapping[str, Member]) -> SampleEntry:
    def place(name: str | None) -> tuple[int, int]:
        return (members[name].offset, members[name].size) if name is not None else (0, 0)

    def suffix(name: str | None) -> str:
        return name[len(stem) + 1 :] if name is not None else ""

    image, text, record, number = map(place, files)
    return SampleEntry(key, suffix(files.image), *image, suffix(files.text), *text, *record, *number)


def _unused(key: str, taken: Collection[str]) -> str:
    """The key, or with a number where there is a sample of that key: x-2."""
    return next(name for name in chain([key], (f"{key}-{n}" for n in count(2))) if name not in taken)

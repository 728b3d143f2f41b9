"""The members of a tar, and of others behind it in the same file, and at which bytes their contents begin."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from unclip.files import POINTER

from .naming import KNOWN, base, is_litter, split_suffix
from .source import clean

BLOCK = 512  # bytes: everything in a tar starts at a multiple


class Member(NamedTuple):
    name: str
    offset: int
    size: int
    archive: int  # number of the tar, where several lie behind one another


@dataclass
class Contents:
    """`lost`: what is wrong -> names; `problem` says where a broken file ends."""

    members: list[Member] = field(default_factory=list)
    lost: dict[str, list[str]] = field(default_factory=dict)
    problem: str | None = None


def read_members(file: Any, size: int) -> Contents:
    """Go through the headers of a file of `size` bytes: the members that may be data, links resolved.  Nothing is an error."""
    contents = Contents()
    links: list[tuple[str, str, int]] = []
    archive, start = 0, 0
    file.seek(0)
    if file.read(len(POINTER)) == POINTER:
        contents.problem = f"is a git-lfs pointer of {size} bytes, not the file itself: fetch that with `git lfs pull`"
        return contents
    while start < size or archive == 0:
        file.seek(start)
        end = start
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                contents.problem = _read_part(tar, archive, size, contents, links)
                end = tar.offset
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            contents.problem = f"is no whole tar: {error}"
        if contents.problem is None:
            file.seek(end)
            # Tarfile takes a broken header for the end; the real one is a block of zeros.
            if file.read(BLOCK) != bytes(BLOCK):
                behind = f"has {size - end} bytes behind its end, at byte {end}, that are no tar"
                contents.problem = behind if archive and end == start else f"is broken or truncated at byte {end} of {size}"
        if contents.problem is not None:
            break
        archive, start = archive + 1, _zeros_end(file, end, size)
    _resolve(links, contents)
    return contents


def _read_part(
    tar: tarfile.TarFile, archive: int, size: int, contents: Contents, links: list[tuple[str, str, int]]
) -> str | None:
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # or it keeps them all
        name = posixpath.normpath(clean(member.name))
        if member.issym() or member.islnk():
            folder = posixpath.dirname(name) if member.issym() else ""
            links.append((name, posixpath.normpath(posixpath.join(folder, clean(member.linkname))), archive))
        elif member.isreg():
            if member.size < 0 or member.offset_data + member.size > size:
                return f"is truncated after {size} bytes, in the middle of {name}"
            if split_suffix(name)[1] not in KNOWN or is_litter(name):
                continue
            if member.issparse():
                contents.lost.setdefault("members are sparse files", []).append(name)
            else:
                contents.members.append(Member(name, member.offset_data, member.size, archive))
    return None


def _zeros_end(file: Any, start: int, size: int) -> int:
    """The block behind the zeros from `start` on that holds something, or the end."""
    file.seek(start)
    while block := file.read(1 << 20):
        if rest := block.lstrip(b"\0"):
            at = start + len(block) - len(rest)
            return at // BLOCK * BLOCK
        start += len(block)
    return size


def _resolve(links: list[tuple[str, str, int]], contents: Contents) -> None:
    """Links to members as further members; others are told where they are named like data, or like a folder of it."""
    places = {member.name: member for member in contents.members}
    targets = {name: target for name, target, _ in links}
    for name, target, archive in links:
        suffix = split_suffix(name)[1]
        if is_litter(name) or (suffix and suffix not in KNOWN):
            continue
        for _ in range(8):  # links to links
            target = targets.get(target, target)
        if member := places.get(target):
            contents.members.append(member._replace(name=name, archive=archive))
        elif not any(other.startswith(f"{target}/") for other in places):  # a folder that is here anyway
            contents.lost.setdefault("links lead out of the shard", []).append(name)


def bundles(contents: Contents, file: Any) -> Iterator[dict[str, Member]]:
    """Members by name, without a name twice: first all those whose sample has no other of the same key, then sample by sample.

    A member that comes again with equal bytes is one.  With others it is another sample's: of a tar of its own, or of members
    that follow each other, time and again the same kinds.  Where that leaves a doubt, all of the key are told in `found.lost`.
    """
    names: dict[str, list[Member]] = {}
    for member in contents.members:
        names.setdefault(member.name, []).append(member)
    again = {_sample(name) for name, entries in names.items() if entries[1:] and len({_bytes(file, one) for one in entries}) > 1}
    yield {name: entries[0] for name, entries in names.items() if _sample(name) not in again}
    runs: dict[tuple[str, int], list[dict[str, Member]]] = {}  # of members that follow each other, by key and tar
    before = ""
    for member in sorted(contents.members, key=lambda one: one.offset):
        key = _sample(member.name)
        if key in again:
            entries = runs.setdefault((key, member.archive), [])
            if not entries or key != before or member.name in entries[-1]:
                entries.append({})
            entries[-1][member.name] = member
        before = key
    for entries in runs.values():
        together = {name: member for run in entries for name, member in run.items()}
        if len(together) == sum(map(len, entries)):
            yield together
        elif all(run.keys() == entries[0].keys() for run in entries):
            yield from entries
        else:
            contents.lost.setdefault("members come again with other contents", []).extend(together)


def _sample(name: str) -> str:
    return base(split_suffix(name)[0])


def _bytes(file: Any, member: Member) -> tuple[int, bytes]:
    file.seek(member.offset)
    return member.size, file.read(member.size)

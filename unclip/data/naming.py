"""Which files are one sample, told by their names: the same in a folder and in a tar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .images import SUFFIXES

IMAGES = {suffix[1:] for suffix in SUFFIXES}
TEXTS = ("txt", "caption", "json")  # of captions, in this order
WORDS = {*TEXTS, "cls"}  # cls: webdataset's place for the number of a class
# Of pictures that are not decoded: told, rather than passed over.
UNREAD = {"heic", "heif", "hif", "jxl", "jp2", "j2k", "jpx", "psd", "svg", "tga", "exr", "hdr", "dng", "nef", "cr2", "cr3", "arw"}
UNREAD |= {"raf", "orf", "rw2", "pef", "raw"}
KNOWN = IMAGES | WORDS | UNREAD
# What systems and tools leave behind, in lower case; names that begin with a dot are none of the data anyway.
LITTER = {
    "thumbs.db", "ehthumbs.db", "desktop.ini",  # Windows
    "$recycle.bin", "recycler", "recycled", "system volume information",
    "__macosx", "network trash folder", "temporary items",  # macOS
    "lost+found",  # Linux
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb", "@tmp",  # NAS boxes
    "__pycache__",
}  # fmt: skip


class Files(NamedTuple):
    """One sample, by the names of its files."""

    image: str
    text: str | None  # of its captions
    record: str | None  # its .json
    number: str | None  # its .cls


@dataclass
class Grouped:
    """Names sorted out."""

    samples: dict[str, Files] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)  # captions without a picture
    twins: dict[str, list[str]] = field(default_factory=dict)  # further pictures of a key that has one already
    unread: list[str] = field(default_factory=list)  # pictures of a kind that is not decoded


File = tuple[str, str]  # suffix in lower case, name


def is_litter(name: str) -> bool:
    """Whether a path inside the data has a part that is hidden or left behind by a tool."""
    parts = name.lower().split("/")
    return not LITTER.isdisjoint(parts) or any(part[:1] == "." and part not in (".", "..") for part in parts)


def split_suffix(name: str) -> tuple[str, str]:
    """A name without its last suffix, and that in lower case; no suffix for a name that has none."""
    stem, _, suffix = name.rpartition(".")
    return (name, "") if not stem or stem[-1] == "/" or "/" in suffix else (stem, suffix.lower())


def group(names: Iterable[str], joins: bool = False) -> Grouped:
    """The samples among file names (with / between folders): a picture and what has its name but for the suffix.

    The key is that name: cats/1 of cats/1.jpg, to which belong cats/1.txt, .caption, .json and .cls, suffixes in any case, and
    cats/1.jpg.txt and so on.  joins: what is left over is put together by its name up to the first dot, as webdataset does
    (s0.input.jpg and s0.outputs.txt are the sample s0; s0.mask.png belongs to s0.jpg and is no picture of its own).
    """
    grouped = Grouped()
    stems: dict[str, list[File]] = {}
    stem_of: dict[str, str] = {}  # name -> stem
    for name in names:
        stem, suffix = split_suffix(name)
        if suffix in KNOWN and not is_litter(name):
            stems.setdefault(stem, []).append((suffix, name))
            if suffix in IMAGES:
                stem_of[name] = stem
    for stem in [stem for stem in stems if stem in stem_of and not _has(stems[stem], IMAGES)]:
        stems[stem_of[stem]] += stems.pop(stem)  # of 1.jpg.txt
    for key, files in _joined(stems) if joins else stems.items():
        images = [name for suffix, name in files if suffix in IMAGES]
        text, record, number = (_first(files, suffixes) for suffixes in (TEXTS, ("json",), ("cls",)))
        if images:
            grouped.samples[key] = Files(images[0], text, record, number)
            if images[1:]:
                grouped.twins[key] = images[1:]
            continue
        if text:
            grouped.texts[key] = text
        grouped.unread += [name for suffix, name in files if suffix in UNREAD]
    return grouped


def _joined(stems: dict[str, list[File]]) -> Iterator[tuple[str, list[File]]]:
    """Stems that lack a half put together by their name up to the first dot, where that leaves one picture and no doubt."""
    bases: dict[str, list[str]] = {}
    for stem, files in stems.items():
        if _has(files, IMAGES) and _has(files, WORDS):
            yield stem, files
        else:
            bases.setdefault(base(stem), []).append(stem)
    for key, members in bases.items():
        exact = stems.get(key, [])
        if _has(exact, IMAGES):
            if _has(exact, WORDS):
                continue  # what is left, masks and the like, belongs to that sample
            members = [stem for stem in members if stem == key or not _has(stems[stem], IMAGES)]
        together = [file for stem in members for file in stems[stem]]
        kinds = Counter("picture" if suffix in IMAGES else suffix for suffix, _ in together)
        if kinds["picture"] == 1 and max(kinds.values()) == 1:
            yield key, together
        else:
            yield from ((stem, stems[stem]) for stem in members)


def base(stem: str) -> str:
    """webdataset's key: up to the first dot of the last part."""
    folder, slash, last = stem.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _has(files: Iterable[File], suffixes: Collection[str]) -> bool:
    return any(suffix in suffixes for suffix, _ in files)


def _first(files: Collection[File], suffixes: Sequence[str]) -> str | None:
    """The file with the first of the suffixes; 1.txt before 1.jpg.txt."""
    for wanted in suffixes:
        if matches := [name for suffix, name in files if suffix == wanted]:
            return min(matches, key=lambda name: (name.count("."), name))
    return None


def key_of(stem: str) -> str:
    """The key of members that are called so, but for their suffixes."""
    folder, slash, last = stem.rpartition("/")
    return f"{folder}{slash}{last.replace('%2E', '.').replace('%25', '%')}"


def member_name(key: str) -> str:
    """The name, still without suffix, of which `key_of` makes that key again."""
    folder, slash, last = key.rpartition("/")
    return f"{folder}{slash}{last.replace('%', '%25').replace('.', '%2E')}"

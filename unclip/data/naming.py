"""Which files are one sample, told by their names: the same in a folder and in a tar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .pictures import SUFFIXES

PICTURES = {suffix[1:] for suffix in SUFFIXES}
TEXTS = ("txt", "caption", "json")  # of captions, in this order
WORDS = {*TEXTS, "cls"}  # cls: webdataset's place for the number of a class
# Of pictures that are not decoded: told, rather than passed over.
UNREAD = {"heic", "heif", "hif", "jxl", "jp2", "j2k", "jpx", "psd", "svg", "tga", "exr", "hdr", "dng", "nef", "cr2", "cr3", "arw"}
UNREAD |= {"raf", "orf", "rw2", "pef", "raw"}
KNOWN = PICTURES | WORDS | UNREAD
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

    picture: str
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
    found = Grouped()
    stems: dict[str, list[File]] = {}
    pictures: dict[str, str] = {}  # name -> stem
    for name in names:
        stem, suffix = split_suffix(name)
        if suffix in KNOWN and not is_litter(name):
            stems.setdefault(stem, []).append((suffix, name))
            if suffix in PICTURES:
                pictures[name] = stem
    for stem in [stem for stem in stems if stem in pictures and not _has(stems[stem], PICTURES)]:
        stems[pictures[stem]] += stems.pop(stem)  # of 1.jpg.txt
    for key, files in _joined(stems) if joins else stems.items():
        some = [name for suffix, name in files if suffix in PICTURES]
        text, record, number = (_first(files, suffixes) for suffixes in (TEXTS, ("json",), ("cls",)))
        if some:
            found.samples[key] = Files(some[0], text, record, number)
            if some[1:]:
                found.twins[key] = some[1:]
            continue
        if text:
            found.texts[key] = text
        found.unread += [name for suffix, name in files if suffix in UNREAD]
    return found


def _joined(stems: dict[str, list[File]]) -> Iterator[tuple[str, list[File]]]:
    """Stems that lack a half put together by their name up to the first dot, where that leaves one picture and no doubt."""
    bases: dict[str, list[str]] = {}
    for stem, files in stems.items():
        if _has(files, PICTURES) and _has(files, WORDS):
            yield stem, files
        else:
            bases.setdefault(base(stem), []).append(stem)
    for key, some in bases.items():
        own = stems.get(key, [])
        if _has(own, PICTURES):
            if _has(own, WORDS):
                continue  # what is left, masks and the like, belongs to that sample
            some = [stem for stem in some if stem == key or not _has(stems[stem], PICTURES)]
        together = [file for stem in some for file in stems[stem]]
        kinds = Counter("picture" if suffix in PICTURES else suffix for suffix, _ in together)
        if kinds["picture"] == 1 and max(kinds.values()) == 1:
            yield key, together
        else:
            yield from ((stem, stems[stem]) for stem in some)


def base(stem: str) -> str:
    """webdataset's key: up to the first dot of the last part."""
    folder, slash, last = stem.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _has(files: Iterable[File], suffixes: Collection[str]) -> bool:
    return any(suffix in suffixes for suffix, _ in files)


def _first(files: Collection[File], suffixes: Sequence[str]) -> str | None:
    """The file with the first of the suffixes; 1.txt before 1.jpg.txt."""
    for wanted in suffixes:
        if some := [name for suffix, name in files if suffix == wanted]:
            return min(some, key=lambda name: (name.count("."), name))
    return None


def key_of(stem: str) -> str:
    """The key of members that are called so, but for their suffixes."""
    folder, slash, last = stem.rpartition("/")
    return f"{folder}{slash}{last.replace('%2E', '.').replace('%25', '%')}"


def member_name(key: str) -> str:
    """The name, still without suffix, of which `key_of` makes that key again."""
    folder, slash, last = key.rpartition("/")
    return f"{folder}{slash}{last.replace('%', '%25').replace('.', '%2E')}"

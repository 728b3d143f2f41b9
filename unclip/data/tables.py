"""The rows of tables joined to the pictures of their folder."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .files import is_url
from .naming import IMAGES, split_suffix
from .table import TableRow, read_table


@dataclass
class Joined:
    """By key: where pictures lie (paths or URLs), captions, names of classes."""

    images: dict[str, str]
    captions: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)  # keys that are samples, could they be had whole
    unused: set[str] = field(default_factory=set)  # keys of the folder's pictures that are none
    first: str = ""  # the first row's place


def join_tables(tables: Sequence[Path], folder: Path, local: Mapping[str, str], labels: str | None) -> Joined:
    """All rows of `tables`; `local` are the pictures below `folder`, by key.

    A row's place is a key, a URL, or a path from its table's folder.  Where nothing lies there it is also tried with slashes
    for backslashes (img\\1.png), and from where it names `folder` itself on (train/1.png or /mnt/train/1.png in train).  A key
    column names the sample, wherever its picture lies.
    """
    joined = Joined(dict(local), unused=set(local))
    for table in tables:
        below = os.path.relpath(table.absolute().parent, folder.absolute()).replace(os.sep, "/")
        for row in read_table(table, labels):
            joined.first = joined.first or row.place
            mine, key, place = _find(row.place, below, folder, local)
            if row.key is not None:
                if place is not None and joined.images.setdefault(row.key, place) != place:
                    raise ValueError(f"{_line(table, row)}: {row.key!r} is the key of {joined.images[row.key]} too")
                key = row.key
            elif place is not None:
                joined.images.setdefault(key, place)
            if key in joined.named and not row.repeats:
                raise ValueError(f"{_line(table, row)}: the key {key!r} occurs twice; give several captions as one list")
            joined.named.add(key)
            if row.captions:
                joined.captions.setdefault(key, []).extend(row.captions)
            if row.label is not None and joined.labels.setdefault(key, row.label) != row.label:
                raise ValueError(f"{_line(table, row)}: {key!r} is {row.label!r} here and {joined.labels[key]!r} before")
            if mine is not None and (row.captions if labels is None else row.label):
                joined.unused.discard(mine)
    return joined


def _find(place: str, below: str, folder: Path, local: Mapping[str, str]) -> tuple[str | None, str, str | None]:
    """The key among `local` of the picture that a row names, the key that the row gives it, and where it lies."""
    place = os.path.expanduser(place.removeprefix("file://"))
    if place in local:
        return place, place, local[place]
    if is_url(place):
        return None, place, place
    forms = list(_forms(place, below))
    for form in forms:
        if (key := _key(form)) in local:
            return key, key, local[key]
    for form in forms:
        path = os.path.join(folder, form)
        if split_suffix(form)[1] in IMAGES and os.path.isfile(path):
            inside = _key(os.path.relpath(path, folder).replace(os.sep, "/"))  # named from elsewhere, as /data/pictures/1.png
            return inside if inside in local else None, _key(form), path
    parts = forms[-1].split("/")
    for i in (i for i, part in enumerate(parts) if part == folder.absolute().name):
        if (key := _key("/".join(parts[i + 1 :]))) in local:
            return key, key, local[key]
    return None, _key(forms[0]), None


def _forms(place: str, below: str) -> Iterator[str]:
    """A path as it stands and as it may be meant, from the folder of all."""
    for form in dict.fromkeys((place, posixpath.normpath(place.replace("\\", "/")))):
        yield form if below == "." else posixpath.normpath(posixpath.join(below, form))


def _key(path: str) -> str:
    stem, suffix = split_suffix(path)
    return stem if suffix in IMAGES else path


def _line(table: Path, row: TableRow) -> str:
    return f"{table}, line {row.number}"


def nothing_joined(joined: Joined, local: Mapping[str, str], tables: Sequence[Path]) -> str:
    """Why no row has found its picture, as far as names tell."""
    has = f"where pictures are called {min(local)!r}" if local else "which has no pictures"
    return f"{tables[0]} names {joined.first!r}, and paths are taken from its folder, {has}"

"""A folder of captioned pictures: each with a .txt of its name, or all named in a table beside them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from unclip.files import visible

from .files import is_url, read_file, read_url
from .images import MAX_BYTES
from .naming import Files, Grouped
from .sample import FOLDER, MAX_TEXT, read_captions, record_label
from .source import LONGEST_NAME, clean, say_left_out
from .table import SUFFIXES as TABLE_SUFFIXES
from .tables import Joined, join_tables, nothing_joined
from .walk import Listing, list_folder

TABLES = [f"{stem}{suffix}" for stem in ("captions", "metadata") for suffix in TABLE_SUFFIXES]


class Folder:
    """Pictures below `folder`, linked folders among them.  A key is the path there without its suffix: `cats/one`.

    Captions are the lines of cats/one.txt (see `naming.group`) or, where there are `tables` (see `find_table`), of their rows.
    A row's place may also be a URL or a path elsewhere; a key column there takes precedence over the place's name.  What
    lacks its other half is left out, with a warning.  Captions that cannot be read break their sample alone.

    labels: "folder" (a picture's class is the top-level folder that it lies in) or the name of a column of the table or of a
    field of cats/one.json.  Pictures with a label need no caption; those without one are left out.
    """

    def __init__(
        self, folder: str | Path, tables: Sequence[Path] = (), labels: str | None = None, listing: Listing | None = None
    ):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is no folder; expected one with pictures and .txt files or a captions.jsonl")
        self.name = self.folder.resolve().name
        files, lost, grouped = listing or list_folder(self.folder)
        for key, twins in grouped.twins.items():
            pair = [clean(files[name]) for name in (grouped.samples[key].image, twins[0])]
            raise ValueError(f"{pair[0]} and {pair[1]} have the same key {key!r}: rename or remove one")
        local = {key: files[sample.image] for key, sample in grouped.samples.items()}
        tables = tables or find_table(self.folder)
        self._broken: dict[str, str] = {}  # key -> what is wrong with its captions
        joined = join_tables(tables, self.folder, local, labels) if tables else _beside(grouped, files, self._broken, labels)
        if labels == FOLDER:
            tops = {key: _top(joined.images[key], self.folder) for key in joined.named & joined.images.keys()}
            joined.labels = {key: top for key, top in tops.items() if top is not None}
            joined.unused = local.keys() - joined.labels.keys()
        half, values = ("caption", joined.captions) if labels is None else ("label", joined.labels)
        self.keys = sorted(joined.images.keys() & values.keys())
        self.left_out = {
            f"pictures have no {half}": sorted(joined.unused | (joined.images.keys() - values.keys() - local.keys())),
            "captions have no picture": sorted(joined.captions.keys() - joined.images.keys()),
            "pictures are of a kind that is not read": grouped.unread,
            **lost,
        }
        say_left_out(self.left_out)
        if not self.keys:
            expected = "expected NAME.png (or .jpg, .webp ...) beside NAME.txt, or a captions.jsonl"
            if labels is not None:
                column = f"expected a table with the column {labels!r}, or NAME.json"
                expected = "expected a folder for each class" if labels == FOLDER else column
            if tables and joined.named:
                expected = nothing_joined(joined, local, tables)
            has = f"{len(joined.images)} pictures and {len(values)} {half}s"
            raise ValueError(f"{folder} has {has}, none with the same key; {expected}")
        self.captioned = not joined.captions.keys().isdisjoint(self.keys)
        blank = [""] if self.captioned else []
        self._places = [joined.images[key] for key in self.keys]
        self._captions = [joined.captions.get(key, blank) for key in self.keys]
        self.labels = None if labels is None else [joined.labels[key] for key in self.keys]

    def where(self, row: int) -> str:
        return visible(clean(self._places[row]), LONGEST_NAME)

    def image_bytes(self, row: int) -> bytes:
        place = self._places[row]
        return read_url(place) if is_url(place) else read_file(place, MAX_BYTES)

    def captions(self, row: int) -> list[str]:
        if (problem := self._broken.get(self.keys[row])) is not None:
            raise ValueError(problem)
        return self._captions[row]

    def digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for key, place, captions in zip(self.keys, self._places, self._captions):
            size = 0 if is_url(place) or not Path(place).is_file() else Path(place).stat().st_size
            digest.update(repr((key, size, captions)).encode())
        return digest.hexdigest()


def find_table(folder: Path) -> list[Path]:
    """The folder's captions.jsonl, .csv, .tsv or .parquet, else its metadata.jsonl (of Hugging Face) and so on, in any case."""
    there = {name.lower(): folder / name for name in sorted(os.listdir(folder), reverse=True)}
    return [there[name] for name in TABLES if name in there and there[name].is_file()][:1]


def _beside(grouped: Grouped, files: Mapping[str, str], broken: dict[str, str], labels: str | None) -> Joined:
    """Captions and labels from the files beside each picture; in `broken` what is wrong with one."""
    joined = Joined({key: files[sample.image] for key, sample in grouped.samples.items()}, named=set(grouped.samples))
    for key, sample in grouped.samples.items():
        if sample.text is not None:
            try:
                captions = read_captions(sample.text, read_file(files[sample.text], MAX_TEXT), needed=labels is None)
            except ValueError as error:
                captions, broken[key] = [], _unreadable(files[sample.text], error)
            if captions or key in broken:
                joined.captions[key] = captions
    for key, name in grouped.texts.items():  # what stands beside no picture may be anything
        try:
            captions = read_captions(name, read_file(files[name], MAX_TEXT))
        except ValueError:
            continue
        if captions != [""]:
            joined.captions[key] = captions
    if labels is not None and labels != FOLDER:
        joined.labels = dict(_labels(grouped.samples, files, labels))
    values = joined.captions if labels is None else joined.labels
    joined.unused = joined.images.keys() - values.keys()
    return joined


def _labels(samples: Mapping[str, Files], files: Mapping[str, str], field: str) -> Iterable[tuple[str, str]]:
    for key, sample in samples.items():
        name = sample.number if field == "cls" and sample.number else sample.record
        if name is None:
            continue
        data = read_file(files[name], MAX_TEXT)
        try:
            label = data.decode().strip() if name == sample.number else record_label(data, field)
        except ValueError as error:
            raise ValueError(f"{clean(files[name])}: {error} as {field!r}") from None
        if label:
            yield key, label


def _unreadable(path: str, error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"{clean(path)} is no UTF-8 text: {error}"
    problem = str(error)
    return problem if clean(path) in problem else f"{clean(path)} cannot be read: {problem}"


def _top(place: str, folder: Path) -> str | None:
    """The top-level folder that a picture lies in."""
    if is_url(place) or not Path(place).is_relative_to(folder):
        return None
    parts = Path(place).relative_to(folder).parts
    return clean(parts[0]) if len(parts) > 1 else None

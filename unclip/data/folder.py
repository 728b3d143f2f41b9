"""A folder of captioned pictures: each with a .txt of its name, or all named in one table beside them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .files import is_url, read_url
from .pictures import MAX_BYTES, SUFFIXES
from .sample import FOLDER, caption_lines, record_label
from .source import clean, say_left_out
from .table import SUFFIXES as TABLE_SUFFIXES
from .table import read_table

TABLES = [f"{stem}{suffix}" for stem in ("captions", "metadata") for suffix in TABLE_SUFFIXES]


class Folder:
    """Pictures below `folder`.  A key is the path there without its suffix: `cats/one` for cats/one.jpg.

    Captions are the lines of cats/one.txt or, where there is a `table` (see `find_table`), of its rows.  A row's place may
    also be a URL or a path elsewhere; a key column there takes precedence over the place's name.  What lacks its other
    half is left out, with a warning.  A .txt that cannot be read breaks its sample alone.

    labels: "folder" (a picture's class is the top-level folder that it lies in) or the name of a column of the table or of a
    field of cats/one.json.  Pictures with a label need no caption; those without one are left out.
    """

    def __init__(self, folder: str | Path, table: Path | None = None, labels: str | None = None):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is no folder; expected one with pictures and .txt files or a captions.jsonl")
        self.name = self.folder.resolve().name
        pictures: dict[str, str] = {key: str(path) for key, path in _pictures(self.folder).items()}
        table = table or find_table(self.folder)
        self._broken: dict[str, str] = {}  # key -> what is wrong with its .txt
        if table:
            captions, named = _from_table(table, self.folder, pictures, labels)
        else:
            captions, named = _from_texts(self.folder, pictures, self._broken), {}
        if labels == FOLDER:
            named = {key: top for key, place in pictures.items() if (top := _top(place, self.folder))}
        elif labels is not None and not table:
            named = _from_records(self.folder, pictures, labels)
        whole = pictures.keys() & (captions if labels is None else named).keys()
        lacks = ("caption", captions) if labels is None else ("label", named)
        self.left_out = {
            f"pictures have no {lacks[0]}": [key for key in pictures if key not in lacks[1]],
            "captions have no picture": [key for key in captions if key not in pictures],
        }
        say_left_out(self.left_out)
        self.keys = sorted(whole)
        if not self.keys:
            expected = "NAME.png (or .jpg, .webp ...) beside NAME.txt, or a captions.jsonl"
            if labels is not None:
                expected = "a folder for each class" if labels == FOLDER else f"a table with the column {labels!r}, or NAME.json"
            has = f"{len(pictures)} pictures and {len(lacks[1])} {lacks[0]}s"
            raise ValueError(f"{folder} has {has}, none with the same key; expected {expected}")
        self.captioned = not captions.keys().isdisjoint(whole)
        blank = [""] if self.captioned else []
        self._places = [pictures[key] for key in self.keys]
        self._captions = [captions.get(key, blank) for key in self.keys]
        self.labels = None if labels is None else [named[key] for key in self.keys]

    def where(self, row: int) -> str:
        return clean(self._places[row])

    def picture(self, row: int) -> bytes:
        place = self._places[row]
        if is_url(place):
            return read_url(place)
        try:
            size = Path(place).stat().st_size
            if size > MAX_BYTES:
                raise ValueError(f"{self.where(row)} is too large: a picture of {size} bytes")
            return Path(place).read_bytes()
        except OSError as error:
            raise ValueError(f"{self.where(row)} cannot be read: {error.strerror or error}") from None

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


def find_table(folder: Path) -> Path | None:
    """The folder's captions.jsonl, .csv, .tsv or .parquet, else its metadata.jsonl (of Hugging Face) and so on."""
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def _pictures(folder: Path) -> dict[str, Path]:
    pictures: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            key = _key(path, folder)
            if key in pictures:
                raise ValueError(f"{pictures[key]} and {path} have the same key {key!r}: rename or remove one")
            pictures[key] = path
    return pictures


def _key(path: Path, folder: Path) -> str:
    return clean(path.relative_to(folder).with_suffix("").as_posix())


def _from_texts(folder: Path, pictures: dict[str, str], broken: dict[str, str]) -> dict[str, list[str]]:
    """Captions by key, and in `broken` what is wrong with a .txt; what stands beside no picture may be anything."""
    captions = {}
    for path in sorted(folder.rglob("*.txt")):
        if path.name.startswith("."):  # ._x.txt is what a Mac leaves beside x.txt on foreign disks
            continue
        key = _key(path, folder)
        try:
            lines = caption_lines(path.read_bytes())
        except (UnicodeDecodeError, OSError) as error:
            told = f"is no UTF-8 text: {error}" if isinstance(error, ValueError) else f"cannot be read: {error.strerror or error}"
            lines, broken[key] = [], f"{clean(str(path))} {told}"
        # An empty file is an empty caption where there is a picture, else no caption file at all.
        if lines or key in pictures:
            captions[key] = lines or [""]
    return captions


def _from_records(folder: Path, pictures: dict[str, str], field: str) -> dict[str, str]:
    """Labels by key, from the .json beside each picture."""
    labels = {}
    for key in pictures:
        path = folder / f"{key}.json"
        if path.is_file():
            try:
                label = record_label(path.read_bytes(), field)
            except ValueError as error:
                raise ValueError(f"{clean(str(path))}: {error} as {field!r}") from None
            if label is not None:
                labels[key] = label
    return labels


def _top(place: str, folder: Path) -> str | None:
    """The top-level folder that a picture lies in."""
    if is_url(place) or not Path(place).is_relative_to(folder):
        return None
    parts = Path(place).relative_to(folder).parts
    return clean(parts[0]) if len(parts) > 1 else None


def _from_table(
    table: Path, folder: Path, pictures: dict[str, str], field: str | None
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions and labels by key; pictures that the table names elsewhere, or under keys of its own, are added to `pictures`."""
    captions: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    seen: set[str] = set()
    for row in read_table(table, field):
        key = row.place if row.place in pictures or is_url(row.place) else _without_suffix(row.place)
        if row.key is not None:
            # The key names the sample, the other column says where its picture lies.
            found = pictures.get(key)
            if row.key != key and found is not None and pictures.setdefault(row.key, found) != found:
                raise ValueError(f"{table}, line {row.number}: {row.key!r} is the key of {pictures[row.key]} too")
            key = row.key
        if key not in pictures:
            if is_url(row.place):
                pictures[key] = row.place
            elif (folder / row.place).is_file() and Path(row.place).suffix.lower() in SUFFIXES:
                pictures[key] = str(folder / row.place)
        if key in seen and not row.repeats:
            raise ValueError(f"{table}, line {row.number}: the key {key!r} occurs twice; give several captions as one list")
        seen.add(key)
        if row.captions:
            captions.setdefault(key, []).extend(row.captions)
        if row.label is not None and labels.setdefault(key, row.label) != row.label:
            raise ValueError(f"{table}, line {row.number}: {key!r} is {row.label!r} here and {labels[key]!r} before")
    return captions, labels


def _without_suffix(place: str) -> str:
    path = Path(place)
    return path.with_suffix("").as_posix() if path.suffix.lower() in SUFFIXES else path.as_posix()

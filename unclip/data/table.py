"""Rows of captions.jsonl, CSV, TSV and Parquet tables, whatever their makers called the columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .sample import CAPTIONS, FOLDER, first, label_name

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
KEYS = ("key",)
PLACES = ("file_name", "filename", "file", "filepath", "path", "image_path", "image", "url", "image_url")


class Row(NamedTuple):
    number: int  # the line, from 1
    key: str | None  # None: the table has no such column, and the place is the key too
    place: str  # of the picture: a path or URL, or the key where the table has only that
    captions: list[str]  # none only where labels are asked for
    label: str | None
    repeats: bool  # whether the same picture may come again with another caption


def read_table(path: Path, labels: str | None = None) -> Iterator[Row]:
    """Rows with a column named as in KEYS or PLACES and one as in CAPTIONS, upper or lower case; others are ignored.

    A caption may be a list of texts in jsonl and Parquet; in CSV and Parquet a picture may also come in several rows.
    Rows without any caption (null) are passed over, but where `labels` are read: the column that names classes, or "folder".
    ValueError names the line.
    """
    try:
        yield from _rows(path, labels)
    except UnicodeDecodeError:
        raise _not_utf8(path) from None


def _rows(path: Path, labels: str | None) -> Iterator[Row]:
    repeats = path.suffix.lower() != ".jsonl"
    column = None if labels is None or labels == FOLDER else labels.lower()
    wanted = {*KEYS, *PLACES, *CAPTIONS, *([column] if column else [])}
    columns = _Columns(path, {*KEYS, *PLACES}, set() if labels else {*CAPTIONS}, column)
    read = {".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}[path.suffix.lower()]
    for number, row in read(path, columns, wanted):
        lower = {str(name).lower(): value for name, value in row.items()}
        key, place, caption = (first(lower, names) for names in (KEYS, PLACES, CAPTIONS))
        texts: list[Any] = caption if isinstance(caption, list) else [caption]
        if caption is None and (labels or (repeats and any(name in lower for name in CAPTIONS))):
            texts = []
            if not labels:
                continue
        named = [name for name in (key, place) if name is not None]
        if not named or not all(isinstance(name, str) and name for name in named):
            named = []
        if not named or not (texts or labels) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f'{path}, line {number}: expected {{"key": ..., "caption": text or list of texts}} (or one of'
                f" {', '.join(PLACES)} for key, text for caption), got {_short(row)}"
            )
        try:
            label = label_name(lower.get(column)) if column else None
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error} as {labels}") from None
        yield Row(number, key if place is not None else None, place if place is not None else key, texts, label, repeats)


def _jsonl(path: Path, columns: _Columns, wanted: set[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected an object with key and caption, got {line.strip()[:80]}")
            yield number, row


def _csv(path: Path, columns: _Columns, wanted: set[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        last = 0
        try:
            columns.check(reader.fieldnames or [])
            for row in reader:
                last = reader.line_num
                if None in row:
                    raise ValueError(f"{path}, line {last}: more fields than columns; put captions with commas in quotes")
                yield last, row
        except csv.Error as error:  # found at the end of what a quote left open takes for one field
            raise ValueError(f"{path}, line {last + 1}: {error}; is a quote left open there?") from None


def _parquet(path: Path, columns: _Columns, wanted: set[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"{path} needs pyarrow to be read: pip install 'unclip[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns.check(names)
            asked = [name for name in names if name.lower() in wanted]
            rows = (row for batch in file.iter_batches(columns=asked) for row in batch.to_pylist())
            yield from enumerate(rows, 1)
    except ArrowException as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from None


def _not_utf8(path: Path) -> ValueError:
    """Which line it is, looked for again: a file is decoded in blocks, some lines ahead."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return ValueError(f"{path}, line {number} is no UTF-8 text: {error}")
    return ValueError(f"{path} is no UTF-8 text")


class _Columns(NamedTuple):
    """What a table must have."""

    path: Path
    places: set[str]
    captions: set[str]  # one of them; empty where labels will do
    label: str | None

    def check(self, columns: Sequence[str]) -> None:
        lower = {name.lower() for name in columns}
        has = f"{self.path} has the columns {', '.join(columns) or '(none)'}"
        if self.label is not None and self.label not in lower:
            raise ValueError(f"{has}; none of them is {self.label!r}, which was asked for as label")
        if not lower & self.places or (self.captions and not lower & self.captions):
            raise ValueError(
                f"{has}; expected one of {', '.join((*KEYS, *PLACES))} for the picture and one of {', '.join(CAPTIONS)}"
                " for its caption"
            )


def _short(row: dict[str, Any]) -> str:
    text = str(row)
    return text if len(text) < 200 else text[:200] + "…"

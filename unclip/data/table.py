"""Rows of captions.jsonl, CSV, TSV and Parquet tables, whatever their makers called the columns."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from unclip.files import refuse_pointer, regular_file, visible

from .sample import CAPTIONS as FIELDS
from .sample import FOLDER, as_text, first, label_name, record_captions

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
KEYS = ("key",)
PLACES = ("file_name", "filename", "file", "filepath", "path", "image_path", "image", "url", "image_url")
CAPTIONS = (*FIELDS, "title")  # open_clip's name for it; in the .json of a picture that may be the name of its file
SEPARATORS = (",", "\t", ";", "|")
MAX_FIELD = 2**24  # characters
END = "\x1e end of the table"  # read after the last line, as a row of its own where no quote is left open


class TableRow(NamedTuple):
    number: int  # the line, from 1
    key: str | None  # None: the table has no such column, and the place is the key too
    place: str  # of the picture: a path or URL, or the key where the table has only that
    captions: list[str]  # none where the cell is null
    label: str | None
    repeats: bool  # whether the same picture may come again with another caption


class Wanted(NamedTuple):
    """The columns that are read."""

    captions: bool  # whether there must be one; where labels are read there need not
    label: str | None

    def names(self) -> set[str]:
        return {*KEYS, *PLACES, *CAPTIONS, *([self.label] if self.label else [])}

    def problem(self, columns: Iterable[str]) -> str | None:
        """What is wrong with a table of these columns."""
        lower = {name.strip().lower() for name in columns}
        if self.label is not None and self.label not in lower:
            return f"none of them is {self.label!r}, which was asked for as label"
        if lower.isdisjoint({*KEYS, *PLACES}) or (self.captions and lower.isdisjoint(CAPTIONS)):
            return (
                f"expected one of {', '.join((*KEYS, *PLACES))} for the picture and one of {', '.join(CAPTIONS)} for its caption"
            )
        return None

    def check(self, path: Path, columns: Sequence[str]) -> None:
        if problem := self.problem(columns):
            raise ValueError(f"{path} has the columns {visible(', '.join(columns)) or '(none)'}; {problem}")


def read_table(path: Path, labels: str | None = None) -> Iterator[TableRow]:
    """Rows with a column named as in KEYS or PLACES and one as in CAPTIONS, upper or lower case; others are ignored.

    A caption may be a list of texts in jsonl and Parquet; in CSV and Parquet a picture may also come in several rows.  Columns
    of a CSV are parted by whichever of SEPARATORS gives it those columns.  labels: the column that names classes, or "folder".
    ValueError names the line.
    """
    regular_file(path)
    with path.open("rb") as file:
        start = file.read(200)
    refuse_pointer(path, start)
    encoding = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        yield from _rows(path, labels, encoding)
    except UnicodeError:
        raise _undecodable(path, encoding) from None


def _rows(path: Path, labels: str | None, encoding: str) -> Iterator[TableRow]:
    suffix = path.suffix.lower()
    column = None if labels is None or labels == FOLDER else labels.lower()
    wanted = Wanted(labels is None, column)
    if suffix == ".parquet":
        rows = _parquet(path, wanted)
    else:
        rows = _jsonl(path, encoding) if suffix == ".jsonl" else _csv(path, wanted, encoding)
    empty: tuple[int, object] | None = None  # the first row without a caption, while there is none with one
    seen = False
    for number, row in rows:
        lower = {str(name).strip().lower(): value for name, value in row.items()}
        try:
            key, place = (as_text(first(lower, names)) for names in (KEYS, PLACES))
            captions = record_captions(lower, CAPTIONS)
        except ValueError:
            key, place, captions = None, None, []
        if not (key or place):
            raise _unexpected(path, number, row)
        if not captions and not seen:
            empty = empty or (number, row)
        seen = seen or bool(captions)
        try:
            label = label_name(lower.get(column)) if column else None
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error} as {labels}") from None
        yield TableRow(number, key if place else None, place or key or "", captions, label, suffix != ".jsonl")
    if empty and not seen and labels is None:
        raise _unexpected(path, *empty)


def _unexpected(path: Path, number: int, row: object) -> ValueError:
    return ValueError(
        f'{path}, line {number}: expected {{"key": ..., "caption": text or list of texts}} (or one of'
        f" {', '.join(PLACES)} for key, text for caption), got {visible(row)}"
    )


def _jsonl(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding=encoding, newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
            if not isinstance(row, dict):
                got = visible(line.strip(), 80)
                raise ValueError(f"{path}, line {number}: expected an object with key and caption, got {got}")
            yield number, row


def _csv(path: Path, wanted: Wanted, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))
    with path.open(encoding=encoding, newline="") as file:
        header = file.readline()
        separators = sorted(SEPARATORS, key=lambda separator: (separator != "\t") if path.suffix.lower() == ".tsv" else 0)
        fits = (one for one in separators if not wanted.problem(next(csv.reader([header], delimiter=one), [])))
        separator = next(fits, separators[0])
        columns = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
        wanted.check(path, columns)
        last = 1
        reader = csv.reader(_ended(file), delimiter=separator)
        try:
            for row in reader:
                if row == [END]:
                    return
                if row and row[-1].endswith(END):
                    raise csv.Error("the table ends inside quotes")
                if len(row) > len(columns):
                    remedy = f"put captions with {'tabs' if separator == chr(9) else repr(separator)} in quotes"
                    raise ValueError(f"{path}, line {reader.line_num + 1}: more fields than columns; {remedy}")
                last = reader.line_num + 1
                if row:
                    yield last, dict(zip_longest(columns, row))
        except csv.Error as error:  # found at the end of what a quote left open takes for one field
            raise ValueError(f"{path}, line {last + 1}: {error}; is a quote left open there?") from None


def _ended(lines: Iterable[str]) -> Iterator[str]:
    """The lines and, on one of its own, END."""
    for line in lines:
        yield line if line.endswith(("\n", "\r")) else f"{line}\n"
    yield END


def _parquet(path: Path, wanted: Wanted) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"{path} needs pyarrow to be read: pip install 'unclip[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            wanted.check(path, columns)
            chosen = [name for name in columns if name.strip().lower() in wanted.names()]
            rows = (row for batch in file.iter_batches(columns=chosen) for row in batch.to_pylist())
            yield from enumerate(rows, 1)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {visible(error)}") from None


def _undecodable(path: Path, encoding: str) -> ValueError:
    """Which line it is, looked for again: a file is decoded in blocks, some lines ahead."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                if encoding == "utf-8-sig":
                    return ValueError(f"{path}, line {number} is no UTF-8 text: {error}")
    return ValueError(f"{path} is no text in {encoding}")

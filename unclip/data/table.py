"""Rows of captions.jsonl, CSV, TSV and Parquet tables, whatever their makers called the columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
KEYS = ("key",)
PLACES = ("file_name", "filename", "file", "filepath", "path", "image_path", "image", "url", "image_url")
CAPTIONS = ("caption", "captions", "text", "texts")


class Row(NamedTuple):
    number: int  # the line, from 1
    key: str | None  # None: the table has no such column, and the place is the key too
    place: str  # of the picture: a path or URL, or the key where the table has only that
    captions: list[str]
    repeats: bool  # whether the same picture may come again with another caption


def read_table(path: Path) -> Iterator[Row]:
    """Rows with a column named as in KEYS or PLACES and one as in CAPTIONS, upper or lower case; others are ignored.

    A caption may be a list of texts in jsonl and Parquet; in CSV and Parquet a picture may also come in several rows.
    Rows without any caption (null) are passed over.  ValueError names the line.
    """
    try:
        yield from _rows(path)
    except UnicodeDecodeError:
        raise _not_utf8(path) from None


def _rows(path: Path) -> Iterator[Row]:
    repeats = path.suffix.lower() != ".jsonl"
    rows = {".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}[path.suffix.lower()](path)
    for number, row in rows:
        lower = {str(name).lower(): value for name, value in row.items()}
        key, place, caption = (_first(lower, names) for names in (KEYS, PLACES, CAPTIONS))
        texts: list[Any] = caption if isinstance(caption, list) else [caption]
        if repeats and caption is None and any(name in lower for name in CAPTIONS):
            continue
        named = [name for name in (key, place) if name is not None]
        if not named or not all(isinstance(name, str) and name for name in named):
            named = []
        if not named or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f'{path}, line {number}: expected {{"key": ..., "caption": text or list of texts}} (or one of'
                f" {', '.join(PLACES)} for key, text for caption), got {_short(row)}"
            )
        yield Row(number, key if place is not None else None, place if place is not None else key, texts, repeats)


def _first(row: dict[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        last = 0
        try:
            _check_columns(path, reader.fieldnames or [])
            for row in reader:
                last = reader.line_num
                if None in row:
                    raise ValueError(f"{path}, line {last}: more fields than columns; put captions with commas in quotes")
                yield last, row
        except csv.Error as error:  # found at the end of what a quote left open takes for one field
            raise ValueError(f"{path}, line {last + 1}: {error}; is a quote left open there?") from None


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"{path} needs pyarrow to be read: pip install 'unclip[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            _check_columns(path, columns)
            wanted = [name for name in columns if name.lower() in {*KEYS, *PLACES, *CAPTIONS}]
            rows = (row for batch in file.iter_batches(columns=wanted) for row in batch.to_pylist())
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


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    lower = {name.lower() for name in columns}
    if not lower & {*KEYS, *PLACES} or not lower & {*CAPTIONS}:
        raise ValueError(
            f"{path} has the columns {', '.join(columns) or '(none)'}; expected one of {', '.join((*KEYS, *PLACES))}"
            f" for the picture and one of {', '.join(CAPTIONS)} for its caption"
        )


def _short(row: dict[str, Any]) -> str:
    text = str(row)
    return text if len(text) < 200 else text[:200] + "…"

"""What the files and fields of one sample say, captions and labels: read here alone for folders, tables and tars."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unclip.files import POINTER, visible

from .naming import split_suffix
from .source import listed

CAPTIONS = ("caption", "captions", "text", "texts")  # fields of a .json or a table, in this order
FOLDER = "folder"  # as a place of labels: the class is the name of the top-level folder
MAX_TEXT = 2**24  # bytes of a file with captions
EXPECTED = 'expected {"caption": text or list of texts}'


def read_captions(name: str, data: bytes, needed: bool = True) -> list[str]:
    """The captions in a .txt, .caption or .json; none where a .json has null, or an empty list, for them.

    A text file has one a line; where it is empty, so is the caption.  needed False: a .json may lack the field.
    """
    if split_suffix(name)[1] != "json":
        return caption_lines(data) or [""]
    record = read_record(data)
    if needed and not any(field in record for field in CAPTIONS):
        raise ValueError(EXPECTED)
    return record_captions(record)


def caption_lines(data: bytes) -> list[str]:
    """The captions in a text file: what stands between line feeds (with or without a carriage return), without blank ones.

    ValueError: it is no UTF-8, nor UTF-16 that says so.
    """
    return [line.strip() for line in decode(data).split("\n") if line.strip()]


def decode(data: bytes) -> str:
    """Text without its byte order mark."""
    if data.startswith(POINTER):
        raise ValueError("it is a git-lfs pointer, not the file itself: fetch that with `git lfs pull`")
    return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")


def read_record(data: bytes) -> dict[str, Any]:
    """The object in a .json, its names in lower case.  ValueError: it is none."""
    try:
        record = json.loads(decode(data))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"{EXPECTED}, got a {type(record).__name__}")
    return {name.lower(): value for name, value in record.items()}


def first(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of the fields `names` that is there and not null."""
    return next((record[name] for name in names if record.get(name) is not None), None)


def record_captions(record: Mapping[str, Any], names: Sequence[str] = CAPTIONS) -> list[str]:
    """The texts in the first of the fields `names`; none where it is null, or a list of nulls.  ValueError: it holds no texts."""
    field = first(record, names)
    texts = [as_text(value) for value in (field if isinstance(field, list) else [field])]
    return [text for text in texts if text is not None]


def as_text(value: Any) -> str | None:
    """A text, or a number as one: 42 is "42"; None for null and NaN, which tables have for it.  ValueError: anything else."""
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # what whole numbers with gaps between them become in a table
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"{EXPECTED}, got a {type(value).__name__}")
    return str(value)


def record_label(data: bytes, field: str) -> str | None:
    """The class in `field` of a .json; None where there is none, or no JSON.  ValueError: the field names no class."""
    try:
        record = read_record(data)
    except ValueError:
        return None
    return label_name(record.get(field.lower()))


def label_name(value: Any) -> str | None:
    """The class that a value names: a text or a whole number; None where there is none.  ValueError: anything else."""
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (str, int)):
        raise ValueError(f"expected the name of a class or a whole number, got {value!r}")
    return str(value).strip() or None


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The different names, sorted: as numbers where all are whole numbers."""
    names = set(labels)
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if numbers else (0, name)))


def class_numbers(labels: Sequence[str], classes: Sequence[str], keys: Sequence[str], name: str) -> np.ndarray:
    """The place of each label in `classes`, int64.  ValueError: it has none."""
    number = {one: i for i, one in enumerate(classes)}
    if len(number) != len(classes):
        raise ValueError(f"the names of {len(classes)} classes are not all different: {listed(classes, 20)}")
    if (row := next((row for row, label in enumerate(labels) if label not in number), None)) is not None:
        unknown = f"{visible(keys[row])} of {name} is of the class {labels[row]!r}"
        raise ValueError(f"{unknown}, which is not among the {len(classes)} known: {listed(classes, 20)}")
    return np.fromiter((number[label] for label in labels), np.int64, len(labels))

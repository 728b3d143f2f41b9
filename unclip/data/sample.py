"""What the files and fields of one sample say: captions and labels, read here alone for folders, tables and tars."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

CAPTIONS = ("caption", "captions", "text", "texts")  # fields of a table or of a .json, in this order
FOLDER = "folder"  # the way to say that the class is the name of the top-level folder


def caption_lines(data: bytes) -> list[str]:
    """The captions in a .txt: its lines, without blank ones.  ValueError: it is no UTF-8."""
    return [line.strip() for line in data.decode("utf-8-sig").splitlines() if line.strip()]


def read_record(data: bytes) -> dict[str, Any]:
    """The object in a .json, its names in lower case.  ValueError: it is none."""
    try:
        record = json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("its lists are nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected an object with a caption, got a {type(record).__name__}")
    return {name.lower(): value for name, value in record.items()}


def first(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of the fields `names` that is there and not null."""
    return next((record[name] for name in names if record.get(name) is not None), None)


def record_captions(record: Mapping[str, Any]) -> list[str]:
    """Empty where there is no such field, or null in it.  ValueError: it holds no texts."""
    found = first(record, CAPTIONS)
    if found is None:
        return []
    captions = found if isinstance(found, list) else [found]
    if not captions or not all(isinstance(caption, str) for caption in captions):
        raise ValueError('expected {"caption": text or list of texts}')
    return captions


def record_label(data: bytes, field: str) -> str | None:
    """The class in `field` of a .json; None where there is none, or no JSON.  ValueError: the field names no class."""
    try:
        record = read_record(data)
    except ValueError:
        return None
    return label_name(record.get(field.lower()))


def label_name(value: Any) -> str | None:
    """The class that a value names: a text or a whole number; None where there is none.  ValueError: anything else."""
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # what a column of whole numbers with gaps becomes elsewhere
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
        raise ValueError(f"the names of {len(classes)} classes are not all different: {', '.join(classes[:20])}")
    if (row := next((row for row, label in enumerate(labels) if label not in number), None)) is not None:
        known = ", ".join(classes[:20]) + (", …" if len(classes) > 20 else "")
        raise ValueError(
            f"{keys[row]} of {name} is of the class {labels[row]!r}, which is not among the {len(classes)} known: {known}"
        )
    return np.fromiter((number[label] for label in labels), np.int64, len(labels))

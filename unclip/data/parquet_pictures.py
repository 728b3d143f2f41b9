"""Parquet tables that hold the pictures themselves, as Hugging Face's `datasets` writes them: made a tar, for any order."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from unclip.files import regular_file

from .naming import PICTURES, member_name, split_suffix
from .sample import as_text, first, record_captions
from .table import CAPTIONS, KEYS

MAGIC = b"PAR1"
COLUMNS = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
STARTS = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}


def holds_pictures(table: Path) -> bool:
    """Whether a table is a Parquet file with pictures inside.  What is wrong with one is told when it is read as a table."""
    if table.suffix.lower() != ".parquet":
        return False
    try:
        return picture_column(regular_file(table)) is not None
    except (ImportError, OSError, ValueError, NotImplementedError):  # pyarrow's errors are of these
        return False


def picture_column(source: Any) -> str | None:
    """The column with pictures of a table (a path, an open file): structures with `bytes`, or bytes called as in COLUMNS."""
    from pyarrow import parquet, types

    with parquet.ParquetFile(source) as file:
        found = {}
        for field in file.schema_arrow:
            structure = types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
            if structure or (_is_bytes(field.type) and field.name.lower() in COLUMNS):
                found[field.name.lower()] = field.name
        return first(found, (*COLUMNS, *found))


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def copy_pictures(source: Any, target: Any) -> str | None:
    """Write the pictures of an open Parquet file as a tar, each with a .json of its captions and its row's other fields.

    A picture is called as its key column or its path says, or by the number of its row.  A number of a class that has a name
    in the table's metadata becomes that name.  ValueError: it cannot be read, or holds no pictures.
    """
    from pyarrow import ArrowException, parquet

    try:
        column = picture_column(source)
        if column is None:
            raise ValueError("it holds no pictures; tables that only name them are read from here, beside their pictures")
        source.seek(0)
        with (
            parquet.ParquetFile(source, pre_buffer=False) as file,
            tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            classes = _class_names(file.schema_arrow.metadata)
            names = _names(file, column)
            for number, (name, row) in enumerate(zip(names, _rows(file)), 1):
                data, path = _picture(row.pop(column))
                fields = {key: _field(value, classes.get(key)) for key, value in row.items()}
                record = {key: value for key, value in fields.items() if value is not None}
                _add(tar, f"{name}.json", json.dumps({**record, "caption": _captions(row, number)}, ensure_ascii=False).encode())
                if data:
                    _add(tar, f"{name}.{_suffix(data, path)}", data)
    except ArrowException as error:
        raise ValueError(f"it is no whole Parquet: {error}") from None
    return None


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _captions(row: dict[str, Any], number: int) -> list[str]:
    try:
        return record_captions({key.lower(): value for key, value in row.items()}, CAPTIONS)
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from None


def _rows(file: Any) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(batch_size=64):
        yield from batch.to_pylist()


def _names(file: Any, column: str) -> Sequence[str]:
    """Of all members, without suffix."""
    count = file.metadata.num_rows
    numbers = [f"{row:0{len(str(count - 1))}d}" for row in range(count)]
    keys = [name for name in file.schema_arrow.names if name.lower() in KEYS]
    paths = f"{column}.path"
    if keys:
        given = [as_text(row[keys[0]]) for batch in file.iter_batches(columns=keys[:1]) for row in batch.to_pylist()]
    elif paths in {field.path for field in (file.schema.column(i) for i in range(len(file.schema.names)))}:
        rows = (row[column] for batch in file.iter_batches(columns=[paths]) for row in batch.to_pylist())
        given = [split_suffix(str(PurePosixPath(row["path"])))[0] if row and row.get("path") else None for row in rows]
    else:
        return numbers
    whole = all(given) and len(set(given)) == count
    return [member_name(name.lstrip("/")) for name in given if name] if whole else numbers


def _picture(value: Any) -> tuple[bytes | None, str]:
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path") or ""
    return value, ""


def _suffix(data: bytes, path: str) -> str:
    told = next((suffix for start, suffix in STARTS.items() if data.startswith(start)), split_suffix(path)[1])
    return told if told in PICTURES else "png"


def _field(value: Any, names: Sequence[str] | None) -> str | int | float | None:
    if names and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return value if isinstance(value, (str, int, float)) else None


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, Sequence[str]]:
    """The names of classes by column, from what `datasets` notes about its features."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}

"""Parquet tables that hold the pictures themselves, as Hugging Face's `datasets` writes them: made a tar, for any order."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from unclip.files import regular_file

from .naming import IMAGES, member_name, split_suffix
from .sample import as_text, first, record_captions
from .table import CAPTIONS, KEYS

MAGIC = b"PAR1"
COLUMNS = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
STARTS = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}


def holds_images(table: Path) -> bool:
    """Whether a table is a Parquet file with pictures inside.  What is wrong with one is told when it is read as a table."""
    if table.suffix.lower() != ".parquet":
        return False
    try:
        return image_column(regular_file(table)) is not None
    except (ImportError, OSError, ValueError, NotImplementedError):  # pyarrow's errors are of these
        return False


def image_column(source: Any) -> str | None:
    """The column with pictures of a table (a path, an open file): structures with `bytes`, or bytes called as in COLUMNS."""
    from pyarrow import parquet, types

    with parquet.ParquetFile(source) as file:
        candidates = {}
        for field in file.schema_arrow:
            structure = types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
            if structure or (_is_bytes(field.type) and field.name.lower() in COLUMNS):
                candidates[field.name.lower()] = field.name
        return first(candidates, (*COLUMNS, *candidates))


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def copy_images(source: Any, target: Any) -> str | None:
    """Write the pictures of an open Parquet file as a tar, each with a .json of its captions and its row's other fields.

    A picture is called as its key column or its path says, or by the number of its row.  A number of a class that has a name
    in the table's metadata becomes that name.  ValueError: it cannot be read, or holds no pictures.
    """
    from pyarrow import parquet

    with _arrow_errors():
        column = image_column(source)
        if column is None:
            raise ValueError("it holds no pictures; tables that only name them are read from here, beside their pictures")
        source.seek(0)
        file = parquet.ParquetFile(source, pre_buffer=False)
        classes, names = _class_names(file.schema_arrow.metadata), _names(file, column)
    with file, tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, (name, row) in enumerate(zip(names, _rows(file)), 1):
            data, path = _image(row.pop(column))
            fields = {key: _field(value, classes.get(key)) for key, value in row.items()}
            record = {key: value for key, value in fields.items() if value is not None}
            _add(tar, f"{name}.json", json.dumps({**record, "caption": _captions(row, number)}, ensure_ascii=False).encode())
            if data:
                _add(tar, f"{name}.{_suffix(data, path)}", data)
    return None


@contextmanager
def _arrow_errors() -> Iterator[None]:
    """What pyarrow says of a broken file as a ValueError."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        raise ValueError(f"it is no whole Parquet: {error}") from None


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _captions(row: dict[str, Any], number: int) -> list[str]:
    try:
        return record_captions({key.lower(): value for key, value in row.items()}, CAPTIONS)
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from None


def _rows(file: Any, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    with _arrow_errors():
        for batch in file.iter_batches(batch_size=64, columns=columns):
            yield from batch.to_pylist()


def _names(file: Any, column: str) -> Iterable[str]:
    """Of all members, without suffix."""
    width = len(str(max(file.metadata.num_rows - 1, 0)))
    keys = [name for name in file.schema_arrow.names if name.lower() in KEYS][:1]
    candidates: list[str | None] = []
    if keys:
        candidates = [as_text(row[keys[0]]) for row in _rows(file, keys)]
    elif f"{column}.path" in {file.schema.column(i).path for i in range(len(file.schema.names))}:
        paths = (row[column] and row[column].get("path") for row in _rows(file, [f"{column}.path"]))
        candidates = [path and split_suffix(str(PurePosixPath(path)))[0] for path in paths]
    names = [name for name in candidates if name]
    if names and len(set(names)) == len(candidates):
        return [member_name(name.lstrip("/")) for name in names]
    return (f"{number:0{width}d}" for number in count())


def _image(value: Any) -> tuple[bytes | None, str]:
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path") or ""
    return value, ""


def _suffix(data: bytes, path: str) -> str:
    kind = next((suffix for start, suffix in STARTS.items() if data.startswith(start)), split_suffix(path)[1])
    return kind if kind in IMAGES else "png"


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

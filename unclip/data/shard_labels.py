"""The classes of a shard's pictures, read once from its members."""

from __future__ import annotations

from typing import Any, Literal

from unclip.config import Config

from .sample import FOLDER, label_name, read_record, record_captions, record_label
from .shard_index import ShardIndex


class Labels(Config, frozen=True, kw_only=True):
    """The name of each entry's class, null where it has none; `size` and `tag` are those of the shard when it was read."""

    format: Literal["unclip.shard.labels.1"] = "unclip.shard.labels.1"
    size: int
    tag: str
    names: tuple[str | None, ...]
    captioned: bool  # whether any picture has a caption


def read_labels(file: Any, index: ShardIndex, field: str) -> Labels:
    """Of each entry the top-level folder, `field` of its .json or, for "cls", what stands in its .cls.  ValueError names it.

    Members are read in the order of their bytes, which over a network is one stream.
    """
    names: list[str | None] = [None] * len(index.entries)
    captioned = any(entry.text_suffix and not entry.text_suffix.lower().endswith("json") for entry in index.entries)
    for i in sorted(range(len(names)), key=lambda i: index.entries[i].offset):
        entry = index.entries[i]
        record = b""
        if entry.record_size and (field != FOLDER or not captioned):
            record = _read(file, entry.record_offset, entry.record_size)
            captioned = captioned or _has_captions(record)
        try:
            if field == FOLDER:
                names[i] = entry.key.partition("/")[0] if "/" in entry.key else None
            elif field == "cls" and entry.class_size:
                names[i] = label_name(_read(file, entry.class_offset, entry.class_size).decode().strip())
            else:
                names[i] = record_label(record, field)
        except ValueError as error:
            raise ValueError(f"{entry.key}: {error} as {field!r}") from None
    return Labels(size=index.size, tag=index.tag, names=tuple(names), captioned=captioned)


def _read(file: Any, offset: int, size: int) -> bytes:
    file.seek(offset)
    data: bytes = file.read(size)
    if len(data) != size:
        raise ValueError(f"the shard ends before byte {offset + size}")
    return data


def _has_captions(record: bytes) -> bool:
    try:
        return bool(record_captions(read_record(record)))
    except ValueError:
        return False

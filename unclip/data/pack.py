"""A source written anew as tar shards in the webdataset convention, which read back equal."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from unclip.clip.preprocess import fit_square
from unclip.files import write_folder
from unclip.images import png

from .images import decode_image
from .naming import member_name
from .sample import caption_lines
from .source import Source

SHARDS = (r"00000\.tar", r"\d{5,}\.tar")
SUFFIX = {".jpeg": ".jpg", ".tiff": ".tif"}


class Packed(NamedTuple):
    shards: list[Path]
    samples: int
    broken: dict[str, str]  # key -> why it is left out


def pack(
    source: Source,
    folder: str | Path,
    *,
    samples_per_shard: int | None = 10_000,
    bytes_per_shard: int | None = None,
    size: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Packed:
    """Write `folder`/00000.tar and so on, in the order of keys, each as large as both limits allow.

    Pictures keep their very bytes or, with `size`, become square PNGs of that side (which lose nothing more).  Captions are a
    .txt with one a line; those with line breaks or blanks around them a .json; a label is the field "label" of that .json.
    Broken pictures are left out, each told in a warning.  Equal sources give equal bytes.  overwrite: replace a
    folder that holds such shards and nothing else.  ValueError: any other that is not empty; the disk is full (nothing is left
    then).
    """
    limits = {"samples per shard": samples_per_shard, "bytes per shard": bytes_per_shard, "size": size}
    for what, limit in limits.items():
        if limit is not None and limit < 1:
            raise ValueError(f"{what} is {limit}; it must be at least 1")
    broken: dict[str, str] = {}
    names: list[str] = []

    def write(aside: Path) -> None:
        with ExitStack() as stack:
            tar, many, much = None, 0, 0
            for members in _samples(source, size, broken, progress):
                weight = sum(len(data) for _, data in members)
                full = samples_per_shard is not None and many >= samples_per_shard
                full |= bytes_per_shard is not None and much + weight > bytes_per_shard and many > 0
                if tar is None or full:
                    stack.close()
                    names.append(f"{len(names):05d}.tar")
                    tar = stack.enter_context(tarfile.open(aside / names[-1], "w", format=tarfile.PAX_FORMAT))
                    many, much = 0, 0
                for name, data in members:
                    info = tarfile.TarInfo(name)  # its time and owner are 0, so that bytes depend on the data alone
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                many, much = many + 1, much + weight
        if not names:
            raise ValueError(f"none of the {len(source.keys)} pictures in {source.name} can be read")

    write_folder(folder, write, overwrite, SHARDS)
    return Packed([Path(folder) / name for name in names], len(source.keys) - len(broken), broken)


def _samples(
    source: Source, size: int | None, broken: dict[str, str], progress: Callable[[int, int], object]
) -> Iterator[list[tuple[str, bytes]]]:
    """The members of each sample that can be read."""
    for row, key in enumerate(source.keys):
        try:
            data, suffix = source.image_bytes(row), Path(source.where(row).partition("?")[0]).suffix.lower()
            image = decode_image(data, source.where(row))
            captions = source.captions(row)
        except ValueError as error:
            broken[key] = str(error)
            warnings.warn(f"{error}; it is left out", stacklevel=1)
        else:
            if size is not None:
                data, suffix = png(fit_square(image[None], size)[0], {}), ".png"
            label = None if source.labels is None else source.labels[row]
            yield [(member_name(key) + (SUFFIX.get(suffix, suffix) or ".png"), data), _words(key, captions, label)]
        progress(row + 1, len(source.keys))


def _words(key: str, captions: list[str], label: str | None) -> tuple[str, bytes]:
    """The member that says them."""
    text = "".join(f"{caption}\n" for caption in captions).encode()
    if label is None and (caption_lines(text) == captions or captions == [""]):
        return f"{member_name(key)}.txt", text
    record = {"key": key} | ({"caption": captions} if captions else {}) | ({"label": label} if label is not None else {})
    return f"{member_name(key)}.json", json.dumps(record, ensure_ascii=False).encode()

"""One reader over every kind of training data: folders, tables, tar shards, embeddings, and mixtures of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from unclip.checks import path_of
from unclip.config import Config
from unclip.files import regular_file

from .embedding_shards import INDEX, EmbeddingShards
from .embeddings import Embeddings
from .files import expand, is_url
from .folder import TABLES, Folder, find_table
from .mix import Mix
from .naming import is_litter
from .parquet_images import holds_images
from .reader import Broken, Embedded, Reader, Store
from .sample import FOLDER, class_names
from .shards import Shards
from .source import Source
from .spec import DataSpec
from .table import SUFFIXES as TABLE_SUFFIXES
from .walk import Listing, list_folder

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")


class SourceConfig(Config, frozen=True, kw_only=True):
    """One source among several: `path` as `open_data` takes it, its embeddings, and its part in the mixture."""

    path: str
    embeddings: str | None = None
    weight: float | None = None  # share of the draws; all sources have one, or none has
    name: str | None = None  # stands in front of its keys where another source has the same; None = the path's last part

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ValueError(f"the weight of {self.path} is {self.weight}; it must be a positive number")


class DataConfig(DataSpec, frozen=True, kw_only=True):
    """What a training reads: `DataConfig(source="pictures", size=64).open()`."""

    source: str | tuple[SourceConfig, ...]
    size: int | None = None  # pixels; None = embeddings and captions alone
    embeddings: str | None = None  # of a single source
    broken: Broken = "skip"
    labels: str | None = None  # "folder" for a folder per class, or the column, field or member that names the class
    classes: tuple[str, ...] | None = None  # names by number; None = those that there are, sorted

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is {self.size}; it must be at least 1, or null for no pictures")
        if self.embeddings is not None and not isinstance(self.source, str):
            raise ValueError("of several sources each names its own embeddings: give them beside the paths")
        if self.classes is not None and self.labels is None:
            raise ValueError('classes were given, but not where labels stand: "labels": "folder", or the name of a column')

    def open(self, classes: Sequence[str] | None = None) -> Reader | Embedded | Mix:
        """classes: those of the training's data, for what is held out from it; data without labels make nothing of them."""
        known = (classes or self.classes) if self.labels is not None else None
        return open_data(
            self.source, self.size, embeddings=self.embeddings, broken=self.broken, labels=self.labels, classes=known
        )

    @property
    def embedded(self) -> bool:
        if not isinstance(self.source, str):
            return all(one.embeddings is not None for one in self.source)
        return self.embeddings is not None or (path_of(self.source) / INDEX).is_file() or self.source.endswith(".safetensors")

    def placed(self, place: Callable[[str], str]) -> DataConfig:
        def at(name: str | None) -> str | None:
            local = name is not None and not is_url(name) and not name.startswith("pipe:")
            return place(name.removeprefix("file://")) if name is not None and local else name

        if isinstance(self.source, str):
            return self.replace(source=at(self.source), embeddings=at(self.embeddings))
        sources = [one.replace(path=at(one.path), embeddings=at(one.embeddings)) for one in self.source]
        return self.replace(source=tuple(sources))


def open_data(
    source: str | Path | SourceConfig | Sequence[str | Path | SourceConfig],
    size: int | None,
    *,
    embeddings: str | Path | Store | None = None,
    broken: Broken = "skip",
    labels: str | None = None,
    classes: Sequence[str] | None = None,
) -> Reader | Embedded | Mix:
    """Training data (the protocol `Data`) of one source, or of a list of them.

    A source is a folder of pictures with .txt files or a captions table (jsonl, csv, tsv, parquet) or tar shards in it;
    such tables, or Parquet with the pictures inside, by path or glob; tar shards by path, glob, brace range or URL;
    embeddings alone (of `unclip embed` or `precompute`).
    `embeddings` are joined by key.  size: pixels of the square pictures; None = none are read.  Of a list whose members
    carry weights, `weights` of the result holds one number per sample, for `unclip.data.order.indices`.

    labels: where the class of a picture stands: "folder" for the top-level folder that it lies in, or the name of a column
    of the table, of a field of its .json, or "cls" for its .cls.  `classes` of the result are the names by number: those
    given, which other data have, or all that there are, sorted.
    """
    if isinstance(source, (str, Path, SourceConfig)):
        one = source if isinstance(source, SourceConfig) else SourceConfig(path=str(source))
        if embeddings is not None and one.embeddings is not None:
            raise ValueError(f"two embeddings were given for {one.path}: {one.embeddings} and another")
        stored = embeddings if embeddings is not None else one.embeddings
        return _reader(one.path, open_source(one.path, labels), size, stored, broken, classes)
    if embeddings is not None:
        raise ValueError("of several sources each names its own embeddings: SourceConfig(path=..., embeddings=...)")
    many = [one if isinstance(one, SourceConfig) else SourceConfig(path=str(one)) for one in source]
    weights = [one.weight for one in many if one.weight is not None]
    if weights and len(weights) < len(many):
        without = next(one.path for one in many if one.weight is None)
        raise ValueError(f"{without} has no weight, but other sources have: give each one, or none")
    opened = [open_source(one.path, labels) for one in many]
    if labels is not None and classes is None:
        classes = class_names(name for one in opened if isinstance(one, Source) for name in one.labels or ())
    readers = [_reader(one.path, place, size, one.embeddings, broken, classes) for one, place in zip(many, opened)]
    return Mix(readers, [one.name or reader.name for one, reader in zip(many, readers)], weights or None)


def open_embeddings(path: str | Path) -> Store:
    """Embeddings of `unclip embed` (a folder, read bit by bit) or of `precompute` (one file, read whole)."""
    path = Path(path).expanduser()
    return EmbeddingShards(path) if path.is_dir() else Embeddings.load(path)


def open_source(path: str | Path, labels: str | None = None) -> Source | Store:
    """What lies at `path`, told by what it looks like.  ValueError: nothing known, or embeddings where labels are asked for."""
    opened = _open(path, labels)
    if labels is not None and not isinstance(opened, Source):
        raise ValueError(f"{path} holds embeddings, which have no labels: name the pictures as source, and these as embeddings")
    return opened


def _open(path: str | Path, labels: str | None) -> Source | Store:
    text = os.path.expanduser(path)
    place = Path(text)
    kind = text.partition("?")[0].lower()
    many = any(c in text for c in "{*[") and not place.exists()
    if kind.endswith(TABLE_SUFFIXES) and not is_url(text) and (many or place.is_file()):
        tables = [Path(name) for name in (expand(text) if many else [text])]
        base = Path(os.path.commonpath([table.absolute().parent for table in tables])) if many else place.parent
        return _open_tables(tables, base, labels)
    if kind.endswith((*TARS, ".parquet")) or many:
        return Shards(text, labels)
    if text.startswith("pipe:") or is_url(text):
        raise ValueError(f"{text} is no tar shard (it ends in none of {', '.join(TARS)}), and only these are read from afar")
    if place.is_dir():
        return EmbeddingShards(place) if (place / INDEX).is_file() else _open_folder(place, labels)
    if place.exists() and not place.is_file():
        regular_file(place)
    if place.is_file() and place.suffix.lower() == ".safetensors":
        return Embeddings.load(place)
    wrong = "is no known kind of data" if place.exists() else "is not there"
    raise ValueError(
        f"{text} {wrong}: expected a folder of pictures with .txt files"
        f" or one of {', '.join(TABLES[:4])}; tar shards (x.tar, 'x-{{000..127}}.tar', 's3://bucket/*.tar'); or embeddings"
    )


def _open_folder(place: Path, labels: str | None) -> Source:
    """The first that there is: a table called captions or metadata, tar shards, captions beside pictures, other tables."""
    if tables := find_table(place):
        return _open_tables(tables, place, labels)
    if tars := sorted(str(tar) for tar in place.iterdir() if tar.name.lower().endswith(TARS) and not is_litter(tar.name)):
        return Shards(tars, labels)
    listing = list_folder(place)
    samples = listing.grouped.samples.values()
    if (labels == FOLDER and samples) or any(sample.text for sample in samples):
        return Folder(place, labels=labels, listing=listing)
    if tars := [path for name, path in listing.files.items() if name.lower().endswith(TARS)]:
        return Shards(tars, labels)
    tables = _only_table(place, listing)
    return _open_tables(tables, place, labels, listing) if tables else Folder(place, labels=labels, listing=listing)


def _open_tables(tables: Sequence[Path], folder: Path, labels: str | None, listing: Listing | None = None) -> Source:
    """Tables that name pictures below a folder, or that hold them."""
    holding = [table for table in tables if holds_images(table)]
    if not holding:
        return Folder(folder, tables, labels, listing)
    if len(holding) < len(tables):
        other = next(table for table in tables if table not in holding)
        raise ValueError(f"{holding[0]} holds its pictures and {other} does not: name one kind of table as the source")
    return Shards([str(table) for table in tables], labels)


def _only_table(place: Path, listing: Listing) -> list[Path]:
    """The table below a folder, whatever it is called, or all its parts, whose names differ in a number."""
    tables: dict[str, list[Path]] = {}
    for name, path in listing.files.items():
        if name.lower().endswith(TABLE_SUFFIXES):
            tables.setdefault(re.sub(r"(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])", "*", name), []).append(Path(path))
    if len(tables) > 1:
        places = ", ".join(f"{place}/{name}" for name in sorted(tables)[:6])
        raise ValueError(f"{place} has no captions beside its pictures and several tables: name one as the source, of {places}")
    return next(iter(tables.values()), [])


def _reader(
    path: str,
    opened: Source | Store,
    size: int | None,
    embeddings: str | Path | Store | None,
    broken: Broken,
    classes: Sequence[str] | None,
) -> Reader | Embedded:
    if not isinstance(opened, Source):
        if size is not None or embeddings is not None:
            request = f"size={size}" if size is not None else "other embeddings"
            raise ValueError(f"{path} holds embeddings and no pictures, but {request} was asked for: name the pictures as source")
        return Embedded(opened, Path(path).expanduser().resolve().stem)
    store = open_embeddings(embeddings) if isinstance(embeddings, (str, Path)) else embeddings
    return Reader(opened, size, broken=broken, embeddings=store, classes=classes)

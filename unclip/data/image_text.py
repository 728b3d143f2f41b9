"""A folder of captioned pictures as training data: each with a .txt of its name, or all named in one captions.jsonl."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unclip.clip.preprocess import fit_square
from unclip.randomness import Noise
from unclip.types import Batch

from .pictures import load_picture

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class ImageText:
    """Pictures below `folder`, short side resized to `size` with anti-aliasing, centre crop, with their captions.

    A key is the path below the folder without its suffix: `cats/one` for cats/one.jpg.  Its captions are the lines of
    cats/one.txt or, where the folder has a captions.jsonl, its row {"key": "cats/one", "caption": "..."}; the caption
    there may be a list, the key may carry the suffix.  Of several captions a noise stream chooses.  What lacks its
    other half is left out, with a warning.  broken="skip": a picture that cannot be read is named once in a warning and
    its successor takes its place, the same one in every run; "raise": a ValueError names it.
    """

    def __init__(self, folder: str | Path, size: int, *, broken: Literal["skip", "raise"] = "skip"):
        if size < 1 or broken not in ("skip", "raise"):
            raise ValueError(f"size={size}, broken={broken!r}; size is at least 1 and broken 'skip' or 'raise'")
        self.folder, self.size, self.broken = Path(folder), size, broken
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is no folder; expected one with pictures and .txt files or a captions.jsonl")
        pictures = _pictures(self.folder)
        table = self.folder / "captions.jsonl"
        captions = _from_table(table, pictures) if table.is_file() else _from_texts(self.folder, pictures)
        _say_left_out("pictures have no caption", [key for key in pictures if key not in captions])
        _say_left_out("captions have no picture", [key for key in captions if key not in pictures])
        self.keys = sorted(pictures.keys() & captions.keys())
        if not self.keys:
            raise ValueError(
                f"{folder} has {len(pictures)} pictures and {len(captions)} captions, none with the same key;"
                " expected NAME.png (or .jpg, .webp ...) beside NAME.txt, or a captions.jsonl"
            )
        self.paths = [pictures[key] for key in self.keys]
        self.captions = [captions[key] for key in self.keys]
        self._bad: set[int] = set()  # only saves reading and naming them again

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        """The samples `indices`; a broken one is replaced, key and caption too.  noise None = the first caption."""
        found = [self._read(i) for i in indices]
        which = [0.0] * len(found) if noise is None else noise.at("caption").uniform().tolist()
        captions = [self.captions[i][int(u * len(self.captions[i]))] for (i, _), u in zip(found, which)]
        images = torch.stack([image for _, image in found]) if found else torch.empty(0, 3, self.size, self.size)
        return Batch(keys=[self.keys[i] for i, _ in found], images=images, captions=captions)

    def _read(self, index: int) -> tuple[int, Tensor]:
        """The first readable sample from `index` on, and its picture."""
        n = len(self)
        if not -n <= index < n:
            raise ValueError(f"there is no sample {index} among {n}")
        for i in (j % n for j in range(index, index + n)):
            if i in self._bad:
                continue
            try:
                return i, fit_square(load_picture(self.paths[i])[None], self.size)[0]
            except ValueError as error:
                if self.broken == "raise":
                    raise
                self._bad.add(i)
                warnings.warn(f"{error}; the next picture takes its place", stacklevel=4)
        raise ValueError(f"none of the {n} pictures in {self.folder} can be read")


def _pictures(folder: Path) -> dict[str, Path]:
    pictures: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in pictures:
                raise ValueError(f"{pictures[key]} and {path} have the same key {key!r}: rename or remove one")
            pictures[key] = path
    return pictures


def _from_texts(folder: Path, pictures: dict[str, Path]) -> dict[str, list[str]]:
    captions = {}
    for path in sorted(folder.rglob("*.txt")):
        key = path.relative_to(folder).with_suffix("").as_posix()
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text: {error}") from None
        # An empty file is an empty caption where there is a picture, else no caption file at all.
        if lines or key in pictures:
            captions[key] = lines or [""]
    return captions


def _from_table(table: Path, pictures: dict[str, Path]) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for number, row in _rows(table):
        key, caption = row.get("key"), row.get("caption")
        texts: list[Any] = caption if isinstance(caption, list) else [caption]
        if not isinstance(key, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f'{table}, line {number}: expected {{"key": ..., "caption": text or list of texts}}, got {row}'
            )
        if key not in pictures and Path(key).suffix.lower() in SUFFIXES:
            key = Path(key).with_suffix("").as_posix()
        if key in captions:
            raise ValueError(f"{table}, line {number}: the key {key!r} occurs twice; give several captions as one list")
        captions[key] = texts
    return captions


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{table}, line {number} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"{table}, line {number}: expected an object with key and caption, got {line.strip()[:80]}"
                )
            yield number, row


def _say_left_out(what: str, keys: list[str]) -> None:
    if keys:
        shown = ", ".join(keys[:5]) + (", …" if len(keys) > 5 else "")
        warnings.warn(f"{len(keys)} {what} and are left out: {shown}", stacklevel=4)

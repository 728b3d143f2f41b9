"""A folder of captioned pictures as training data, in one call."""

from __future__ import annotations

from pathlib import Path

from .folder import Folder
from .reader import Broken, Reader


class ImageText(Reader):
    """`Reader` over `Folder`: each picture with a .txt of its name, or all named in one captions.jsonl, .csv or .parquet."""

    def __init__(self, folder: str | Path, size: int, *, broken: Broken = "skip"):
        super().__init__(Folder(folder), size, broken=broken)

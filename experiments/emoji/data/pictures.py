"""Rendered emoji on disk: made once per size, then read at memory speed.

Up to 256 px a size is one uint8 .npy (n, 3, size, size), memory-mapped (256 px: 720 MB, which the system keeps while it
has room).  Above, raw pixels would be 11.5 GB, so each picture is a deflated member of one .zip (1024 px: 250 MB,
4 ms to read one; rendering takes 54 ms, decoding resvg's PNG 12 ms).
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.emoji.data.source import SVG_SHA256

LARGEST_MAPPED = 256


def render(svg: str, size: int) -> np.ndarray:
    """One SVG, anti-aliased, on white: uint8 (3, size, size)."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        raise ValueError("rendering the emoji needs the package resvg_py: pip install 'unclip[emoji]'") from None
    png = svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    if picture.size != (size, size):  # a drawing that is not square keeps its shape
        square = Image.new("RGB", (size, size), "white")
        square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
        picture = square
    return np.asarray(picture).transpose(2, 0, 1)


class Pictures:
    """Rendered pictures of `keys` at one size, read from the cache in `folder`, which is filled first if need be.

    svgs: gives the drawings by key, read only then; None = the files of folder/svg, which are Twemoji's.  source: a digest of
    what the drawings come from.
    """

    def __init__(
        self,
        folder: Path,
        keys: Sequence[str],
        size: int,
        svgs: Callable[[], Mapping[str, str]] | None = None,
        source: str = SVG_SHA256,
    ):
        if not 8 <= size <= 4096:
            raise ValueError(f"the size is {size}; emoji are rendered at 8 to 4096 pixels")
        self.keys, self.size = list(keys), size
        self.path = self.place(folder, keys, size, source)
        if not self.path.exists():
            self._fill(svgs() if svgs is not None else _files(folder / "svg", keys))
        self._open()

    @staticmethod
    def place(folder: Path, keys: Sequence[str], size: int, source: str = SVG_SHA256) -> Path:
        """The file, whose name says which pictures lie inside, so that a changed table never reads another table's rows."""
        digest = hashlib.sha256("\n".join([source, *keys]).encode()).hexdigest()[:8]
        return folder / f"{size}-{digest}{'.npy' if size <= LARGEST_MAPPED else '.zip'}"

    def __getitem__(self, rows: Sequence[int]) -> np.ndarray:
        """uint8 (len(rows), 3, size, size)."""
        if self._array is not None:
            return self._array[np.asarray(rows, dtype=np.int64)]
        assert self._zip is not None
        shape = (3, self.size, self.size)
        pictures = [np.frombuffer(self._zip.read(self.keys[row]), np.uint8).reshape(shape) for row in rows]
        return np.stack(pictures) if pictures else np.empty((0, *shape), np.uint8)

    def __getstate__(self) -> dict:
        """Workers of a loader get the names and open the files themselves."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_array", "_zip")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        self._array = np.load(self.path, mmap_mode="r") if self.path.suffix == ".npy" else None
        self._zip = zipfile.ZipFile(self.path) if self.path.suffix == ".zip" else None

    def _fill(self, svgs: Mapping[str, str]) -> None:
        """Render everything aside, then rename, so that a cache that exists is whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        pictures = tqdm(self._rendered(svgs), f"rendering {self.size} px", len(self.keys), unit=" emoji", disable=None)
        try:
            if self.path.suffix == ".npy":
                shape = (len(self.keys), 3, self.size, self.size)
                array = np.lib.format.open_memmap(aside, mode="w+", dtype=np.uint8, shape=shape)
                for row, picture in enumerate(pictures):
                    array[row] = picture
                array.flush()
            else:
                with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                    for key, picture in zip(self.keys, pictures):
                        archive.writestr(key, picture.tobytes())
            os.replace(aside, self.path)
        finally:
            aside.unlink(missing_ok=True)

    def _rendered(self, svgs: Mapping[str, str]) -> Iterable[np.ndarray]:
        texts = [svgs[key] for key in self.keys]
        draw = partial(render, size=self.size)
        return map(draw, texts) if self.size <= LARGEST_MAPPED else _draw_all(draw, texts)


def _files(svgs: Path, keys: Sequence[str]) -> dict[str, str]:
    missing = [key for key in keys if not (svgs / f"{key}.svg").is_file()]
    if missing:
        raise ValueError(
            f"{svgs} lacks {len(missing)} of {len(keys)} emoji ({missing[0]}.svg …):"
            " run `python -m experiments.emoji.data prepare` first"
        )
    return {key: (svgs / f"{key}.svg").read_text(encoding="utf-8") for key in keys}


def _draw_all(draw: Callable[[str], np.ndarray], texts: list[str]) -> Iterable[np.ndarray]:
    """As `map`, by several processes: resvg holds the interpreter lock, and large pictures take minutes."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for start in range(0, len(texts), 128):  # else many cores would pile up gigabytes before they are written
            yield from pool.map(draw, texts[start : start + 128], chunksize=4)

"""CLIP's answers for a whole source, shard by shard, on as many processes as there are; a run that was cut off goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from unclip.checkpoint import fingerprint
from unclip.clip.identity import identity
from unclip.clip.preprocess import fit_square
from unclip.files import check_files, write_files
from unclip.trees import move
from unclip.types import ImageTextEncoder, Text

from .embedding_shards import INDEX, EmbeddingIndex, Receipt, shard_path, write_shard
from .reader import Reader, Sample

PER_SHARD = 1024


class Done(NamedTuple):
    """What this process did: numbers of shards and, in those that it wrote, of pictures."""

    written: list[int]
    skipped: list[int]
    pictures: int
    broken: int


def embed(
    clip: ImageTextEncoder,
    data: Reader,
    folder: str | Path,
    *,
    source: str = "",
    per_shard: int = PER_SHARD,
    batch: int = 64,
    rank: int = 0,
    world: int = 1,
    dtype: Literal["float32", "float16"] = "float32",
    readers: int = 4,
    progress: Callable[[int], object] = lambda pictures: None,
) -> Done:
    """Encode every picture and all its captions, raw, into shards of `per_shard` pictures: those whose turn is `rank`'s.

    Processes need not know of each other; they share the folder.  Finished shards, by size and hash, are skipped; damaged
    ones are made anew.  Broken pictures are named in a warning and left out.  ValueError: the folder holds embeddings of
    another CLIP, of other data or of another layout.
    """
    if per_shard < 1 or batch < 1 or not 0 <= rank < world:
        raise ValueError(f"per_shard={per_shard}, batch={batch}, rank={rank} of {world}; all from 1 up, rank below world")
    folder = Path(folder).expanduser()
    index = EmbeddingIndex(
        clip=identity(clip),
        fingerprint=fingerprint(clip),
        source=source or data.name,
        data=data.source.digest(),
        count=len(data),
        per_shard=per_shard,
        dtype=dtype,
    )
    _claim(folder, index, clip)
    written, skipped, pictures, broken = [], [], 0, 0
    with ThreadPoolExecutor(readers) as pool, _evaluating(clip):
        for shard in range(rank, index.shards, world):
            path, rows = shard_path(folder, shard), index.rows(shard)
            if _finished(path):
                skipped.append(shard)
                progress(len(rows))
                continue
            for stale in folder.glob(f".{path.stem}.*"):  # by a kill
                stale.unlink(missing_ok=True)
            keys, images, captions, bad = _images(clip, data, rows, batch, pool, progress)
            image_embed = torch.cat(images) if images else torch.empty(0, clip.embed_dim)
            text = _texts(clip, [caption for group in captions for caption in group], batch)
            narrow = getattr(torch, dtype)
            text = move(text, "cpu", narrow) if text is not None else None
            write_shard(path, keys, image_embed.to(narrow), text, [len(group) for group in captions], bad)
            written.append(shard)
            pictures, broken = pictures + len(keys), broken + len(bad)
    return Done(written, skipped, pictures, broken)


@contextmanager
def _evaluating(clip: ImageTextEncoder) -> Iterator[None]:
    module = clip if isinstance(clip, nn.Module) else nn.Module()
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def check_claim(folder: Path) -> None:
    """ValueError unless embeddings can be written into a folder: a new one, or one that has some."""
    path = folder / INDEX
    other = folder.exists() and (not folder.is_dir() or any(not left.name.startswith(".") for left in folder.iterdir()))
    if path.exists():  # asked last, for another process may have written it meanwhile
        return
    if other:
        raise ValueError(f"{folder} is not empty and holds no embeddings: choose a new folder")
    check_files([path], overwrite=True)


def _claim(folder: Path, index: EmbeddingIndex, clip: ImageTextEncoder) -> None:
    """Write the index into a new folder, or see that the one there is of the same work."""
    path = folder / INDEX
    check_claim(folder)
    if not path.exists():
        try:
            write_files([(path, index.to_json().encode())], overwrite=False)
        except ValueError:
            if not path.exists():  # another process wrote the same at the same moment
                raise
    before = EmbeddingIndex.load(path)
    before.refuse(clip, folder)
    if (before.data, before.count) != (index.data, index.count):
        raise ValueError(
            f"{folder} holds embeddings of other data ({before.source}, {before.count} pictures), or the data have changed"
            f" since; now they are {index.source}, {index.count} pictures: choose a new folder"
        )
    if (before.per_shard, before.dtype) != (index.per_shard, index.dtype):
        raise ValueError(
            f"{folder} has {before.per_shard} pictures a shard in {before.dtype}, not {index.per_shard} in {index.dtype}:"
            " give the same, or a new folder"
        )


def _finished(path: Path) -> bool:
    receipt = path.with_suffix(".json")
    if not receipt.is_file():
        return False
    try:
        problem = Receipt.load(receipt).problem(path)
    except ValueError as error:
        problem = f"has a receipt that cannot be read ({error})"
    if problem:
        warnings.warn(f"{path} {problem}: it is made anew", stacklevel=1)
        receipt.unlink()
    return problem is None


def _images(
    clip: ImageTextEncoder, data: Reader, rows: range, batch: int, pool: ThreadPoolExecutor, progress: Callable[[int], object]
) -> tuple[list[str], list[Tensor], list[list[str]], dict[str, str]]:
    """Keys, embeddings and captions of the pictures that can be read, and what is wrong with the others."""
    keys: list[str] = []
    images: list[Tensor] = []
    captions: list[list[str]] = []
    broken: dict[str, str] = {}

    def read(row: int) -> Sample | str:
        try:
            sample = data.sample(row)
            return sample._replace(image=_square(clip, sample.image))
        except ValueError as error:
            return str(error)

    for chunk, samples in _ahead(pool, read, [rows[i : i + batch] for i in range(0, len(rows), batch)]):
        good = []
        for row, sample in zip(chunk, samples):
            if isinstance(sample, str):
                broken[data.keys[row]] = sample
                warnings.warn(f"{sample}; it gets no embedding", stacklevel=1)
            else:
                good.append(sample)
        if good:
            with torch.no_grad():
                images.append(clip.encode_image(torch.stack([sample.image for sample in good])).float().cpu())
        keys += [sample.key for sample in good]
        captions += [sample.captions for sample in good]
        progress(len(chunk))
    return keys, images, captions, broken


def _square(clip: ImageTextEncoder, image: Tensor) -> Tensor:
    """As the CLIP itself takes pictures of any size, from the whole picture: not from one made small for training."""
    preprocess = getattr(clip, "preprocess", None)
    square: Tensor = preprocess([image]) if preprocess is not None else fit_square(image[None], clip.image_size)
    return square[0]


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[int], Sample | str], batches: Sequence[range]
) -> Iterator[tuple[range, list[Sample | str]]]:
    """Batches of samples, the next one read while one is encoded."""
    waiting = [(rows, [pool.submit(read, row) for row in rows]) for rows in batches[:1]]
    for rows in [*batches[1:], range(0)]:
        waiting.append((rows, [pool.submit(read, row) for row in rows]))
        done, futures = waiting.pop(0)
        yield done, [future.result() for future in futures]


def _texts(clip: ImageTextEncoder, captions: list[str], batch: int) -> Text | None:
    if not captions:
        return None
    with torch.no_grad():
        pieces = [move(clip.encode_text(captions[i : i + batch]), "cpu") for i in range(0, len(captions), batch)]
    tensors = (torch.cat([piece[k] for piece in pieces]) for k in range(1, 5))  # type: ignore[misc]
    return Text([string for piece in pieces for string in piece.strings], *tensors)

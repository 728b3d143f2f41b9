"""A folder of CLIP embeddings in shards: written one by one, read row by row from mapped files, found by key.

embeddings.json         which CLIP, which data, how many pictures a shard
00000.safetensors       the tensors of the first pictures, and of all their captions one after the other
00000.json              its keys, size and hash: a shard without this receipt is not finished
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor

from unclip.checkpoint import fingerprint
from unclip.clip.identity import identity, same_identity
from unclip.config import Config
from unclip.files import write_files
from unclip.randomness import Noise
from unclip.types import Batch, ImageTextEncoder, Text

from .order import Data
from .reader import choices

INDEX = "embeddings.json"
OPEN = 256  # shards kept open


class EmbeddingIndex(Config, frozen=True, kw_only=True):
    """What a folder of embeddings is, written before the first shard."""

    format: Literal["unclip.embeddings.shards.1"] = "unclip.embeddings.shards.1"
    clip: dict[str, Any]  # its answers to fixed captions and pictures
    fingerprint: str
    source: str  # what a person called the data
    data: str  # its digest
    count: int
    per_shard: int
    dtype: Literal["float32", "float16"]

    @property
    def shards(self) -> int:
        return -(-self.count // self.per_shard)

    def rows(self, shard: int) -> range:
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, self.count))

    def refuse(self, clip: ImageTextEncoder, folder: str | Path) -> None:
        """ValueError unless these are embeddings of that CLIP."""
        try:
            same_identity(self.clip, identity(clip))
            if self.fingerprint != fingerprint(clip):
                raise ValueError("this is the same CLIP with slightly other weights: it was trained on")
        except ValueError as error:
            raise ValueError(f"{folder} holds embeddings of another CLIP: {error}") from None


class Receipt(Config, frozen=True, kw_only=True):
    """A finished shard: what it holds, what it leaves out, and how its file is known to be whole."""

    keys: tuple[str, ...]
    captions: int
    broken: dict[str, str]  # key -> why
    size: int
    sha256: str

    def problem(self, path: Path) -> str | None:
        """What is wrong with the file, as its size and hash tell."""
        if not path.is_file():
            return "is missing"
        if path.stat().st_size != self.size:
            return f"has {path.stat().st_size} bytes instead of {self.size}"
        with open(path, "rb") as file:
            changed = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)
        return "has changed" if changed != self.sha256 else None


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.safetensors"


def write_shard(
    path: Path, keys: Sequence[str], image_embed: Tensor, text: Text | None, counts: Sequence[int], broken: dict[str, str]
) -> None:
    """The embeddings of `keys` and, one after the other, of their `counts` captions each; then the receipt.

    Of a caption's states only those of real tokens are stored, which with CLIP's 77 is a sixth of them.
    """
    from safetensors.torch import save

    tensors = {"image_embed": image_embed}
    if text is not None:
        strings = [string.encode() for string in text.strings]
        tensors |= {
            "text.first": _starts(counts),  # picture i has the captions first[i] to first[i + 1]
            "text.embed": text.z_t,
            "text.tokens": text.tokens.to(torch.int32),
            "text.mask": text.mask,
            "text.states": text.token_states[text.mask],
            "text.state": _starts(text.mask.sum(1).tolist()),  # caption j has the states state[j] to state[j + 1]
            "text.strings": torch.frombuffer(bytearray(b"".join(strings)) or bytearray(1), dtype=torch.uint8),
            "text.string": _starts([len(string) for string in strings]),
        }
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    receipt = Receipt(
        keys=tuple(keys),
        captions=sum(counts) if text is not None else 0,
        broken=broken,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    write_files([(path, data), (path.with_suffix(".json"), msgspec.json.encode(receipt))])


class EmbeddingShards:
    """What `unclip embed` wrote, found by key and never by row.  Keys are in memory; tensors stay in mapped files.

    ValueError: not all shards are there.  Sizes are looked at when it is opened, hashes by `problems`.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.name = Path(folder), str(folder)
        self.index = EmbeddingIndex.load(self.folder / INDEX)
        paths = [shard_path(self.folder, shard) for shard in range(self.index.shards)]
        missing = [path for path in paths if not (path.is_file() and path.with_suffix(".json").is_file())]
        if missing:
            raise ValueError(
                f"{folder} is not finished: {len(missing)} of {len(paths)} shards are not there, the first is {missing[0].name};"
                " the same `unclip embed` again makes them"
            )
        receipts = [Receipt.load(path.with_suffix(".json")) for path in paths]
        for path, receipt in zip(paths, receipts):
            if path.stat().st_size != receipt.size:
                raise ValueError(
                    f"{path} has {path.stat().st_size} bytes instead of {receipt.size}; `unclip embed` again makes it anew"
                )
        self.paths, self.receipts = paths, receipts
        self.keys = [key for receipt in receipts for key in receipt.keys]
        self.has_text = bool(receipts) and all(receipt.captions for receipt in receipts if receipt.keys)
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _rows(self) -> dict[str, tuple[int, int]]:
        rows = {key: (s, r) for s, receipt in enumerate(self.receipts) for r, key in enumerate(receipt.keys)}
        if len(rows) != len(self.keys):
            raise ValueError(f"of {len(self.keys)} keys in {self.folder} only {len(rows)} differ; keys are unique")
        return rows

    def rows(self, keys: Sequence[str], noise: Noise | None = None) -> tuple[Float[Tensor, "b d"], Text | None]:
        """The image embeddings and texts of `keys`, in that order; of several captions the noise chooses one, None the first."""
        missing = [key for key in keys if key not in self._rows]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(keys)} keys have no embedding in {self.folder}, the first is {missing[0]!r}:"
                " compute the embeddings of this very data with `unclip embed`"
            )
        places = [(self._shard(shard), row) for shard, row in (self._rows[key] for key in keys)]
        width = self.index.clip["embed_dim"]
        images = torch.stack([shard.image(row) for shard, row in places]) if places else torch.empty(0, width)
        if not self.has_text or not places:
            return images, None
        which = choices([shard.count(row) for shard, row in places], noise)
        texts = [shard.caption(row, i) for (shard, row), i in zip(places, which)]
        return images, Text([t[0] for t in texts], *(torch.stack([t[k] for t in texts]) for k in range(1, 5)))  # type: ignore

    def join(self, batch: Batch, noise: Noise | None = None) -> Batch:
        """The batch with the embeddings of its keys; its captions become the embedded ones, which may be others."""
        image_embed, text = self.rows(batch.keys, noise)
        captions = batch.captions if text is None else text.strings
        return batch._replace(image_embed=image_embed, text=text, captions=captions)

    def check(self, clip: ImageTextEncoder, data: Data | None = None, n: int = 4) -> None:
        """ValueError unless these are embeddings of `clip` as it is now.  (Nothing of `data` needs to be encoded again.)"""
        self.index.refuse(clip, self.folder)

    def problems(self) -> list[str]:
        """Every damaged shard, read whole for its hash."""
        checked = [(path, receipt.problem(path)) for path, receipt in zip(self.paths, self.receipts)]
        return [f"{path} {problem}" for path, problem in checked if problem]

    def _shard(self, number: int) -> _Shard:
        with self._lock:
            shard = self._open.pop(number, None) or _Shard(self.paths[number])
            self._open[number] = shard
            if len(self._open) > OPEN:
                self._open.popitem(last=False)
            return shard


class _Shard:
    """One mapped file, and in memory where in it each caption begins."""

    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(path, "pt")
            names = set(self._file.keys())
            stored = [name for name in ("first", "state", "string") if f"text.{name}" in names]
            self._starts = {name: self._file.get_tensor(f"text.{name}").tolist() for name in stored}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read as embeddings: {error}") from None
        self._slices = {name: self._file.get_slice(name) for name in names}
        self._width = self._slices["text.states"].get_shape()[1] if stored else 0

    def image(self, row: int) -> Tensor:
        return self._slices["image_embed"][row : row + 1][0].float()

    def count(self, row: int) -> int:
        return self._starts["first"][row + 1] - self._starts["first"][row]

    def caption(self, row: int, which: int) -> tuple[str, Tensor, Tensor, Tensor, Tensor]:
        """The fields of Text, of one caption."""
        j = self._starts["first"][row] + which
        (a, b), (c, d) = (self._starts[name][j : j + 2] for name in ("string", "state"))
        tokens, embed, mask = (self._slices[f"text.{name}"][j : j + 1][0] for name in ("tokens", "embed", "mask"))
        states = torch.zeros(len(mask), self._width)
        if d > c:
            states[mask] = self._slices["text.states"][c:d].float()
        return bytes(self._slices["text.strings"][a:b].tolist()).decode(), tokens.long(), embed.float(), states, mask


def _starts(counts: Sequence[int]) -> Tensor:
    return torch.tensor([0, *counts], dtype=torch.int64).cumsum(0)


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()

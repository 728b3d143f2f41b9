"""CLIP's answers computed once, so that priors and decoders train without running CLIP; joined to pictures by key."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unclip.checks import path_of
from unclip.files import refuse_pointer, regular_file, write_files
from unclip.randomness import Noise
from unclip.trees import move
from unclip.types import Batch, ImageTextEncoder, Text
from unclip.weights import to_bytes

from .order import Data

FORMAT = "unclip.embeddings.1"
TEXT_TENSORS = ("tokens", "embed", "states", "mask")


class Embeddings:
    """Raw image embeddings (n, d) and, where there were captions, their Text, of `keys`.  Row i belongs to keys[i]."""

    def __init__(self, keys: Sequence[str], image_embed: Float[Tensor, "n d"], text: Text | None = None):
        self.keys, self.image_embed, self.text = list(keys), image_embed, text
        self.name = "the embeddings"  # for messages
        self._row = {key: row for row, key in enumerate(self.keys)}
        if len(self._row) != len(self.keys):
            raise ValueError(f"of {len(self.keys)} keys only {len(self._row)} differ; the keys of embeddings are unique")
        columns = [image_embed] if text is None else [image_embed, text.tokens, text.z_t, text.token_states, text.mask]
        lengths = {*map(len, columns), *([] if text is None else [len(text.strings)])}
        if lengths != {len(self.keys)}:
            raise ValueError(f"{len(self.keys)} keys came with {sorted(lengths)} embeddings; there must be one each")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def has_text(self) -> bool:
        return self.text is not None

    def rows(self, keys: Sequence[str]) -> tuple[Float[Tensor, "b d"], Text | None]:
        """The image embeddings and texts of `keys`, in that order; a key may come twice."""
        missing = [key for key in keys if key not in self._row]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(keys)} keys have no embedding here, the first is {missing[0]!r}:"
                " compute the embeddings of this very data with unclip.data.embeddings.precompute"
            )
        chosen = [self._row[key] for key in keys]
        rows, text = torch.tensor(chosen, dtype=torch.long), self.text
        if text is not None:
            tensors = (getattr(text, name)[rows] for name in TEXT_TENSORS)
            text = Text([text.strings[i] for i in chosen], *tensors)
        return self.image_embed[rows], text

    def select(self, keys: Sequence[str]) -> Embeddings:
        """Only `keys`, in that order."""
        selected = Embeddings(keys, *self.rows(keys))
        selected.name = self.name
        return selected

    def join(self, batch: Batch, noise: Noise | None = None) -> Batch:
        """The batch with the embeddings of its keys; its captions become the embedded ones, which may be others.

        There is one caption a key: the noise, which chooses where there are several, is not asked.
        """
        image_embed, text = self.rows(batch.keys)
        captions = batch.captions if text is None else text.strings
        return batch._replace(image_embed=image_embed, text=text, captions=captions)

    def check(self, clip: ImageTextEncoder, data: Data | None = None, n: int = 4, alike: float = 0.999) -> None:
        """Raise a ValueError unless `clip` gives for some samples of `data` what is stored here, as it no longer does
        when it was trained further afterwards.  Without data only stored captions are encoded.

        alike: the least cosine of pictures; below 0.999 they may have been encoded from another size.
        """
        if self.image_embed.shape[1] != clip.embed_dim:
            width = self.image_embed.shape[1]
            raise ValueError(f"the stored embeddings have {width} numbers and this CLIP's {clip.embed_dim}; compute them again")
        pairs, image_now = {}, None
        if data is None:
            image_embed, text = self.rows(self.keys[:: max(1, len(self) // n)])
            _, text_now = _answers(clip, None, text.strings if text is not None else None)
        else:
            keys, image_now, text_now = _encode(clip, data, range(0, len(data), max(1, len(data) // n)))
            image_embed, text = self.rows(keys)
        if image_now is not None:
            pairs["image"] = (image_embed, image_now, alike)
        if text is not None and text_now is not None:
            pairs["text"] = (text.z_t, text_now.z_t, 0.999)
        for what, (old, new, wanted) in pairs.items():
            least = torch.cosine_similarity(old, new).min().item() if old.shape == new.shape else float("nan")
            if not least > wanted:  # also catches NaN
                raise ValueError(
                    f"the stored {what} embeddings {tuple(old.shape)} are not this CLIP's {tuple(new.shape)}:"
                    f" the least cosine is {least:.3f}; compute them again"
                )

    def save(self, path: str | Path, overwrite: bool = True) -> None:
        """One safetensors file, written aside and renamed; keys and captions are JSON in its metadata.

        ValueError for a full disk, and for what is there already unless `overwrite`.
        """
        tensors = {"image_embed": self.image_embed}
        metadata = {"format": FORMAT, "keys": json.dumps(self.keys)}
        if self.text is not None:
            metadata["strings"] = json.dumps(self.text.strings)
            tensors |= {f"text.{name}": getattr(self.text, name) for name in TEXT_TENSORS}
        write_files([(path_of(path), to_bytes(tensors, metadata))], overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Embeddings:
        from safetensors import SafetensorError, safe_open

        try:
            if os.path.exists(path):
                with open(regular_file(path), "rb") as start:
                    refuse_pointer(Path(path), start.read(200))
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read as embeddings: {error}") from None
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} holds no embeddings of format {FORMAT}: it says {metadata.get('format')!r}")
        text = None
        if "strings" in metadata:
            text = Text(json.loads(metadata["strings"]), *(tensors[f"text.{name}"] for name in TEXT_TENSORS))
        loaded = cls(json.loads(metadata["keys"]), tensors["image_embed"], text)
        loaded.name = str(path)
        return loaded


def precompute(clip: ImageTextEncoder, data: Data, path: str | Path | None = None, *, batch: int = 64) -> Embeddings:
    """Encode the clean pictures and first captions of `data`, raw and in float32; also write them to `path`."""
    if not len(data):
        raise ValueError("there is nothing to encode: the data are empty")
    pieces = [_encode(clip, data, range(i, min(i + batch, len(data)))) for i in range(0, len(data), batch)]
    keys, images, texts = zip(*pieces)
    # A broken picture is replaced by its successor, which then comes twice.
    row = {key: i for i, key in enumerate(key for piece in keys for key in piece)}
    rows = torch.tensor(list(row.values()))
    text = None
    if all(texts):
        strings = [string for piece in texts for string in piece.strings]
        tensors = (torch.cat([getattr(piece, name) for piece in texts])[rows] for name in TEXT_TENSORS)
        text = Text([strings[i] for i in row.values()], *tensors)
    embeddings = Embeddings(list(row), torch.cat(images)[rows], text)
    if path is not None:
        embeddings.save(path)
    return embeddings


def _encode(clip: ImageTextEncoder, data: Data, indices: Sequence[int]) -> tuple[list[str], Tensor, Text | None]:
    """Keys, image embeddings and texts of some samples."""
    batch = data.batch(indices)
    if batch.images is None:
        raise ValueError("these data have no images to encode")
    image_embed, text = _answers(clip, batch.images, batch.captions)
    assert image_embed is not None
    return batch.keys, image_embed, text


@torch.no_grad()  # not inference_mode: its tensors could not be trained on
def _answers(clip: ImageTextEncoder, images: Tensor | None, captions: list[str] | None) -> tuple[Tensor | None, Text | None]:
    """Image embeddings and texts, float32, on the CPU."""
    training = isinstance(clip, nn.Module) and clip.training
    if isinstance(clip, nn.Module):
        clip.eval()
    try:
        image_embed = clip.encode_image(images).float().cpu() if images is not None else None
        text = clip.encode_text(captions) if captions is not None else None
    finally:
        if isinstance(clip, nn.Module):
            clip.train(training)
    return image_embed, text and move(text, "cpu", torch.float32)

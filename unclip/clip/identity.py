"""CLIP identity: what a pipeline records about the CLIP it was trained with, and the check of the one it gets.

A prior or decoder answers nonsense, quietly, to embeddings of another CLIP of the same width: so answers are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unclip.config import visible
from unclip.types import ImageTextEncoder

CAPTIONS = ("a red heart", "a woman with a dog in front of a house")
_FIELDS = ("embed_dim", "image_size", "context_length", "text_width")  # an encoder from outside may lack the last two


def identity(clip: ImageTextEncoder) -> dict[str, Any]:
    """Architecture fields and raw embeddings of two fixed captions and two fixed pictures, ready for JSON."""
    module = clip if isinstance(clip, nn.Module) else nn.Module()
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            captions = clip.encode_text(list(CAPTIONS)).z_t
            # A CLIP without an image tower is known by its captions alone.
            images = clip.encode_image(fixed_images(clip.image_size).to(captions.device)) if clip.image_size else captions[:0]
    finally:
        module.train(training)
    fields: dict[str, Any] = {name: getattr(clip, name) for name in _FIELDS if hasattr(clip, name)}
    return fields | {"captions": _rounded(captions), "pictures": _rounded(images)}


def same_identity(expected: Mapping[str, Any], actual: Mapping[str, Any], threshold: float = 0.999) -> None:
    """ValueError naming what was expected and given when these are two CLIPs (a cosine under `threshold`)."""
    for name in ("embed_dim", "image_size", "captions", "pictures"):
        for which, record in (("expected", expected), ("given", actual)):
            if name not in record:
                raise ValueError(f"the {which} CLIP identity has no field {name!r}; it has {visible(', '.join(record))}")
    blind = not (expected["image_size"] and actual["image_size"])
    for name in _FIELDS:
        if expected.get(name) != actual.get(name) and not (blind and name == "image_size"):
            raise ValueError(f"this is another CLIP: expected {name} {expected.get(name)}, given {actual.get(name)}")
    for name in ("captions",) if blind else ("captions", "pictures"):
        try:
            a, b = (torch.tensor(record[name], dtype=torch.float64) for record in (expected, actual))
        except (ValueError, TypeError) as error:  # rows of several lengths
            raise ValueError(f"{name} of a CLIP identity are no embeddings: {error}") from None
        if a.shape != b.shape:
            raise ValueError(f"this is another CLIP: expected {name} of shape {tuple(a.shape)}, given {tuple(b.shape)}")
        cosine = F.cosine_similarity(a, b, dim=-1).min().item()
        if not cosine >= threshold:  # also refuses NaN
            raise ValueError(
                f"this is another CLIP, or the same with other weights: its embeddings of the fixed {name} have cosine "
                f"{cosine:.4f} to the expected ones, not {threshold} or more; use the CLIP of these components"
            )


def fixed_images(size: int) -> Float[Tensor, "2 3 s s"]:
    """A colour gradient and a disc on stripes, in [-1, 1], from arithmetic alone."""
    axis = (torch.arange(size, dtype=torch.float64, device="cpu") + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    gradient = torch.stack([x, y, -x * y])
    disc = x * x + y * y < 0.4
    colour = x.new_tensor([0.9, 0.7, -0.8])[:, None, None]
    stripes = torch.where(disc, colour, torch.sin(12 * (x + y)).expand(3, -1, -1))
    return torch.stack([gradient, stripes]).float()


def _rounded(x: Tensor) -> list[list[float]]:
    return [[float(f"{v:.6g}") for v in row] for row in x.float().cpu().tolist()]

"""What a training batch is conditioned on: what the data bring, what a frozen CLIP makes of them, and holes drawn at random."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from unclip.conditions import Conditions
from unclip.randomness import Noise
from unclip.types import Batch, Cond, ImageTextEncoder, Text

from .task import Widths, require

MADE_OF = {"image_embed": "images", "text": "captions"}  # by a CLIP


def read_fields(conditions: Conditions) -> tuple[str, ...]:
    """The fields of `Batch`, beside its pictures, that these conditions are taken from."""
    text = conditions.text
    fields = {"image_embed": "image_embed", "text": "text", "label": "labels"}
    if text is not None and text.tokenizer != "given":
        fields["text"] = "captions"
    return tuple(fields[name] for name in conditions.takes if name in fields)


def read_widths(conditions: Conditions) -> Widths | None:
    """Of a CLIP's answers, where these conditions read any."""
    image, text = conditions.image_embed, conditions.text
    if text is None:
        return None if image is None else Widths(image.embed_dim)
    embed = text.embed_dim if image is None else image.embed_dim
    return Widths(embed or 1, text.context, text.states_width or 1, cut=True)


def needs_clip(conditions: Conditions) -> bool:
    """Whether these conditions are the answers of a CLIP."""
    return not {"image_embed", "text"}.isdisjoint(read_fields(conditions))


def conditions_of(batch: Batch, conditions: Conditions, clip: ImageTextEncoder | None, task: str) -> Cond:
    """The batch's conditions, all but known pixels, which are the task's business.

    ValueError, in the name of the `task`: the batch lacks one, and there is no CLIP to make it.
    """
    takes, caption = conditions.takes, conditions.text
    cond = Cond(batch.image_embed, batch.text, batch.labels)
    if caption is not None and caption.tokenizer != "given" and cond.text is None:
        require(batch, ["captions"], task)
        cond = cond._replace(text=Text.of(batch.captions or []))
    taught = [name for name in MADE_OF if name in takes]
    lacks = [name for name in taught if getattr(cond, name) is None]
    if lacks and clip is None:
        require(batch, taught, f"{task} without a CLIP")
    elif lacks and clip is not None:
        require(batch, [MADE_OF[name] for name in taught], task)
        assert batch.images is not None
        with torch.no_grad():
            if "image_embed" in lacks:
                cond = cond._replace(image_embed=clip.encode_image(batch.images))
            if "text" in lacks:
                cond = cond._replace(text=clip.encode_text(batch.captions or []))
    if "label" in takes:
        require(batch, ["labels"], task)
    return Cond(**{name: getattr(cond, name) for name in takes})


def random_keep(noise: Noise, height: int, width: int) -> Bool[Tensor, "b 1 h w"]:
    """Which pixels are known (True) while a network learns to draw the others: everything but a rectangle, a rectangle alone,
    one side of a straight cut, or everything but a stroke, one kind drawn for each row (after GLIDE 2.2)."""
    kind, *places = noise.uniform((7,)).T[..., None, None]  # (b, 1, 1) each
    y = (torch.arange(height) + 0.5).view(1, -1, 1) / height  # (1, h, 1)
    x = (torch.arange(width) + 0.5).view(1, 1, -1) / width  # (1, 1, w)
    a, b, c, d, thick, side = places
    inside = ((y - (0.2 + 0.6 * a)).abs() < 0.1 + 0.3 * c) & ((x - (0.2 + 0.6 * b)).abs() < 0.1 + 0.3 * d)  # (b, h, w)
    beyond = torch.where(side < 0.5, y, x).expand_as(inside) < 0.2 + 0.6 * a
    # Distance to the segment from (a, b) to (c, d).
    along = (((y - a) * (c - a) + (x - b) * (d - b)) / ((c - a) ** 2 + (d - b) ** 2).clamp(min=1e-6)).clamp(0, 1)
    stroke = (y - a - along * (c - a)) ** 2 + (x - b - along * (d - b)) ** 2 < (0.05 + 0.1 * thick) ** 2
    hole = torch.stack([inside, ~inside, beyond ^ (c < 0.5), stroke])  # (4, b, h, w)
    chosen = hole.gather(0, (kind * 4).long().view(1, -1, 1, 1).expand(1, -1, height, width))[0]
    return ~chosen[:, None]

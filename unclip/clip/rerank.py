"""Re-ranking: of several pictures drawn for a caption those that a CLIP finds nearest to it (DALL-E 1, section 2.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from unclip.types import ImageTextEncoder

AT_ONCE = 64


class Ranked(NamedTuple):
    """The k best of each caption's n pictures as rows of all, best first, and the cosines of all n to their caption."""

    rows: Int[Tensor, "c k"]
    scores: Float[Tensor, "c n"]


@torch.no_grad()
def rerank(clip: ImageTextEncoder, images: Float[Tensor, "b 3 h w"], captions: Sequence[str], k: int = 1) -> Ranked:
    """The k pictures nearest to each of c captions, of n = b / c each, caption-major.  A blank caption keeps its first k."""
    count = len(captions)
    if not count or len(images) % count or not 1 <= k <= len(images) // count:
        problem = f"{len(images)} pictures and {count} captions, of each of which k = {k} shall be kept"
        raise ValueError(f"{problem}: as many pictures for each caption, one after the other, and k from 1 to their number")
    text = clip.encode_text(list(captions)).z_t.float()
    chunks = [clip.encode_image(images[i : i + AT_ONCE].to(text.device)).float() for i in range(0, len(images), AT_ONCE)]
    embeds = normalize(torch.cat(chunks), dim=-1).unflatten(0, (count, -1))  # (c, n, d)
    scores = (embeds * normalize(text, dim=-1)[:, None]).sum(-1).cpu()  # (c, n); a product of matrices would be rounded
    order = scores.argsort(dim=1, descending=True, stable=True)
    blank = torch.tensor([not caption.strip() for caption in captions])
    order = torch.where(blank[:, None], torch.arange(order.shape[1]), order)[:, :k]
    return Ranked(order + torch.arange(count)[:, None] * scores.shape[1], scores)

"""Embeddings drawn by a prior: several candidates for each caption, of which the one nearest the caption is kept (unCLIP 2.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unclip.config import Config
from unclip.randomness import Noise
from unclip.types import Adjustable, Callback, Prior, Text, best_of

from .stage import Progress, chunks, passes, run_stage
from .steering import warn_inert

AT_ONCE = 64  # captions


def draw_embeddings(
    prior: Prior,
    text: Text,
    candidates: int,
    embed_dim: int,
    noise: Noise,
    sampling: Config | None,
    negative: Text | None,
    callback: Callback | None,
) -> Tensor:
    """Raw embeddings (b, embed_dim) on the CPU, one noise stream per caption.  ValueError for a prior's wrong answers."""
    steps, total, kept = passes(prior, sampling), len(noise), []
    settings = sampling or (prior.sampling if isinstance(prior, Adjustable) else None)
    if negative is not None and getattr(settings, "guidance", None) == 1:
        warn_inert("prior", 5)
    for rows in chunks(total, AT_ONCE):
        chunk, away = text.rows(rows), None if negative is None else negative.rows(rows)
        options = {"noise": noise[rows], "n": candidates, "sampling": sampling}
        drawn = run_stage(prior.sample, [chunk], options, Progress(callback, "prior", steps, rows, total), away)
        check_drawn(prior, drawn, (len(chunk.strings), candidates, embed_dim))
        # Without a caption there is nothing to be near to: the first draw is the unconditional one.
        nearest, blank = best_of(drawn, chunk.z_t), chunk.blank.to(drawn.device)
        kept.append(torch.where(blank[:, None], drawn[:, 0], nearest).float().cpu())
    return torch.cat(kept)


def check_drawn(prior: object, drawn: Any, expected: tuple[int, int, int]) -> None:
    """ValueError, where the prior is known, rather than a grey picture or a decoder that speaks of another CLIP."""
    if not isinstance(drawn, Tensor):
        wrong = f"of type {type(drawn).__name__}"
    elif drawn.shape != expected:
        wrong = f"of shape {tuple(drawn.shape)}"
    else:
        broken = int((~drawn.isfinite()).sum())
        wrong = f"of which {broken} numbers are NaN or infinite" if broken else ""
    if wrong:
        problem = f"{type(prior).__name__}.sample drew embeddings {wrong}"
        raise ValueError(f"{problem}; expected (captions, n, d) = {expected}, all finite")

"""What `evaluate` measures of the upsamplers, on held-out pictures, each rounded to 8 bits as a user gets it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from experiments.emoji.data.emoji_data import EmojiData
from experiments.emoji.evaluation.measure import Numbers, Subject, by_hash
from unclip.images import eight_bit
from unclip.metrics import interval, psnr, sharpness
from unclip.randomness import Noise
from upsamplers.filters import resize


def upsampling(subject: Subject, n: int) -> Numbers:
    """Each upsampler on true small pictures, on its own: PSNR, gradient magnitude against the true one's; bicubic beside it."""
    pipe, scores = subject.pipe, Scores()
    for low_size, size, upsampler in zip(pipe.sizes, pipe.sizes[1:], pipe.upsamplers):
        for row, low, true in pairs(n, low_size, size):
            ours = upsampler.sample(low, noise=Noise.of(subject.seed, row)).cpu()
            scores.add(f"upsampler {size}", ours, true)
            scores.add(f"upsampler {size}, bicubic", resize(low, (size, size)), true)
    return scores.numbers()


def full_size(subject: Subject, n: int) -> Numbers:
    """All upsamplers one after the other, on true 64-pixel pictures in place of the decoder's, and in the full chain."""
    pipe, scores = subject.pipe, Scores()
    small, large = pipe.sizes[0], pipe.sizes[-1]
    captions = dict(zip(subject.data.keys, subject.data.captions))
    keys = EmojiData("heldout", small).keys
    for row, low, true in pairs(n, small, large):
        x = low
        for upsampler, size in zip(pipe.upsamplers, pipe.sizes[1:]):
            x = upsampler.sample(x, noise=Noise.of(subject.seed, row).at(f"upsampler_{size}")).cpu()
        scores.add(f"upsamplers alone (true {small} px), {large}", x, true)
        scores.add(f"upsamplers alone (true {small} px), {large}, bicubic", resize(low, (large, large)), true)
        made = pipe.generate(captions[keys[row]], seed=subject.seed, first=row)
        for size in pipe.sizes[1:]:
            same = true if size == large else EmojiData("heldout", size).batch([row]).images
            assert same is not None
            scores.add(f"full chain, {size}", made.stages[size], same)
            scores.add(f"full chain, {size}, bicubic", resize(made.stages[small], (size, size)), same)
    return scores.numbers()


def tiling(subject: Subject, n: int) -> Numbers:
    """The same x_T upsampled in overlapping tiles of half the side and all at once; for samplers that draw no other noise."""
    found: dict[str, list[float]] = {}
    for low_size, size, upsampler in zip(subject.pipe.sizes, subject.pipe.sizes[1:], subject.pipe.upsamplers):
        for row, low, true in pairs(n, low_size, size):
            noise = Noise.of(subject.seed, row)
            x_t = noise.at("x_T").normal((3, size, size))
            whole = eight_bit(upsampler.sample(low, noise=noise, x_t=x_t).cpu())  # type: ignore[call-arg]
            parts = eight_bit(tiled(upsampler, low, x_t, low_size // 2, low_size // 8, noise))
            levels = (whole - parts) * 127.5
            name = f"upsampler {size}, tiles of {size // 2}"
            found.setdefault(f"{name}, RMS difference in levels of 255", []).append(float(levels.square().mean().sqrt()))
            found.setdefault(f"{name}, greatest difference in levels", []).append(float(levels.abs().max()))
            found.setdefault(f"{name}, PSNR minus the whole's, dB", []).append(float(psnr(parts, true) - psnr(whole, true)))
    return {name: interval(values) for name, values in found.items()}


@torch.no_grad()
def tiled(upsampler: Any, low: Float[Tensor, "1 3 h w"], x_t: Tensor, tile: int, overlap: int, noise: Noise) -> Tensor:
    """`low` upsampled in square tiles, cut from one noise x_t (1, 3, H, W) and joined in the middle of their overlaps.

    tile, overlap: low-resolution pixels.
    """
    scale, out = upsampler.scale, torch.empty_like(x_t)
    downs, rights = (
        sorted({min(start, side - tile) for start in range(0, side - overlap, tile - overlap)}) for side in low.shape[-2:]
    )
    for y in downs:
        for x in rights:
            window = (..., slice(y * scale, (y + tile) * scale), slice(x * scale, (x + tile) * scale))
            made = upsampler.sample(low[..., y : y + tile, x : x + tile], noise=noise, x_t=x_t[window]).cpu()
            top, left = ((overlap // 2 if start else 0) for start in (y, x))
            keep = (..., slice(top * scale, None), slice(left * scale, None))
            out[window][keep] = made[keep]
    return out


class Scores:
    """PSNR and relative gradient magnitude of pictures as a user gets them, in 8 bits, by name."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {}

    def add(self, name: str, images: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]) -> None:
        images = eight_bit(images)
        self._found.setdefault(f"{name}, PSNR dB", []).extend(psnr(images, truth).tolist())
        ratio = sharpness(images) / sharpness(truth)
        self._found.setdefault(f"{name}, gradient magnitude / truth's", []).extend(ratio.tolist())

    def numbers(self) -> Numbers:
        return {name: interval(values) for name, values in self._found.items()}


def pairs(n: int, low_size: int, size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(row, small, large) of n held-out pictures by hash, one at a time."""
    small, large = EmojiData("heldout", low_size), EmojiData("heldout", size)
    for row in tqdm(by_hash(small.keys, small.captions, n), desc=f"{low_size} -> {size}", file=sys.stderr, disable=None):
        low, true = small.batch([row]).images, large.batch([row]).images
        assert low is not None and true is not None
        yield row, low, true

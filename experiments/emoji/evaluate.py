"""The numbers of an emoji pipeline, each with its n and a bootstrap 95 % interval.

    python -m experiments.emoji.evaluate [MODEL] [--n 100] [--pictures 20] [--json FILE]

Train and held-out captions are kept apart; the held-out ones entered no training.  "Nearest" is the plain RGB distance of
64-pixel pictures among all 3,664 emoji, so the judge is not the CLIP that drew the picture.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from experiments.emoji.data import EmojiData
from unclip.data.embeddings import Embeddings, precompute
from unclip.pipeline import UnCLIP
from unclip.randomness import Noise
from unclip.types import Cond, best_of
from upsamplers.filters import resize

Numbers = dict[str, dict[str, float]]


def interval(values: Sequence[float] | Tensor, draws: int = 2000) -> dict[str, float]:
    """Mean, n and the bootstrap 95 % interval of per-item numbers."""
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(0, len(array), (draws, len(array)))
    low, high = np.quantile(array[picks].mean(1), [0.025, 0.975])
    return {"mean": float(array.mean()), "low": float(low), "high": float(high), "n": len(array)}


def by_hash(keys: Sequence[str], captions: Sequence[str], n: int) -> list[int]:
    """The first n samples in the order of their caption's SHA-1: a choice that nobody made."""
    order = sorted(range(len(keys)), key=lambda i: hashlib.sha1(captions[i].encode()).hexdigest())
    return order[:n]


def retrieval(embeddings: Embeddings, rows: Sequence[int]) -> Numbers:
    """Text -> image over all pictures, top-1 and top-5, for the captions `rows`."""
    assert embeddings.text is not None
    images, texts = normalize(embeddings.image_embed, dim=-1), normalize(embeddings.text.embed, dim=-1)
    scores = texts[list(rows)] @ images.T
    own = scores[torch.arange(len(rows)), torch.tensor(rows)]
    rank = (scores > own[:, None]).sum(1)
    return {f"text to image, top-{k}": interval((rank < k).float()) for k in (1, 5)}


@torch.no_grad()
def prior_cosines(pipe: UnCLIP, data: EmojiData, embeddings: Embeddings, rows: Sequence[int]) -> Numbers:
    """Cosine of drawn to true embeddings, beside what costs nothing: the text embedding, the mean, another caption's draw."""
    assert embeddings.text is not None
    text = pipe.clip.encode_text([data.captions[i] for i in rows])
    true = embeddings.image_embed[list(rows)]
    noise = Noise.of(0, range(len(rows))).at("evaluate")
    drawn = best_of(pipe.prior.sample(text, noise=noise, n=pipe.candidates), text.embed)

    def cosine(x: Tensor) -> dict[str, float]:
        return interval(torch.cosine_similarity(x, true, dim=-1))

    return {
        "prior, cosine to the true embedding": cosine(drawn),
        "  another caption's draw": cosine(drawn.roll(1, dims=0)),
        "  the text embedding": cosine(text.embed),
        "  the mean embedding": cosine(embeddings.image_embed.mean(0, keepdim=True).expand_as(true)),
    }


def nearest(images: Tensor, data: EmojiData, rows: Sequence[int]) -> Tensor:
    """Rank (from 0) of the true picture among all, by RGB distance at 64 pixels."""
    every = data.batch(range(len(data))).images
    assert every is not None
    distance = torch.cdist(images.flatten(1), every.flatten(1))
    own = distance[torch.arange(len(rows)), torch.tensor(rows)]
    return (distance < own[:, None]).sum(1)


@torch.no_grad()
def pictures(pipe: UnCLIP, data: EmojiData, embeddings: Embeddings, rows: Sequence[int]) -> Numbers:
    """Is the drawn picture nearest the true one?  With the true embedding (decoder alone), and from the caption (chain)."""
    size, noise = pipe.decoder.image_size, Noise.of(0, range(len(rows)))
    decoded, chain = [], []
    for start in tqdm(range(0, len(rows), 25), desc="pictures", file=sys.stderr):
        part = rows[start : start + 25]
        captions = [data.captions[i] for i in part]
        text = pipe.clip.encode_text(captions) if "text" in pipe.decoder.takes else None
        cond = Cond(embeddings.image_embed[list(part)], text)
        decoded.append(pipe.decoder.sample(cond, noise=noise[start : start + len(part)].at("decoder")))
        chain.append(pipe.generate(captions, seed=0, first=start, size=size).images)
    found: Numbers = {}
    for name, images in (("decoder alone", decoded), ("full chain", chain)):
        rank = nearest(torch.cat(images), data, rows)
        found |= {f"{name}, nearest picture top-{k}": interval((rank < k).float()) for k in (1, 5)}
    return found


@torch.no_grad()
def upsampling(pipe: UnCLIP, rows: Sequence[int]) -> Numbers:
    """PSNR and mean gradient magnitude (relative to the truth) of each upsampler on clean small pictures; bicubic beside it."""
    found: Numbers = {}
    for low_size, size, upsampler in zip(pipe.sizes, pipe.sizes[1:], pipe.upsamplers):
        low_data, data = EmojiData("heldout", low_size), EmojiData("heldout", size)
        results: dict[str, list[float]] = {}
        for i in tqdm(rows, desc=f"upsampler {size}", file=sys.stderr):
            low, true = low_data.batch([i]).images, data.batch([i]).images
            assert low is not None and true is not None
            ours = upsampler.sample(low, noise=Noise.of(0, i))
            for name, x in (("", ours), (", bicubic", resize(low, (size, size)).clamp(-1, 1))):
                results.setdefault(f"upsampler {size}{name}, PSNR dB", []).append(psnr(x, true))
                results.setdefault(f"upsampler {size}{name}, sharpness", []).append(sharpness(x) / sharpness(true))
        found |= {name: interval(values) for name, values in results.items()}
    return found


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise in dB of pictures in [-1, 1]."""
    return float(-10 * torch.log10(((a - b) / 2).square().mean()))


def sharpness(x: Tensor) -> float:
    """Mean magnitude of the differences of neighbouring pixels."""
    return float((x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()) / 2)


def evaluate(model: str, n: int, n_upsampling: int) -> dict[str, Any]:
    pipe, data = UnCLIP.from_pretrained(model), EmojiData("all", 64)
    embeddings = precompute(pipe.clip, data)
    splits = {split: set(EmojiData(split, 64).keys) for split in ("train", "heldout")}
    result: dict[str, Any] = {"model": model}
    for split, keys in splits.items():
        members = [i for i, key in enumerate(data.keys) if key in keys]
        order = by_hash([data.keys[i] for i in members], [data.captions[i] for i in members], n)
        rows = [members[i] for i in order]
        result[split] = (
            retrieval(embeddings, members)
            | prior_cosines(pipe, data, embeddings, rows)
            | pictures(pipe, data, embeddings, rows)
        )
    if n_upsampling:
        result["heldout"] |= upsampling(pipe, range(n_upsampling))
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.emoji.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="emoji")
    parser.add_argument("--n", type=int, default=100, help="captions per split (default 100)")
    parser.add_argument("--pictures", type=int, default=20, help="held-out pictures for the upsamplers (default 20)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args(arguments)
    try:
        result = evaluate(options.model, options.n, options.pictures)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for split in ("train", "heldout"):
        print(f"\n{split}")
        for name, row in result[split].items():
            print(f"  {name:44} {row['mean']:7.3f}  [{row['low']:.3f}, {row['high']:.3f}]  n = {row['n']}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

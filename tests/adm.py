"""ADM's networks written anew from the paper (3, 4.1), under the names that its public files give to their tensors.

`FILES` are the public ones with their published flags; `tiny` are the same with few channels.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate


class Flags(NamedTuple):
    """As the published commands give them; attention by the side of its pictures, in pixels."""

    size: int
    channels: int
    depth: int
    multiple: tuple[float, ...]
    attention: tuple[int, ...] = (32, 16, 8)
    heads: int | None = None  # None = 64 channels each
    new_order: bool = False
    classes: int | None = 1000
    in_channels: int = 3
    pool: bool = False  # a classifier
    counts: tuple[int, int] = (0, 0)  # tensors and parameters, as counted on the original code


M256, M512 = (1, 1, 2, 2, 4, 4), (0.5, 1, 1, 2, 2, 4, 4)
LSUN = Flags(256, 256, 2, M256, classes=None, counts=(566, 552_814_086))
FILES = {
    "64x64_diffusion.pt": Flags(64, 192, 3, (1, 2, 3, 4), new_order=True, counts=(541, 295_904_454)),
    "128x128_diffusion.pt": Flags(128, 256, 2, (1, 1, 2, 3, 4), heads=4, counts=(493, 421_529_606)),
    "256x256_diffusion.pt": Flags(256, 256, 2, M256, counts=(567, 553_838_086)),
    "256x256_diffusion_uncond.pt": LSUN,
    "512x512_diffusion.pt": Flags(512, 256, 2, M512, counts=(645, 558_997_638)),
    "lsun_bedroom.pt": LSUN,
    "lsun_cat.pt": LSUN,
    "lsun_horse.pt": LSUN,
    "lsun_horse_nodropout.pt": LSUN,
    "64_256_upsampler.pt": Flags(256, 192, 2, M256, heads=4, in_channels=6, counts=(567, 311_795_910)),
    "128_512_upsampler.pt": Flags(512, 192, 2, M256, (32, 16), in_channels=6, counts=(537, 308_835_270)),
    "64x64_classifier.pt": Flags(64, 128, 4, (1, 2, 3, 4), pool=True, counts=(307, 65_438_568)),
    "128x128_classifier.pt": Flags(128, 128, 2, (1, 1, 2, 3, 4), pool=True, counts=(221, 42_568_040)),
    "256x256_classifier.pt": Flags(256, 128, 2, M256, pool=True, counts=(249, 54_096_360)),
    "512x512_classifier.pt": Flags(512, 128, 2, M512, pool=True, counts=(281, 54_448_360)),
}


def tiny(name: str) -> Flags:
    """Two or three levels of few channels, with what sets this file apart: its heads, its order, its time width."""
    flags = FILES[name]._replace(classes=None if FILES[name].classes is None else 10)
    if flags.pool:
        return flags._replace(channels=32, multiple=(1, 1, 1, 2), attention=(flags.size // 8,))
    multiple = (0.5, 1, 1) if flags.multiple == M512 else (1, 2)
    deepest = flags.size // 2 ** (len(multiple) - 1)
    return flags._replace(channels=64, depth=1, multiple=multiple, attention=(deepest,))


class Block(nn.Module):
    """A residual block; `resample` is done by both branches."""

    def __init__(self, width_in: int, width: int, emb: int, resample: str = ""):
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(nn.GroupNorm(32, width_in), nn.SiLU(), nn.Conv2d(width_in, width, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * width))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, width), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(width, width, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        def resized(y: Tensor) -> Tensor:
            if self.resample == "down":
                return avg_pool2d(y, 2)
            return interpolate(y, scale_factor=2, mode="nearest") if self.resample == "up" else y

        norm, act, conv = self.in_layers
        h = conv(resized(act(norm(x))))
        scale, shift = self.emb_layers(emb)[..., None, None].chunk(2, dim=1)
        norm, *rest = self.out_layers
        h = norm(h) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        return self.skip_connection(resized(x)) + h


def attend(qkv: Tensor, heads: int, new_order: bool) -> Tensor:
    """(b, 3 w, n) -> (b, w, n), written out, with the rows of q, k and v in either order."""
    b, rows, n = qkv.shape
    d = rows // 3 // heads
    if new_order:
        q, k, v = (part.reshape(b * heads, d, n) for part in qkv.chunk(3, dim=1))
    else:
        q, k, v = qkv.reshape(b * heads, 3 * d, n).split(d, dim=1)
    weights = torch.softmax(torch.einsum("bdn,bdm->bnm", q, k) / math.sqrt(d), dim=-1)
    return torch.einsum("bnm,bdm->bdn", weights, v).reshape(b, heads * d, n)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int | None, new_order: bool):
        super().__init__()
        self.heads, self.new_order = heads or width // 64, new_order
        self.norm = nn.GroupNorm(32, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return x + self.proj_out(attend(self.qkv(self.norm(flat)), self.heads, self.new_order)).reshape(x.shape)


class Pool(nn.Module):
    """The mean of all pixels asks them and itself; in the new order in all files."""

    def __init__(self, side: int, width: int, out: int):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(width, side**2 + 1))
        self.qkv_proj = nn.Conv1d(width, 3 * width, 1)
        self.c_proj = nn.Conv1d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        x = torch.cat([x.mean(-1, keepdim=True), x], dim=-1) + self.positional_embedding
        return self.c_proj(attend(self.qkv_proj(x), x.shape[1] // 64, True))[..., 0]


class Network(nn.Module):
    """(x, t from 0, labels) -> (b, 6, h, w), or logits of a classifier."""

    def __init__(self, flags: Flags):
        super().__init__()
        self.flags, emb = flags, 4 * flags.channels
        widths = [int(flags.channels * m) for m in flags.multiple]
        self.time_embed = nn.Sequential(nn.Linear(flags.channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        if flags.classes is not None and not flags.pool:
            self.label_emb = nn.Embedding(flags.classes, emb)

        def block(width_in: int, width: int, side: int) -> list[nn.Module]:
            attention = [Attention(width, flags.heads, flags.new_order)] if side in flags.attention else []
            return [Block(width_in, width, emb), *attention]

        width, side = widths[0], flags.size
        inputs: list[list[nn.Module]] = [[nn.Conv2d(flags.in_channels, width, 3, padding=1)]]
        skips = [width]
        for level, target in enumerate(widths):
            for _ in range(flags.depth):
                inputs.append(block(width, target, side))
                width = target
                skips.append(width)
            if level < len(widths) - 1:
                inputs.append([Block(width, width, emb, "down")])
                skips.append(width)
                side //= 2
        self.input_blocks = nn.ModuleList(nn.ModuleList(layers) for layers in inputs)
        middle = [Block(width, width, emb), Attention(width, flags.heads, flags.new_order), Block(width, width, emb)]
        self.middle_block = nn.ModuleList(middle)
        if flags.pool:
            assert flags.classes is not None
            self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), Pool(side, width, flags.classes))
            return
        outputs: list[list[nn.Module]] = []
        for level, target in reversed(list(enumerate(widths))):
            for i in range(flags.depth + 1):
                layers = block(width + skips.pop(), target, side)
                width = target
                if level and i == flags.depth:
                    layers.append(Block(width, width, emb, "up"))
                    side *= 2
                outputs.append(layers)
        self.output_blocks = nn.ModuleList(nn.ModuleList(layers) for layers in outputs)
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, 6, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        half = self.flags.channels // 2
        angles = t[:, None].float() * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        if labels is not None:
            emb = emb + self.label_emb(labels)
        skips = []
        for layers in self.input_blocks:
            x = through(layers, x, emb)
            skips.append(x)
        x = through(self.middle_block, x, emb)
        if self.flags.pool:
            return self.out(x)
        for layers in self.output_blocks:
            x = through(layers, torch.cat([x, skips.pop()], dim=1), emb)
        return self.out(x)


def through(layers: Any, x: Tensor, emb: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x, emb) if isinstance(layer, Block) else layer(x)
    return x


@functools.cache
def full_size(flags: Flags) -> dict[str, Tensor]:
    """Names and shapes of a public file, on the meta device."""
    with torch.device("meta"):
        return Network(flags).state_dict()


def network(name: str, seed: int = 1) -> Network:
    """A tiny one of random weights that keep activations at about their size."""
    made, generator = Network(tiny(name)), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and "embedding" not in key and "label" not in key:
                noise = noise * parameter[0].numel() ** -0.5
            elif key.endswith("weight") and parameter.ndim == 1:
                noise = 1 + 0.3 * noise
            else:
                noise = 0.3 * noise
            parameter.copy_(noise)
    return made.eval()


def save(folder: Path, *names: str, seed: int = 1) -> Path:
    """Tiny files of these public names."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        torch.save(network(name, seed + i).state_dict(), folder / name)
    return folder

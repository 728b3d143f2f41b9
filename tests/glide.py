"""A tiny GLIDE of random weights: its files, and what its networks compute, over the published names of their tensors.

The structure is that of openai/glide-text2im at 69b5307 (unet.py, xf.py, text2im_model.py, gaussian_diffusion.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv1d, conv2d, gelu, group_norm, interpolate, layer_norm, linear, silu

from unclip.randomness import Noise

State = dict[str, Tensor]
HEAD, CHANNELS, DEPTH, MULTIPLE, WIDTH, LAYERS, CONTEXT = 64, 32, 1, (1, 2), 128, 2, 12
MERGES = ["a t", "Ġ c", "Ġc at", "Ġ a", "o r", "Ġ t", "Ġt h", "e l", "l o", "Ġth e", "c at"]
VOCAB = 256 + len(MERGES) + 1
ROUND = {"base": 3, "upsample": 6, "base_inpaint": 7, "upsample_inpaint": 10}  # channels in

SMALL = (
    "out_layers.3.weight",
    "proj_out.weight",
    "c_proj.weight",
    "emb_layers.1.weight",
    "out.2.weight",
)  # that errors stay small


def shapes(n_in: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a network, in its own names."""

    def layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]

    def residual(name: str, a: int, b: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from layer(f"{name}.in_layers.0", a)
        yield from layer(f"{name}.in_layers.2", b, a, 3, 3)
        yield from layer(f"{name}.emb_layers.1", 2 * b, emb)
        yield from layer(f"{name}.out_layers.0", b)
        yield from layer(f"{name}.out_layers.3", b, b, 3, 3)
        if a != b:
            yield from layer(f"{name}.skip_connection", b, a, 1, 1)

    def attention(name: str, a: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from layer(f"{name}.norm", a)
        yield from layer(f"{name}.qkv", 3 * a, a, 1)
        yield from layer(f"{name}.encoder_kv", 2 * a, WIDTH, 1)
        yield from layer(f"{name}.proj_out", a, a, 1)

    emb = 4 * CHANNELS
    yield "token_embedding.weight", (VOCAB, WIDTH)
    yield "positional_embedding", (CONTEXT, WIDTH)
    yield "padding_embedding", (CONTEXT, WIDTH)
    for i in range(LAYERS):
        at = f"transformer.resblocks.{i}"
        yield from layer(f"{at}.attn.c_qkv", 3 * WIDTH, WIDTH)
        yield from layer(f"{at}.attn.c_proj", WIDTH, WIDTH)
        yield from layer(f"{at}.ln_1", WIDTH)
        yield from layer(f"{at}.mlp.c_fc", 4 * WIDTH, WIDTH)
        yield from layer(f"{at}.mlp.c_proj", WIDTH, 4 * WIDTH)
        yield from layer(f"{at}.ln_2", WIDTH)
    yield from layer("final_ln", WIDTH)
    yield from layer("transformer_proj", emb, WIDTH)
    yield from layer("time_embed.0", emb, CHANNELS)
    yield from layer("time_embed.2", emb, emb)
    yield from layer("input_blocks.0.0", CHANNELS, n_in, 3, 3)
    a, b = (CHANNELS * m for m in MULTIPLE)  # two levels, of which the lower one attends
    yield from residual("input_blocks.1.0", a, a)
    yield from residual("input_blocks.2.0", a, a)
    yield from residual("input_blocks.3.0", a, b)
    yield from attention("input_blocks.3.1", b)
    yield from residual("middle_block.0", b, b)
    yield from attention("middle_block.1", b)
    yield from residual("middle_block.2", b, b)
    for n, skip in enumerate((b, a)):
        yield from residual(f"output_blocks.{n}.0", b + skip, b)
        yield from attention(f"output_blocks.{n}.1", b)
    yield from residual("output_blocks.1.2", b, b)
    yield from residual("output_blocks.2.0", b + a, a)
    yield from residual("output_blocks.3.0", a + a, a)
    yield from layer("out.0", a)
    yield from layer("out.2", 6, a, 3, 3)


def state(name: str) -> State:
    """Weights of one of the four networks, of about the size that keeps activations in place."""
    generator = torch.Generator().manual_seed(list(ROUND).index(name))

    def draw(key: str, shape: tuple[int, ...]) -> Tensor:
        noise = torch.randn(shape, generator=generator)
        if key.endswith("embedding.weight") or key.endswith("_embedding"):
            return noise
        if len(shape) > 1:
            return (0.3 if key.endswith(SMALL) else 1.0) * noise * math.prod(shape[1:]) ** -0.5
        return 1 + 0.3 * noise if key.endswith("weight") else 0.3 * noise

    return {key: draw(key, shape) for key, shape in shapes(ROUND[name])}


def save(folder: Path, *names: str) -> Path:
    """The networks' files, and the vocabulary as GPT-2's is stored."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        torch.save(state(name), folder / f"{name}.pt")
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return folder


def vocabulary() -> dict[str, int]:
    """Tokens and ids: bytes in the order in which GPT-2 has them, merges, the end that pads."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in printed] + [chr(256 + k) for k in range(256 - len(printed))]
    words = [*letters, *(merge.replace(" ", "") for merge in MERGES), "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}


def save_ids(path: Path) -> None:
    path.write_text(json.dumps(vocabulary()))


class Network:
    """(x, t, tokens, mask) -> (b, 6, h, w), t counted from 0; in float64, but for the angles of the timestep."""

    def __init__(self, name: str):
        self.state = {key: x.double() for key, x in state(name).items()}

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor,
        mask: Tensor,
        known: tuple[Tensor, Tensor] | None = None,
        low: Tensor | None = None,
    ) -> Tensor:
        x = x.double()
        if known is not None:
            x = torch.cat([x, known[0] * known[1], known[1].to(x)], dim=1)
        if low is not None:
            x = torch.cat([x, interpolate(low.double(), x.shape[-2:], mode="bilinear", align_corners=False)], dim=1)
        text = self.text(tokens, mask)
        half = CHANNELS // 2
        angles = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = self.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1).double())
        emb = self.linear("time_embed.2", silu(emb)) + self.linear("transformer_proj", text[:, -1])
        context = text.transpose(1, 2)
        h = self.conv("input_blocks.0.0", x)
        skips = [h]
        for n, down in ((1, False), (2, True), (3, False)):
            h = self.residual(f"input_blocks.{n}.0", h, emb, (lambda y: avg_pool2d(y, 2)) if down else None)
            h = self.attention("input_blocks.3.1", h, context) if n == 3 else h
            skips.append(h)
        h = self.residual("middle_block.0", h, emb)
        h = self.residual("middle_block.2", self.attention("middle_block.1", h, context), emb)
        for n in range(4):
            h = self.residual(f"output_blocks.{n}.0", torch.cat([h, skips.pop()], dim=1), emb)
            h = self.attention(f"output_blocks.{n}.1", h, context) if n < 2 else h
            if n == 1:
                h = self.residual("output_blocks.1.2", h, emb, lambda y: interpolate(y, scale_factor=2, mode="nearest"))
        return self.conv("out.2", silu(self.norm("out.0", h)))

    def text(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.state["token_embedding.weight"][tokens] + self.state["positional_embedding"]
        x = torch.where(mask[..., None], x, self.state["padding_embedding"])
        for i in range(LAYERS):
            at = f"transformer.resblocks.{i}"
            qkv = self.linear(f"{at}.attn.c_qkv", self.ln(f"{at}.ln_1", x)).unflatten(-1, (WIDTH // HEAD, 3 * HEAD))
            q, k, v = qkv.split(HEAD, dim=-1)
            weight = torch.einsum("bthc,bshc->bhts", q, k * HEAD**-0.5).softmax(-1)
            x = x + self.linear(f"{at}.attn.c_proj", torch.einsum("bhts,bshc->bthc", weight, v).flatten(2))
            x = x + self.linear(f"{at}.mlp.c_proj", gelu(self.linear(f"{at}.mlp.c_fc", self.ln(f"{at}.ln_2", x))))
        return self.ln("final_ln", x)

    def residual(self, at: str, x: Tensor, emb: Tensor, resample: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        h = silu(self.norm(f"{at}.in_layers.0", x))
        if resample is not None:
            x, h = resample(x), resample(h)
        h = self.conv(f"{at}.in_layers.2", h)
        scale, shift = self.linear(f"{at}.emb_layers.1", silu(emb))[..., None, None].chunk(2, dim=1)
        h = self.conv(f"{at}.out_layers.3", silu(self.norm(f"{at}.out_layers.0", h) * (1 + scale) + shift))
        return h + (self.conv(f"{at}.skip_connection", x, 0) if f"{at}.skip_connection.weight" in self.state else x)

    def attention(self, at: str, x: Tensor, context: Tensor) -> Tensor:
        flat = x.flatten(2)
        qkv = self.conv_1d(f"{at}.qkv", self.norm(f"{at}.norm", flat)).unflatten(1, (-1, 3 * HEAD))
        q, k, v = qkv.split(HEAD, dim=2)
        text_k, text_v = self.conv_1d(f"{at}.encoder_kv", context).unflatten(1, (-1, 2 * HEAD)).split(HEAD, dim=2)
        k, v = torch.cat([text_k, k], dim=-1), torch.cat([text_v, v], dim=-1)
        weight = torch.einsum("bhct,bhcs->bhts", q, k * HEAD**-0.5).softmax(-1)
        out = torch.einsum("bhts,bhcs->bhct", weight, v).flatten(1, 2)
        return (flat + self.conv_1d(f"{at}.proj_out", out)).view_as(x)

    def both(self, at: str) -> tuple[Tensor, Tensor]:
        return self.state[f"{at}.weight"], self.state[f"{at}.bias"]

    def linear(self, at: str, x: Tensor) -> Tensor:
        return linear(x, *self.both(at))

    def conv(self, at: str, x: Tensor, padding: int = 1) -> Tensor:
        return conv2d(x, *self.both(at), padding=padding)

    def conv_1d(self, at: str, x: Tensor) -> Tensor:
        return conv1d(x, *self.both(at))

    def norm(self, at: str, x: Tensor) -> Tensor:
        return group_norm(x, 32, *self.both(at))

    def ln(self, at: str, x: Tensor) -> Tensor:
        return layer_norm(x, (WIDTH,), *self.both(at))


class Diffusion:
    """The respaced process: t counts the steps that are taken, `times` is what the network is told."""

    def __init__(self, schedule: str, times: list[int]):
        u = torch.arange(1001, dtype=torch.float64) / 1000
        bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        cosine = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
        betas = cosine if schedule == "cosine" else torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        self.times = times
        self.bar = (1 - betas).cumprod(0)[times]
        self.before = torch.cat([torch.ones(1, dtype=torch.float64), self.bar[:-1]])
        self.betas = 1 - self.bar / self.before
        variance = self.betas * (1 - self.before) / (1 - self.bar)
        self.log_variance = torch.cat([variance[1:2], variance[1:]]).log()

    def x0(self, x: Tensor, eps: Tensor, k: int) -> Tensor:
        bar = float(self.bar[k])
        return ((x - (1 - bar) ** 0.5 * eps) / bar**0.5).clamp(-1, 1)

    def p_sample(self, x: Tensor, o: Tensor, k: int, x0: Tensor, noise: Noise) -> Tensor:
        beta, bar, before = (float(table[k]) for table in (self.betas, self.bar, self.before))
        mean = before**0.5 * beta / (1 - bar) * x0 + (1 - before) * (1 - beta) ** 0.5 / (1 - bar) * x
        if k == 0:
            return mean
        fraction = (o + 1) / 2
        log = fraction * math.log(beta) + (1 - fraction) * float(self.log_variance[k])
        return mean + (0.5 * log).exp() * noise.normal(x.shape[1:])

    def ddim(self, x: Tensor, k: int, x0: Tensor) -> Tensor:
        bar, before = float(self.bar[k]), float(self.before[k])
        eps = (x - bar**0.5 * x0) / (1 - bar) ** 0.5
        return before**0.5 * x0 + (1 - before) ** 0.5 * eps

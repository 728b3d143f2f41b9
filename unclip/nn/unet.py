"""The ADM / GLIDE UNet: residual blocks modulated by an embedding, attention over pixels and context in one softmax.

It knows x, one embedding vector per picture and context tokens; who made them is the stage's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import (
    avg_pool2d,
    interpolate,
    pixel_shuffle,
    pixel_unshuffle,
    silu,
)

from unclip.config import AtMost100, Config, Levels
from unclip.nn.cpu.attention import attention
from unclip.nn.cpu.convolution import Conv3x3
from unclip.nn.cpu.linear import Linear

Resample = Literal["none", "down", "up"]
Layers = Iterator[Tensor] | None  # context keys and values, one per attention layer, in the order of use


class UNetConfig(Config, frozen=True, kw_only=True):
    """Width, depth and attention.  How many channels come in and go out, and how wide the context is, follows from the stage."""

    channels: int = 192
    depth: AtMost100 = 3  # residual blocks per level
    multiple: Levels = (1, 2, 3, 4)  # channels of each level, the first at full resolution
    attention: tuple[int, ...] = ()  # levels with attention; the middle has it when any level does
    head_channels: int = 64
    heads: int | None = None  # as many everywhere, in place of head_channels (ADM's 128 and its upsamplers)
    dropout: float = 0.0
    patch: AtMost100 = 1  # space-to-depth at the input and back at the output; 1 in the paper
    embed_channels: int | None = None  # width of `emb`; None = 4 * channels
    time_channels: int | None = None  # width of the timestep's sinusoid; None = channels
    modulation: Literal["scale_shift", "add"] = "scale_shift"  # AdaGN, or the embedding added

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels < 1 or self.channels % 32:
            raise ValueError(f"channels is {self.channels}; group norm has 32 groups, so it must be a multiple of 32")
        if self.patch < 1 or self.depth < 1 or not self.multiple or min(self.multiple) < 1:
            raise ValueError("a UNet needs patch >= 1, depth >= 1 and at least one level in multiple, each >= 1")
        if any(not 0 <= level < len(self.multiple) for level in self.attention):
            raise ValueError(f"attention names levels of multiple, 0 to {len(self.multiple) - 1}; got {self.attention}")
        widths = {self.channels * self.multiple[level] for level in self.attention}
        if self.attention:
            widths.add(self.channels * self.multiple[-1])
        name, size = ("head_channels", self.head_channels) if self.heads is None else ("heads", self.heads)
        if size < 1 or any(width % size for width in widths):
            raise ValueError(f"attention widths {sorted(widths)} must be multiples of {name} {size}")

    @property
    def multiple_of(self) -> int:
        """What the height and width of pictures must divide by."""
        return self.patch * 2 ** (len(self.multiple) - 1)

    @property
    def emb(self) -> int:
        """Width of the embedding that modulates every block."""
        return self.embed_channels or 4 * self.channels

    @property
    def sinusoid(self) -> int:
        """Width of the timestep's sinusoid."""
        return self.time_channels or self.channels

    def check_context(self, width: int | None) -> None:
        """ValueError for context tokens that no attention would see."""
        if width is not None and not self.attention:
            raise ValueError("context enters through attention: name the levels with attention, or leave the context out")


class UNetEncoder(nn.Module):
    """The encoder half and the middle: (x, emb, context) -> features and skips.  h and w must divide by `multiple_of`.

    Alone it is the body of a classifier (ADM 4.1); tensors have the names that they have in a UNet.
    """

    def __init__(self, config: UNetConfig, in_channels: int = 3, context_width: int | None = None):
        super().__init__()
        config.check_context(context_width)
        self.config, self.context_width = config, context_width
        self.multiple_of = config.multiple_of
        widths = [config.channels * m for m in config.multiple]
        width = widths[0]
        self.input = nn.Conv2d(in_channels * config.patch**2, width, 3, padding=1)
        self.down = nn.ModuleList()
        self.skip_widths = [width]
        for level, target in enumerate(widths):
            for _ in range(config.depth):
                self.down.append(self._block(width, target, level))
                width = target
                self.skip_widths.append(width)
            if level < len(widths) - 1:
                self.down.append(self._block(width, width, level, "down"))
                self.skip_widths.append(width)
        first = ResidualBlock(config, width, width, bool(config.attention), "none", context_width)
        self.middle = nn.ModuleList([first, ResidualBlock(config, width, width, False)])

    def _block(self, width_in: int, width: int, level: int, resample: Resample = "none") -> ResidualBlock:
        attends = level in self.config.attention and resample == "none"
        return ResidualBlock(self.config, width_in, width, attends, resample, self.context_width)

    def encode_context(self, context: Float[Tensor, "b l c"]) -> list[Tensor]:
        """Keys and values of the context for every attention layer, once per picture: list of (b, l, 2 width)."""
        if self.context_width is None:
            raise ValueError("this UNet takes no context: it was built without context_width")
        attentions = [block.attention for block in self._blocks() if block.attention is not None]
        return [attention.context(context) for attention in attentions]  # type: ignore[misc]

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        emb: Float[Tensor, "b e"],
        context: list[Tensor] | None = None,
        mask: Bool[Tensor, "b l"] | None = None,
    ) -> Tensor:
        """Features (b, width, h', w') at the lowest resolution.  `context` comes from `encode_context`; `mask`: True = real."""
        return self._encode(x, silu(emb), iter(context) if context is not None else None, mask)[0]

    def _encode(self, x: Tensor, emb: Tensor, layers: Layers, mask: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Features, and what the decoder half takes up again.  `emb` comes with SiLU applied."""
        if x.shape[-1] % self.multiple_of or x.shape[-2] % self.multiple_of:
            raise ValueError(f"height and width must be multiples of {self.multiple_of}; got {x.shape[-2]}x{x.shape[-1]}")
        x = self.input(pixel_unshuffle(x, self.config.patch))  # (b, channels, h / patch, w / patch)
        skips = [x]
        for block in self.down:
            x = block(x, emb, layers, mask)
            skips.append(x)
        for block in self.middle:
            x = block(x, emb, layers, mask)
        return x, skips

    def _blocks(self) -> list[ResidualBlock]:
        return [*self.down, *self.middle]


class UNet(UNetEncoder):
    """(x, emb, context) -> output of x's size.  h and w must divide by `multiple_of`."""

    def __init__(self, config: UNetConfig, in_channels: int = 3, out_channels: int = 3, context_width: int | None = None):
        super().__init__(config, in_channels, context_width)
        widths = [config.channels * m for m in config.multiple]
        width, skips = widths[-1], list(self.skip_widths)
        self.up = nn.ModuleList()
        for level, target in reversed(list(enumerate(widths))):
            for _ in range(config.depth + 1):
                self.up.append(self._block(width + skips.pop(), target, level))
                width = target
            if level > 0:
                self.up.append(self._block(width, width, level, "up"))
        self.norm = nn.GroupNorm(32, width)
        self.output = zero(nn.Conv2d(width, out_channels * config.patch**2, 3, padding=1))

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        emb: Float[Tensor, "b e"],
        context: list[Tensor] | None = None,
        mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b o h w"]:
        """`context` comes from `encode_context`; `mask` (b, l) is True where a context token is real."""
        layers = iter(context) if context is not None else None
        emb = silu(emb)
        x, skips = self._encode(x, emb, layers, mask)
        for block in self.up:
            if block.resample == "none":
                x = torch.cat([x, skips.pop()], dim=1)  # (b, width + skip, h', w')
            x = block(x, emb, layers, mask)
        return pixel_shuffle(self.output(_silu(self.norm(x))), self.config.patch)  # (b, o, h, w)

    def _blocks(self) -> list[ResidualBlock]:
        return [*super()._blocks(), *self.up]


class ResidualBlock(nn.Module):
    """Residual block (BigGAN resampling, AdaGN), then attention where the level has it (ADM 3)."""

    def __init__(
        self,
        config: UNetConfig,
        width_in: int,
        width: int,
        attends: bool,
        resample: Resample = "none",
        context_width: int | None = None,
    ):
        super().__init__()
        self.resample, self.modulation = resample, config.modulation
        self.norm1 = nn.GroupNorm(32, width_in)
        self.conv1 = Conv3x3(width_in, width)
        self.emb = Linear(config.emb, (2 if config.modulation == "scale_shift" else 1) * width)
        self.norm2 = nn.GroupNorm(32, width)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = zero(Conv3x3(width, width))
        self.skip = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)
        heads = config.heads or width // config.head_channels
        self.attention = SpatialAttention(width, heads, context_width) if attends else None

    def forward(self, x: Tensor, emb: Tensor, layers: Layers, mask: Tensor | None = None) -> Tensor:
        """`emb` comes with SiLU applied; `layers` yields this attention's context keys and values."""
        h = _silu(self.norm1(x))
        # Resampling is on both branches, in the main one before its first convolution.
        if self.resample == "up":
            x, h = interpolate(x, scale_factor=2, mode="nearest"), self.conv1.doubled(h)
        elif self.resample == "down":
            x, h = avg_pool2d(x, 2), self.conv1(avg_pool2d(h, 2))
        else:
            h = self.conv1(h)
        shift = self.emb(emb)[:, :, None, None]  # (b, width or 2 width, 1, 1)
        if self.modulation == "scale_shift":
            scale, shift = shift.chunk(2, dim=1)  # each (b, width, 1, 1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(_add(h, shift))
        h = _add(self.conv2(self.dropout(_silu(h))), self.skip(x))
        if self.attention is None:
            return h
        return self.attention(h, None if layers is None else next(layers), mask)


class SpatialAttention(nn.Module):
    """Pixels attend to context tokens and pixels in one softmax (GLIDE 2.1); context keys come first."""

    def __init__(self, width: int, heads: int, context_width: int | None):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(32, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.context = nn.Linear(context_width, 2 * width) if context_width is not None else None
        self.proj = zero(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # (b, h w, width)
        visible = None
        if context is not None:
            context_k, context_v = context.to(k.dtype).chunk(2, dim=-1)  # each (b, l, width)
            k, v = torch.cat([context_k, k], dim=1), torch.cat([context_v, v], dim=1)
            if mask is not None:  # (b, l) over the context; pixels are always visible
                visible = nn.functional.pad(mask, (0, h * w), value=True)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))  # (b, heads, l, d)
        out = attention(q, k, v, visible)  # (b, heads, h w, head_channels)
        out = out.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, (h, w))  # (b, width, h, w), channels_last, no copy
        return _add(self.proj(out.contiguous() if x.is_contiguous() else out), x)


# In inference what a layer returned is written over: on the CPU a large new tensor costs as much as the sum itself.


def _silu(x: Tensor) -> Tensor:
    return silu(x, inplace=not torch.is_grad_enabled())


def _add(x: Tensor, y: Tensor) -> Tensor:
    return x + y if torch.is_grad_enabled() or x.dtype != y.dtype else x.add_(y)


def zero(module: nn.Module) -> nn.Module:
    """The same layer with all weights zero: a residual branch that starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module

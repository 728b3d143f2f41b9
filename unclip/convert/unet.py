"""The ADM UNet as others store it: by diffusers' blocks, or in the three lists of the original code.

Karlo, Kandinsky 2.1, GLIDE and ADM itself share these layouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from unclip.nn.unet import UNetConfig
from unclip.weights import Lazy

from .table import Row, as_convolution, heads_last, row, same, under

# Rows of attention in ADM: q, k and v of one head after the other, or ("new order") all of q, then all of k and v.
Layout = Literal["diffusers", "adm", "adm_new_order"]

ENDS = {  # ours: diffusers, adm
    "input": ("conv_in", "input_blocks.0.0"),
    "norm": ("conv_norm_out", "out.0"),
    "output": ("conv_out", "out.2"),
}
TIME = {"hidden": ("time_embedding.linear_1", "time_embed.0"), "out": ("time_embedding.linear_2", "time_embed.2")}
RESIDUAL = {
    "norm1": ("norm1", "in_layers.0"),
    "conv1": ("conv1", "in_layers.2"),
    "emb": ("time_emb_proj", "emb_layers.1"),
    "norm2": ("norm2", "out_layers.0"),
    "conv2": ("conv2", "out_layers.3"),
    "skip": ("conv_shortcut", "skip_connection"),
}


class Place(NamedTuple):
    """Where a block of ours and, if it has one, its attention stand in the two layouts."""

    ours: str
    residual: tuple[str, str]
    attention: tuple[str, str]


def places(config: UNetConfig) -> Iterator[Place]:
    """Every block in our order."""
    levels, depth = len(config.multiple), config.depth
    block = 0
    for level in range(levels):
        for i in range(depth):
            theirs, adm = f"down_blocks.{level}", f"input_blocks.{block + 1}"
            yield Place(f"down.{block}", (f"{theirs}.resnets.{i}", f"{adm}.0"), (f"{theirs}.attentions.{i}", f"{adm}.1"))
            block += 1
        if level < levels - 1:
            names = (f"down_blocks.{level}.downsamplers.0", f"input_blocks.{block + 1}.0")
            yield Place(f"down.{block}", names, ("", ""))
            block += 1
    yield Place("middle.0", ("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1"))
    yield Place("middle.1", ("mid_block.resnets.1", f"middle_block.{2 if config.attention else 1}"), ("", ""))
    block = out = 0
    for up, level in enumerate(reversed(range(levels))):
        for i in range(depth + 1):
            theirs, adm = f"up_blocks.{up}", f"output_blocks.{out}"
            yield Place(f"up.{block}", (f"{theirs}.resnets.{i}", f"{adm}.0"), (f"{theirs}.attentions.{i}", f"{adm}.1"))
            block, out = block + 1, out + 1
        if level > 0:  # the original puts it behind the last block of its level
            names = (f"up_blocks.{up}.upsamplers.0", f"output_blocks.{out - 1}.{2 if level in config.attention else 1}")
            yield Place(f"up.{block}", names, ("", ""))
            block += 1


def unet_table(config: UNetConfig, layout: Layout) -> dict[str, Row]:
    """Our UNet's tensors."""
    at = 0 if layout == "diffusers" else 1
    table = {f"{ours}.*": row(f"{theirs[at]}.*") for ours, theirs in ENDS.items()}
    for place in places(config):
        for ours, theirs in RESIDUAL.items():
            table[f"{place.ours}.{ours}.*"] = row(f"{place.residual[at]}.{theirs[at]}.*")
        for ours, r in ATTENTION[layout](place.attention[at], config).items():
            table[f"{place.ours}.attention.{ours}.*"] = r
    return table


def time_table(layout: Layout) -> dict[str, Row]:
    """Our TimestepEmbedding's tensors."""
    return {f"{ours}.*": row(f"{theirs[0 if layout == 'diffusers' else 1]}.*") for ours, theirs in TIME.items()}


def denoising(
    unet: UNetConfig, layout: Layout, theirs: str, time: str = "network.time.", net: str = "network.unet."
) -> dict[str, Row]:
    """A UNet with its timestep embedding, under a prefix of theirs.  Its encoder half alone has a part of these tensors."""
    return {**under(time, time_table(layout), theirs), **under(net, unet_table(unet, layout), theirs)}


def _diffusers_attention(theirs: str, config: UNetConfig) -> dict[str, Row]:
    return {
        "norm": row(f"{theirs}.group_norm.*"),
        "qkv": row(*(f"{theirs}.to_{x}.*" for x in "qkv"), how=as_convolution()),
        "context": row(*(f"{theirs}.add_{x}_proj.*" for x in "kv")),
        "proj": row(f"{theirs}.to_out.0.*", how=as_convolution()),
    }


def _adm_attention(theirs: str, config: UNetConfig) -> dict[str, Row]:
    """1-d convolutions, whose rows hold q, k and v of one head after the other (the "legacy" order)."""
    sizes = {"heads": config.heads} if config.heads else {"head_width": config.head_channels}
    return {
        "norm": row(f"{theirs}.norm.*"),
        "qkv": row(f"{theirs}.qkv.*", how=as_convolution(heads_last(3, **sizes))),
        "context": row(f"{theirs}.encoder_kv.*", how=heads_last(2, **sizes)),
        "proj": row(f"{theirs}.proj_out.*", how=as_convolution()),
    }


def _new_order_attention(theirs: str, config: UNetConfig) -> dict[str, Row]:
    """1-d convolutions, whose rows hold q of all heads, then k, then v, as ours do."""
    return {**_adm_attention(theirs, config), "qkv": row(f"{theirs}.qkv.*", how=as_convolution(same))}


ATTENTION = {"diffusers": _diffusers_attention, "adm": _adm_attention, "adm_new_order": _new_order_attention}


class ADM(NamedTuple):
    """What the tensors of a UNet in the original layout tell."""

    unet: UNetConfig
    in_channels: int
    out_channels: int
    context_width: int | None


def adm_config(
    shapes: Mapping[str, Lazy],
    prefix: str,
    where: str,
    head_channels: int = 64,
    heads: int | None = None,
    depth: int | None = None,
) -> ADM:
    """The UNet that is stored in the original layout, from its tensors.  None of them tells how many heads there are.

    depth: of an encoder half, whose tensors do not tell it; None = a whole UNet.
    """

    def shape(name: str) -> tuple[int, ...]:
        if prefix + name not in shapes:
            raise ValueError(f"{where} has no tensor {prefix + name}: is it the file that it should be?")
        return shapes[prefix + name].shape

    count, outputs = 1, 0
    while f"{prefix}input_blocks.{count}.0.out_layers.3.weight" in shapes:
        count += 1
    while f"{prefix}output_blocks.{outputs}.0.in_layers.0.weight" in shapes:
        outputs += 1
    whole = depth is None
    if depth is None:
        # The last output block of a level but the lowest holds an upsampling one behind its own residual block and attention.
        ups = [n for n in range(outputs) if any(f"{prefix}output_blocks.{n}.{i}.in_layers.0.weight" in shapes for i in (1, 2))]
        levels, depth = len(ups) + 1, ups[0] if ups else outputs - 1
    else:
        levels = count // (depth + 1)
    channels = shape("input_blocks.0.0.weight")[0]
    fits = depth >= 1 and count == levels * (depth + 1) and outputs == (count if whole else 0)
    starts = [1 + level * (depth + 1) for level in range(levels if fits else 0)]
    widths = [shape(f"input_blocks.{start}.0.out_layers.3.weight")[0] for start in starts]
    if not fits or any(width % channels for width in widths):
        kind = "UNet" if whole else f"encoder half of a UNet with {depth} blocks per level"
        raise ValueError(
            f"{where}: {count} {prefix}input_blocks and {outputs} output_blocks, {levels} levels of widths {widths} over "
            f"{channels} channels are no {kind} that is known"
        )
    attends = [n for n in range(1, count) if f"{prefix}input_blocks.{n}.1.qkv.weight" in shapes]
    context = None
    if attends and f"{prefix}input_blocks.{attends[0]}.1.encoder_kv.weight" in shapes:
        context = shape(f"input_blocks.{attends[0]}.1.encoder_kv.weight")[1]
    modulation = shape("input_blocks.1.0.emb_layers.1.weight")[0] // widths[0]
    emb, sinusoid = shape("time_embed.0.weight")
    config = UNetConfig(
        channels=channels,
        depth=depth,
        multiple=tuple(width // channels for width in widths),
        attention=tuple(sorted({(n - 1) // (depth + 1) for n in attends})),
        head_channels=head_channels,
        heads=heads,
        embed_channels=None if emb == 4 * channels else emb,
        time_channels=None if sinusoid == channels else sinusoid,
        modulation="scale_shift" if modulation == 2 else "add",
    )
    return ADM(config, shape("input_blocks.0.0.weight")[1], shape("out.2.weight")[0] if whole else 0, context)

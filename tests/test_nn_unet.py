"""The UNet: every formula against itself written out by hand, the whole against diffusers' UNet of the same design."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, group_norm, linear, silu

from unclip.nn.embeddings import TimestepEmbedding
from unclip.nn.unet import ResidualBlock, SpatialAttention, UNet, UNetConfig

SMALL = UNetConfig(channels=32, depth=1, multiple=(1, 2), attention=(1,), head_channels=16)
CONTEXT = 24


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Seeded weights everywhere, the zero-initialised ones too, that keep activations at about their size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return module


def make(
    config: UNetConfig = SMALL,
    filled: bool = True,
    in_channels: int = 3,
    out_channels: int = 3,
    context_width: int | None = CONTEXT,
    **changes,
) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = UNet(config.replace(**changes), in_channels, out_channels, context_width).eval()
    return fill(net) if filled else net


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(net: UNet, b: int = 2, h: int = 8, w: int = 12) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    c = net.config
    context = None if net.context_width is None else net.encode_context(random(b, 5, net.context_width, seed=3))
    return random(b, net.input.in_channels // c.patch**2, h, w), random(b, c.emb, seed=2), context


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"attention": (), "context_width": None}, {"patch": 2, "modulation": "add"}])
def test_untrained_output_is_exactly_zero(changes):
    net = make(filled=False, **changes)
    x, emb, context = inputs(net)
    assert torch.equal(net(x, emb, context), torch.zeros_like(x))
    assert rms(fill(net)(x, emb, context)) > 0.1  # and zero for no other reason


@torch.no_grad()
@pytest.mark.parametrize(
    "patch, multiple, size", [(1, (1,), (3, 5)), (1, (1, 2, 2), (4, 12)), (4, (1, 2), (8, 16)), (3, (2, 1), (6, 18))]
)
def test_output_has_the_input_size(patch, multiple, size):
    net = make(patch=patch, multiple=multiple, attention=(len(multiple) - 1,), in_channels=4, out_channels=6)
    assert net.multiple_of == patch * 2 ** (len(multiple) - 1)
    x, emb, context = inputs(net, 1, *size)
    out = net(x, emb, context)
    assert out.shape == (1, 6, *size) and out.isfinite().all()


def test_sizes_that_do_not_divide_are_refused():
    net = make(patch=2, multiple=(1, 2, 2))
    for h, w in ((8, 12), (4, 8), (9, 8)):
        with pytest.raises(ValueError, match=f"multiples of 8; got {h}x{w}"):
            net(random(1, 3, h, w), random(1, 128))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"channels": 48}, "channels is 48"),
        ({"patch": 0}, "patch >= 1"),
        ({"depth": 0}, "depth >= 1"),
        ({"multiple": ()}, "at least one level"),
        ({"attention": (2,)}, r"0 to 1; got \(2,\)"),
        ({"attention": (-1,)}, "0 to 1"),
        ({"head_channels": 48}, "multiples of head_channels 48"),
        ({"heads": 5}, r"attention widths \[64\] must be multiples of heads 5"),
        ({"attention": ()}, "context enters through attention"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


# SpatialAttention


def by_hand(layer: SpatialAttention, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Joint attention of one row, head by head and pixel by pixel, over context keys first, then pixels."""
    width, dim = x.shape[0], x.shape[0] // layer.heads
    normed = group_norm(x[None], 32, layer.norm.weight, layer.norm.bias)[0].flatten(1).T  # (pixels, width)
    q, k, v = linear(normed, layer.qkv.weight.flatten(1), layer.qkv.bias).split(width, dim=1)
    context_k, context_v = layer.context(tokens).split(width, dim=1)
    out = torch.zeros_like(q)
    for start in range(0, width, dim):
        head = slice(start, start + dim)
        for pixel in range(len(q)):
            scores = torch.cat([context_k[:, head], k[:, head]]) @ q[pixel, head] / dim**0.5
            scores[: len(mask)][~mask] = float("-inf")
            out[pixel, head] = scores.softmax(0) @ torch.cat([context_v[:, head], v[:, head]])
    return x + linear(out, layer.proj.weight.flatten(1), layer.proj.bias).T.reshape(x.shape)


@torch.no_grad()
def test_attention_is_one_softmax_over_context_and_pixels():
    layer, x, tokens = fill(SpatialAttention(64, 16, 24)), random(2, 64, 2, 3), random(2, 5, 24, seed=2)
    mask = torch.tensor([[True, False, True, True, False], [False, True, True, False, False]])
    out = layer(x, layer.context(tokens), mask)
    expected = torch.stack([by_hand(layer, *row) for row in zip(x, tokens, mask)])
    assert torch.allclose(out, expected, atol=1e-5)
    everything = torch.stack([by_hand(layer, *row) for row in zip(x, tokens, torch.ones_like(mask))])
    assert torch.allclose(layer(x, layer.context(tokens)), everything, atol=1e-5)
    assert (out - everything).abs().max() > 0.01


@torch.no_grad()
def test_the_mask_hides_context_tokens_and_never_pixels():
    net = make()
    x, emb, _ = inputs(net)
    tokens = random(2, 5, 24, seed=3)
    mask = torch.tensor([[True, True, False, False, True]] * 2)
    out = net(x, emb, net.encode_context(tokens), mask)
    for token in range(5):
        other = tokens.clone()
        other[:, token] += 1
        changed = rms(net(x, emb, net.encode_context(other), mask) - out)
        assert changed > 1e-3 if mask[0, token] else changed == 0
    alone = net(x, emb, net.encode_context(tokens[:, [0, 1, 4]]))
    assert torch.allclose(alone, out, atol=1e-5)
    nothing = net(x, emb, net.encode_context(tokens), torch.zeros_like(mask))
    assert torch.allclose(nothing, net(x, emb), atol=1e-5)


@torch.no_grad()
def test_context_is_encoded_once_and_each_layer_gets_its_own():
    net = make(depth=2, multiple=(1, 2, 2), attention=(1, 2))
    _, emb, context = inputs(net)
    assert context is not None and len(context) == 2 * 2 + 1 + 2 * 3
    seen: list[tuple[SpatialAttention, Tensor]] = []
    layers = [module for module in net.modules() if isinstance(module, SpatialAttention)]
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append((module, args[1])))
    tokens, x = random(2, 5, 24, seed=3), random(2, 3, 8, 12)
    for _ in range(3):  # steps of a sampler
        seen.clear()
        again = net(x, emb, net.encode_context(tokens))
        x = net(x, emb, context)
        assert torch.equal(x, again)
        calls = seen[len(layers) :]
        assert len(calls) == len(layers)
        assert all(torch.equal(given, layer.context(tokens)) for layer, given in calls)


@torch.no_grad()
def test_a_row_does_not_depend_on_the_others():
    net = make()
    x, emb, context = inputs(net, 3)
    both = net(x, emb, context)
    alone = net(x[1:2], emb[1:2], [layer[1:2] for layer in context])
    assert torch.allclose(both[1:2], alone, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("level", [0, 1])
def test_attention_stands_where_the_config_says(level):
    net = make(depth=2, multiple=(1, 2), attention=(level,), head_channels=32)
    sides: list[int] = []
    for module in net.modules():
        if isinstance(module, SpatialAttention):
            module.register_forward_pre_hook(lambda _, args: sides.append(args[0].shape[-1]))
    x, emb, context = inputs(net, 1, 8, 8)
    net(x, emb, context)
    side = 8 // 2**level
    assert sides == [side] * 2 + [4] + [side] * 3  # down, middle, up


# Residual blocks


def norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    """Group norm by its definition: 32 groups, each of mean 0 and variance 1."""
    groups = x.reshape(len(x), 32, -1)
    groups = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return groups.reshape(x.shape) * layer.weight[:, None, None] + layer.bias[:, None, None]


def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)


def resampled(x: Tensor, kind: str) -> Tensor:
    if kind == "down":
        return rearrange(x, "b c (h p) (w q) -> b c h w p q", p=2, q=2).mean((-1, -2))
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2) if kind == "up" else x


@torch.no_grad()
@pytest.mark.parametrize("resample", ["none", "down", "up"])
@pytest.mark.parametrize("modulation", ["scale_shift", "add"])
def test_a_block_is_its_formula(resample, modulation):
    width_in, width = (64, 64) if resample != "none" else (64, 96)
    block = fill(ResidualBlock(SMALL.replace(modulation=modulation), width_in, width, False, resample)).eval()
    x, emb = random(2, width_in, 4, 6), random(2, 128, seed=2)
    h = conv(block.conv1, resampled(silu(norm(block.norm1, x)), resample))  # the main branch is resampled after norm and SiLU
    modulating = linear(emb, block.emb.weight, block.emb.bias)[:, :, None, None]
    if modulation == "scale_shift":
        scale, shift = modulating[:, :width], modulating[:, width:]
        h = norm(block.norm2, h) * (1 + scale) + shift
    else:
        h = norm(block.norm2, h + modulating)
    skip = resampled(x, resample)
    skip = skip if width == width_in else conv(block.skip, skip)
    assert torch.allclose(block(x, emb, None), skip + conv(block.conv2, silu(h)), atol=1e-5)


@torch.no_grad()
def test_an_untrained_block_only_resamples():
    x, emb = random(1, 32, 4, 6), random(1, 128)
    kinds = {"none": x, "down": avg_pool2d(x, 2), "up": resampled(x, "up")}
    for resample, expected in kinds.items():
        assert torch.allclose(ResidualBlock(SMALL, 32, 32, True, resample)(x, emb, None), expected, atol=1e-6)


def test_dropout_acts_in_training_only():
    net = make(dropout=0.5)
    x, emb, context = inputs(net)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        out = net(x, emb, context)
        assert torch.equal(net(x, emb, context), out)
        assert not torch.allclose(net.train()(x, emb, context), out, atol=1e-2)


# The whole


@torch.no_grad()
@pytest.mark.parametrize("patch", [2, 3])
def test_patch_is_space_to_depth(patch):
    net = make(patch=patch, in_channels=3, out_channels=4)
    plain = make(in_channels=3 * patch**2, out_channels=4 * patch**2)
    plain.load_state_dict(net.state_dict())
    x, emb, context = inputs(net, 2, 4 * patch, 6 * patch)
    deep = plain(rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=patch, q=patch), emb, context)
    assert torch.allclose(net(x, emb, context), rearrange(deep, "b (c p q) h w -> b c (h p) (w q)", p=patch, q=patch), atol=1e-6)


@torch.no_grad()
def test_channels_last_gives_the_same_numbers():
    net = make(patch=2)
    x, emb, context = inputs(net)
    expected = net(x, emb, context)
    out = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), emb, context)
    assert torch.allclose(out, expected, atol=1e-5)


@torch.no_grad()
def test_bfloat16_autocast_is_near():
    net = make()
    x, emb, _ = inputs(net)
    tokens, mask = random(2, 5, 24, seed=3), torch.tensor([[True, False, True, True, True]] * 2)
    expected = net(x, emb, net.encode_context(tokens), mask)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x, emb, net.encode_context(tokens), mask)
        mixed = net(x, emb, [layer.float() for layer in net.encode_context(tokens)], mask)  # encoded outside autocast
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
    assert 0 < rms(out - expected) < 0.03 * rms(expected)
    assert rms(mixed - expected) < 0.03 * rms(expected)


@pytest.mark.parametrize("changes", [{}, {"patch": 2, "modulation": "add", "multiple": (1, 1, 2), "attention": (0, 2)}])
def test_gradient_reaches_every_parameter(changes):
    net = make(**changes)
    x, emb, context = inputs(net, 2, 8 * net.config.patch, 12 * net.config.patch)
    net(x.requires_grad_(), emb.requires_grad_(), context).square().mean().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not idle
    assert x.grad.abs().min() > 0 and emb.grad.abs().min() > 0


# Parity


def blocks_of(reference: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """(ResnetBlock2D, SpatialAttention or None) of a diffusers UNet in the order of our blocks."""
    for part in (*reference.down_blocks, reference.mid_block, *reference.up_blocks):
        attentions = list(getattr(part, "attentions", []))
        for i, resnet in enumerate(part.resnets):
            yield resnet, attentions[i] if i < len(attentions) else None
        for resnet in (getattr(part, "downsamplers", None) or getattr(part, "upsamplers", None) or [])[:]:
            yield resnet, None


def copy_weights(net: UNet, time: TimestepEmbedding, reference: nn.Module) -> None:
    """Our weights into the reference, every one of them."""
    state = {"time_embedding.linear_1": time.hidden, "time_embedding.linear_2": time.out}
    state |= {"conv_in": net.input, "conv_norm_out": net.norm, "conv_out": net.output}
    pairs: list[tuple[nn.Module, nn.Module]] = [(reference.get_submodule(name), ours) for name, ours in state.items()]
    names = {"norm1": "norm1", "conv1": "conv1", "emb": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}
    theirs = list(blocks_of(reference))
    ours = [*net.down, *net.middle, *net.up]
    assert len(theirs) == len(ours)
    for block, (resnet, attention) in zip(ours, theirs):
        pairs += [(getattr(resnet, name), getattr(block, mine)) for mine, name in names.items()]
        assert (resnet.conv_shortcut is None) == isinstance(block.skip, nn.Identity)
        if resnet.conv_shortcut is not None:
            pairs.append((resnet.conv_shortcut, block.skip))
        assert (attention is None) == (block.attention is None)
        if attention is not None:
            own = block.attention
            pairs.append((attention.group_norm, own.norm))
            split = [(attention.to_q, own.qkv, 0), (attention.to_k, own.qkv, 1), (attention.to_v, own.qkv, 2)]
            split += [(attention.add_k_proj, own.context, 0), (attention.add_v_proj, own.context, 1)]
            split += [(attention.to_out[0], own.proj, 0)]
            for target, source, part in split:
                rows = slice(part * len(target.weight), (part + 1) * len(target.weight))
                target.weight.copy_(source.weight.flatten(1)[rows])
                target.bias.copy_(source.bias[rows])
    for target, source in pairs:
        target.load_state_dict(source.state_dict())


@torch.no_grad()
def test_equals_the_unet_of_diffusers():
    """The ADM layout with GLIDE's attention, as diffusers builds it for Karlo's decoder: number for number."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    net = make(depth=2, multiple=(1, 2, 3), attention=(1, 2), out_channels=6)
    time = fill(TimestepEmbedding(32, 128, first=0), seed=5)
    reference = UNet2DConditionModel(
        in_channels=3,
        out_channels=6,
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=16,
        cross_attention_dim=24,
        class_embed_type="identity",  # a vector added to the timestep embedding
    ).eval()
    assert sum(p.numel() for p in reference.parameters()) == sum(p.numel() for m in (net, time) for p in m.parameters())
    fill(reference, seed=9)  # so that a weight left out would show
    copy_weights(net, time, reference)
    x, emb, tokens = random(2, 3, 8, 12), random(2, 128, seed=2), random(2, 5, 24, seed=3)
    t, mask = torch.tensor([1, 700]), torch.tensor([[True] * 5, [True, True, False, True, False]])
    out = net(x, time(t) + emb, net.encode_context(tokens), mask)
    # The reference counts timesteps from 0.
    theirs = reference(x, t - 1, encoder_hidden_states=tokens, class_labels=emb, attention_mask=mask.float()).sample
    assert out.shape == theirs.shape and rms(out) > 0.1
    assert (out - theirs).abs().max() < 1e-5 * out.abs().max().clamp(min=1)

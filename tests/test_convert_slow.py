"""Karlo at its full size, random weights: the small parities again, one network at a time, by `pytest -m slow`.

Each needs memory for diffusers' network and ours in float32, some 8 GB for the prior and the decoder, and a few minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import karlo
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from decoder.network import DecoderNetwork
from prior.network import PriorNetwork
from unclip.checkpoint import fill
from unclip.convert import karlo as family
from unclip.convert.karlo import NULL_IMAGE
from unclip.convert.karlo_diffusers import CONDITIONS, PRIOR
from unclip.convert.table import gather, row
from unclip.nn.transformer import TransformerConfig
from unclip.nn.unet import UNetConfig
from unclip.types import Cond, Text
from unclip.weights import Lazy
from upsamplers.network import UpsamplerNetwork

pytestmark = pytest.mark.slow
LEVELS, EMBED = (320, 640, 960, 1280), 768


def lazies(prefix: str, module: nn.Module) -> dict[str, Lazy]:
    """A module's own tensors, without the copy that a file would give: both networks then share most of their weights."""

    def lazy(x: Tensor) -> Lazy:
        return Lazy(tuple(x.shape), x.dtype, lambda dtype: x.detach().to(dtype))

    return {f"{prefix}{name}": lazy(x) for name, x in module.state_dict().items()}


def converted(network: nn.Module, table: Any, source: dict[str, Lazy], ignored: tuple[str, ...] = ()) -> Any:
    """Our network (on the meta device) with their weights.  Tables speak of a part, of which this is `network`."""
    parameters = {f"network.{name}": x for name, x in network.named_parameters()}
    made = {name.removeprefix("network."): x for name, x in gather(table, parameters, source, "x", ignored).items()}
    buffers = {name: torch.zeros_like(x, device="cpu") for name, x in network.named_buffers()}
    fill(network, {**made, **buffers}, "x")
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as in a pipeline


def texts(b: int) -> Text:
    generator = torch.Generator().manual_seed(0)
    states, embed = torch.randn(b, 77, EMBED, generator=generator), torch.randn(b, EMBED, generator=generator)
    mask = torch.arange(77) < torch.tensor([9, 77])[:b, None]
    return Text([f"caption {i}" for i in range(b)], mask.long(), embed, states, mask)


def compare(networks: list[nn.Module], ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> None:
    """In float32 the same; in bfloat16 ours no further from that than theirs, but for chance."""
    exact, expected = ours(), theirs()
    error = float((exact - expected).abs().max() / expected.square().mean().sqrt())
    assert exact.shape == expected.shape and error <= 1e-4, error
    for network in networks:
        for x in network.parameters():  # module.to(dtype) would warn of diffusers' modules
            x.data = x.data.bfloat16()
    off = [float((made().float() - expected).square().mean().sqrt()) for made in (ours, theirs)]
    print(f"maximum difference {error:.1e} of the RMS in float32; bfloat16 off by {off[0]:.3e}, diffusers' by {off[1]:.3e}")
    assert 0 < off[0] <= 1.02 * off[1], off


@torch.no_grad()
def test_prior() -> None:
    """1.0B: 20 layers of 2048."""
    theirs = karlo.prior(heads=32, layers=20, embed=EMBED)
    assert abs(sum(p.numel() for p in theirs.parameters()) / 1e9 - 1.02) < 0.01
    config = family.prior_config(TransformerConfig(width=2048, layers=20, heads=32), EMBED, 77, 5.0)
    with torch.device("meta"):
        network = PriorNetwork(config.network)
    ours = converted(network, PRIOR, lazies("", theirs), ignored=("clip_mean", "clip_std"))
    ours.set_null(texts(1))
    text, x, t = texts(2), torch.randn(2, EMBED, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 900])

    def reference() -> Tensor:
        given = [y.to(theirs.dtype) for y in (x, text.embed, text.states)]
        made = theirs(given[0], t - 1, given[1], encoder_hidden_states=given[2], attention_mask=text.mask)
        return made.predicted_image_embedding

    compare([ours, theirs], lambda: ours(x, t, ours.encode(ours.prompt(text))), reference)


@torch.no_grad()
def test_decoder() -> None:
    """0.9B: 320 channels, 3 blocks a level, a context of 1536."""
    theirs, projections = karlo.decoder(levels=LEVELS, depth=3, context=1536, embed=EMBED)
    unet = UNetConfig(channels=320, depth=3, attention=(1, 2, 3))
    config = family.decoder_config(unet, 1536, 64, EMBED, 4, 77, 25)
    with torch.device("meta"):
        network = DecoderNetwork(config)
    table = {
        **family.conditions(CONDITIONS, 4),
        NULL_IMAGE: row("text_proj.learned_classifier_free_guidance_embeddings"),
        **family.denoising(unet, "diffusers", "decoder."),
    }
    ours = converted(network, table, {**lazies("decoder.", theirs), **lazies("text_proj.", projections)})
    ours.conditions.text.reader.empty_mask[:2] = True
    generator = torch.Generator().manual_seed(1)
    text, image = texts(1), torch.randn(1, EMBED, generator=generator)
    x, t = torch.randn(1, 3, 64, 64, generator=generator), torch.tensor([300])

    def reference() -> Tensor:
        context, added = projections(
            image_embeddings=image.to(theirs.dtype),
            prompt_embeds=text.embed.to(theirs.dtype),
            text_encoder_hidden_states=text.states.to(theirs.dtype),
            do_classifier_free_guidance=False,
        )
        inputs = dict(encoder_hidden_states=context, class_labels=added, attention_mask=pad(text.mask, (4, 0), value=True))
        return theirs(x.to(theirs.dtype), t - 1, **inputs).sample

    compare([ours, theirs, projections], lambda: ours(x, t, ours.encode(Cond(image, text), 1)), reference)


@torch.no_grad()
def test_upsampler() -> None:
    """0.7B: 320 channels at 256 pixels.  The network of the last step is its equal."""
    theirs = karlo.super_res(3, levels=LEVELS, depth=3, size=256)
    unet = UNetConfig(channels=320, depth=3, modulation="add")
    with torch.device("meta"):
        network = UpsamplerNetwork(family.upsampler_config(unet, 4))
    network.last_time, network.last_unet = None, None
    table = family.denoising(unet, "diffusers", "", "network.time.", "network.unet.")
    ours = converted(network, table, lazies("", theirs))
    generator = torch.Generator().manual_seed(1)
    low, t = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1, torch.tensor([500])
    x, encoded = torch.randn(1, 3, 256, 256, generator=generator), ours.encode(low)

    def reference() -> Tensor:
        return theirs(torch.cat([x, encoded.resized], 1).to(theirs.dtype), t - 1).sample

    compare([ours, theirs], lambda: ours(x, t, encoded), reference)

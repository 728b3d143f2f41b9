"""A whole pipeline of a few hundred thousand random weights: 16 -> 64 -> 256 pixels, three steps a stage."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from decoder import Decoder, DecoderConfig
from prior import DiffusionPrior, PriorConfig, PriorNetworkConfig
from unclip.clip.encoder import CLIP, Architecture, CLIPConfig, TextTower, VisionTower
from unclip.clip.tokenizer import compact_token_ids
from unclip.conditions import Caption, Conditions, ImageEmbedding
from unclip.nn.transformer import TransformerConfig
from unclip.nn.unet import UNetConfig
from unclip.pipelines.unclip import UnCLIP
from unclip.randomness import Noise
from unclip.sampling import Inversion, Sampling
from unclip.types import Cond, Losses, Text
from upsamplers import CorruptionConfig, Upsampler, UpsamplerConfig

CAPTIONS = ["a red heart", "a cat with a hat", "two dogs"]
EMBED, WIDTH, CONTEXT = 12, 16, 10
STEPS = 3


@functools.cache
def _clip_config() -> CLIPConfig:
    return CLIPConfig(
        architecture=Architecture(
            embed_dim=EMBED,
            vision=VisionTower(image_size=16, patch_size=8, width=16, layers=1, head_width=8),
            text=TextTower(context_length=CONTEXT, width=WIDTH, layers=1, heads=2, token_ids=compact_token_ids(CAPTIONS)),
        )
    )


def clip(seed: int = 0) -> CLIP:
    return _build(CLIP, _clip_config(), seed)


def prior(**changes: Any) -> DiffusionPrior:
    config = PriorConfig(
        network=PriorNetworkConfig(
            transformer=TransformerConfig(width=16, layers=1, heads=2), embed_dim=EMBED, context=CONTEXT, states_width=WIDTH
        ),
        sampling=Sampling(sampler="ddpm", steps=STEPS, variance="small"),
    )
    return _build(DiffusionPrior, config.replace(**changes), 1)


def unet(**changes: Any) -> UNetConfig:
    return UNetConfig(channels=32, depth=1, multiple=(1,), patch=4).replace(**changes)


def decoder(text: bool = True, **changes: Any) -> Decoder:
    config = DecoderConfig(
        image_size=16,
        unet=unet(attention=(0,), head_channels=16),
        conditions=Conditions(
            image_embed=ImageEmbedding(embed_dim=EMBED),
            text=Caption(kind="clip_states", context=CONTEXT, states_width=WIDTH, embed_dim=EMBED) if text else None,
            width=16,
        ),
        predicts="x0",
        variance="fixed",
        sampling=Sampling(sampler="ddim", steps=STEPS, guidance=2.0, threshold="static"),
    )
    return _build(Decoder, config.replace(**changes), 7)


def upsampler(seed: int = 3) -> Upsampler:
    config = UpsamplerConfig(
        unet=unet(),
        predicts="x0",
        output="residual",
        corruption=CorruptionConfig(kind="blur"),
        sampling=Sampling(sampler="ddim", steps=STEPS, threshold="static"),
    )
    return _build(Upsampler, config, seed)


def parts() -> dict[str, Any]:
    return {"clip": clip(), "prior": prior(), "decoder": decoder(), "upsamplers": [upsampler(3), upsampler(4)]}


def pipeline(**changes: Any) -> UnCLIP:
    about = {"data": "random numbers", "stages": {"clip": {"steps": 0}}}
    return UnCLIP(**{**parts(), "name": "tiny", "provenance": about, **changes})


@torch.no_grad()
def _build(kind: Any, config: Any, seed: int) -> Any:
    """A seeded part, of which no weight is zero, so that every input has its effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        part = kind(config)
        for parameter in part.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 12
            parameter.add_(0.5 * fan**-0.5 * torch.randn_like(parameter))
    return part.eval()


class ForeignEncoder:
    """Keeps the contract and nothing more: no module, no config."""

    embed_dim, image_size = EMBED, 8

    def encode_image(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :EMBED] + 0.1

    def encode_text(self, captions: list[str]) -> Text:
        embed = Noise([f"caption {caption}" for caption in captions]).normal((EMBED,))
        states = embed[:, None, :1].expand(-1, CONTEXT, WIDTH)
        mask = torch.ones(len(captions), CONTEXT, dtype=torch.bool)
        return Text(list(captions), mask.long(), embed, states, mask)


class ForeignPrior:
    """Answers with the caption's own embedding, for which any text encoder of the right width will do."""

    def loss(self, image_embed: Tensor, text: Text, *, noise: Noise) -> Losses:
        return Losses(((image_embed - text.embed) ** 2).mean(1), None, {})

    def sample(self, text: Text, *, noise: Noise, n: int = 1, sampling: Sampling | None = None) -> Tensor:
        return text.embed[:, None] + 0.01 * noise.normal((n, text.embed.shape[1]))


class ForeignDecoder:
    """Paints the embedding's first numbers, as large as x_t has it."""

    image_size, takes = 8, ("image_embed",)

    def resolve(self, sampling: Sampling | None = None) -> Sampling:
        return (sampling or Sampling()).replace(steps=(10, 0))

    def loss(self, images: Tensor, cond: Cond, *, noise: Noise) -> Losses:
        raise NotImplementedError

    def sample(
        self,
        cond: Cond,
        *,
        noise: Noise,
        x_t: Tensor | None = None,
        t: int | None = None,
        sampling: Sampling | None = None,
    ) -> Tensor:
        assert cond.text is None and cond.image_embed is not None and x_t is not None and t == 10
        return (cond.image_embed[:, :3, None, None] + 0.1 * x_t).clamp(-1, 1)

    def invert(self, images: Tensor, cond: Cond, *, inversion: Inversion | None = None) -> tuple[Tensor, tuple[int, ...]]:
        assert cond.image_embed is not None
        return 10 * (images - cond.image_embed[:, :3, None, None]), (10, 0)


class ForeignUpsampler(nn.Module):
    """Repeats pixels."""

    scale = 2

    def loss(self, images: Tensor, cond: Cond | None = None, *, noise: Noise) -> Losses:
        raise NotImplementedError

    def sample(self, low_res: Tensor, cond: Cond | None = None, *, noise: Noise, sampling: Sampling | None = None) -> Tensor:
        assert len(noise) == len(low_res)
        return low_res.repeat_interleave(2, 2).repeat_interleave(2, 3)

"""Configurations to start from: each stage at a size that suits thousands of pictures and few cores, or millions and a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from decoder import Decoder, DecoderConfig
from prior import (
    ARNetworkConfig,
    ARPrior,
    ARPriorConfig,
    ContrastivePrior,
    ContrastivePriorConfig,
    DiffusionPrior,
    PriorConfig,
    PriorNetworkConfig,
    QuantizerConfig,
)
from unclip.checkpoint import Component
from unclip.clip import CLIP
from unclip.clip.encoder import Architecture, CLIPConfig, TextTower, VisionTower
from unclip.conditions import Caption, Conditions, ImageEmbedding
from unclip.config import Config
from unclip.data.open import DataConfig
from unclip.diffusion.schedule import ScheduleConfig
from unclip.nn.transformer import TransformerConfig
from unclip.nn.unet import UNetConfig
from unclip.runs import Training, load_clip
from unclip.runs.components import describe
from unclip.runs.names import task_class
from unclip.sampling import Sampling
from unclip.training import TrainConfig
from upsamplers import CorruptionConfig, Upsampler, UpsamplerConfig

Scale = Literal["small", "base"]
Frozen = Any  # the CLIP whose answers a stage learns from; None for the stages that need none


class Starter(NamedTuple):
    """How a stage begins: its class, a function (scale, clip, size) -> its config, and its training when it is small."""

    component: type[Component[Any]]
    model: Callable[[Scale, Frozen, int | None], Config]
    train: TrainConfig
    rate: float  # of the base scale
    taught: bool = False  # by a CLIP
    draws: bool = False  # pictures, as samples on the way


def starter(
    stage: str, source: str, scale: Scale, clip: str | None = None, size: int | None = None, embeddings: str | None = None,
    held_out: str | None = None, start: str | None = None,
) -> Training:  # fmt: skip
    """A whole `Training` for a stage.  "small" is the shipped pipeline's size (trained in hours on two cores), "base" that of
    a tenth to a half of a billion weights, for one GPU and a million pictures or more; the paper's are in its Table 3.

    Small stages predict x0 in bfloat16, which learns fastest from few pictures; base ones keep the paper's choices.
    """
    chosen = STARTERS[stage]
    used = (clip or "emoji") if chosen.taught else None
    model = chosen.model(scale, load_clip(used) if used else None, size)
    task = task_class(None, chosen.component).config_class
    return Training(
        model=None if start else model,
        start=None if start is None else _started(start, stage),
        clip=used,
        task=None if task is None else task(),
        data=DataConfig(source=source, size=size, embeddings=embeddings),
        held_out=None if held_out is None else DataConfig(source=held_out, size=size),  # too few to be worth embeddings
        train=_train(chosen, scale),
    )


def _started(source: str, stage: str) -> str:
    """With the name of a pipeline's component.  ValueError: on record it is of another class than the stage's."""
    named, kind = describe(source, stage)
    expected = STARTERS[stage].component.__name__
    if kind not in (None, expected):
        raise ValueError(f"{source} is a {kind}; the stage {stage} trains a {expected}")
    return named


def _clip(scale: Scale, clip: Frozen, size: int | None) -> CLIPConfig:
    if scale == "base":
        return CLIPConfig(name="ViT-B-32")
    side = size or 64
    return CLIPConfig(
        architecture=Architecture(
            embed_dim=256,
            vision=VisionTower(image_size=side, patch_size=max(side // 8, 1), width=256, layers=6, head_width=64),
            text=TextTower(context_length=77, width=256, layers=6, heads=4),
        )
    )


def _prior(scale: Scale, clip: CLIP, size: int | None) -> PriorConfig:
    return PriorConfig(network=PriorNetworkConfig(**_network(scale, clip)))


def _ar_prior(scale: Scale, clip: CLIP, size: int | None) -> ARPriorConfig:
    return ARPriorConfig(network=ARNetworkConfig(**_network(scale, clip)), quantizer=QuantizerConfig(dims=0.99))


def _contrastive_prior(scale: Scale, clip: CLIP, size: int | None) -> ContrastivePriorConfig:
    return ContrastivePriorConfig(network=PriorNetworkConfig(**_network(scale, clip)))


def _network(scale: Scale, clip: CLIP) -> dict[str, Any]:
    """Of any prior."""
    width, layers = {"small": (256, 6), "base": (1024, 20)}[scale]
    transformer = TransformerConfig(width=width, layers=layers, heads=width // 64, dropout=0.1 if scale == "small" else 0.0)
    read = {"embed_dim": clip.embed_dim, "context": clip.context_length, "states_width": int(clip.text_width)}
    return {"transformer": transformer, **read}


def _decoder(scale: Scale, clip: CLIP, size: int | None) -> DecoderConfig:
    text = Caption(kind="clip_states", context=clip.context_length, states_width=int(clip.text_width), embed_dim=clip.embed_dim)
    conditions = Conditions(image_embed=ImageEmbedding(embed_dim=clip.embed_dim), text=text, width=128)
    grid = 16 if scale == "small" else 8
    if size is not None and size % grid:
        raise ValueError(f"a {scale} decoder's pictures have a side that divides by {grid}; --size is {size}")
    if scale == "small":
        return DecoderConfig(
            image_size=size or 64,
            unet=UNetConfig(channels=128, multiple=(1, 1, 2), depth=2, attention=(1, 2), patch=4),
            conditions=conditions,
            predicts="x0",
            variance="fixed",
            weighting="clamped_snr",
            sampling=Sampling(sampler="dpmpp_2m", steps=25, guidance=2.0, threshold="static"),
        )
    unet = UNetConfig(channels=192, multiple=(1, 2, 3, 4), depth=3, attention=(1, 2, 3))
    return DecoderConfig(image_size=size or 64, unet=unet, conditions=conditions.replace(width=512))


def _upsampler(scale: Scale, clip: Frozen, size: int | None) -> UpsamplerConfig:
    if size is None:
        raise ValueError("an upsampler's config needs the side of the pictures that it shall make: --size 256")
    last = size > 256  # the paper degrades what its last stage sees by BSR, under a linear schedule
    corruption = CorruptionConfig(kind="bsr_light" if last else "blur", probability=0.5)
    schedule = ScheduleConfig(name="linear" if last else "cosine")
    if scale == "base":
        unet = UNetConfig(channels=128, multiple=(1, 2, 3, 4), depth=2)
        return UpsamplerConfig(unet=unet, corruption=corruption, schedule=schedule)
    return UpsamplerConfig(
        unet=UNetConfig(channels=64, multiple=(1, 1, 2), depth=2, patch=4),
        predicts="x0",
        output="mixture",
        weighting="clamped_snr",
        norm="l1_gradient",
        corruption=corruption,
        schedule=schedule,
        crops_per_image=2,
        sampling=Sampling(sampler="ddim", steps=4, threshold="static"),
    )


# Small: the settings of the shipped weights.  Base: the paper's rates at a batch for one GPU.
_EMBEDDINGS = TrainConfig(steps=2500, batch=128, lr=5e-4, warmup=200, weight_decay=0.06, betas=(0.9, 0.96), ema=0.999)
STARTERS = {
    "clip": Starter(
        CLIP,
        _clip,
        TrainConfig(steps=2000, batch=128, lr=1e-3, warmup=100, weight_decay=0.1, betas=(0.9, 0.98), ema=0.99),
        rate=5e-4,
    ),
    "prior": Starter(DiffusionPrior, _prior, _EMBEDDINGS, rate=1.1e-4, taught=True),
    "ar_prior": Starter(ARPrior, _ar_prior, _EMBEDDINGS, rate=1.1e-4, taught=True),
    "contrastive_prior": Starter(ContrastivePrior, _contrastive_prior, _EMBEDDINGS, rate=1.1e-4, taught=True),
    "decoder": Starter(
        Decoder,
        _decoder,
        TrainConfig(steps=12_500, batch=32, lr=4e-4, warmup=300, ema=0.9995),
        rate=1.2e-4,
        taught=True,
        draws=True,
    ),
    "upsampler": Starter(
        Upsampler, _upsampler, TrainConfig(steps=4000, batch=16, lr=6e-4, warmup=100, ema=0.998), rate=1.2e-4, draws=True
    ),
}


def _train(chosen: Starter, scale: Scale) -> TrainConfig:
    small, made = scale == "small", chosen.train
    if not small:
        batch = 256 if chosen.draws else 1024
        made = made.replace(steps=500_000, batch=batch, lr=chosen.rate, warmup=1000, ema=0.9999, workers=8)
        made = made.replace(decay="cosine" if chosen.component is CLIP else "constant")
    every = 500 if small else 5000
    sample_every = (1000 if small else 5000) if chosen.draws else None
    return made.replace(precision="bfloat16", channels_last=chosen.draws, validate_every=every, sample_every=sample_every)

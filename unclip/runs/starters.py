"""Configurations to start from: each stage at a size that suits thousands of pictures and few cores, or millions and a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from decoder import DecoderConfig
from prior import ARNetworkConfig, ARPriorConfig, ContrastivePriorConfig, PriorConfig, PriorNetworkConfig, QuantizerConfig
from unclip.clip import CLIP
from unclip.clip.encoder import Architecture, CLIPConfig, TextTower, VisionTower
from unclip.conditions import Caption, Conditions, ImageEmbedding
from unclip.config import Config
from unclip.data.open import DataConfig
from unclip.diffusion.schedule import ScheduleConfig
from unclip.nn.transformer import TransformerConfig
from unclip.nn.unet import UNetConfig
from unclip.sampling import Sampling
from unclip.training import TrainConfig
from upsamplers import CorruptionConfig, UpsamplerConfig

from .training import Stage, Training, open_clip

Scale = Literal["small", "base"]


def starter(
    stage: Stage, source: str, scale: Scale, clip: str | None = None, size: int | None = None, embeddings: str | None = None,
    held_out: str | None = None, start: str | None = None,
) -> Training:  # fmt: skip
    """A whole `Training` for a stage.  "small" is the shipped pipeline's size (trained in hours on two cores), "base" that of
    a tenth to a half of a billion weights, for one GPU and a million pictures or more; the paper's are in its Table 3.

    Small stages predict x0 in bfloat16, which learns fastest from few pictures; base ones keep the paper's choices.
    """
    if stage in ("clip", "upsampler"):
        teacher, used = None, None
    else:
        used = clip or "emoji"
        teacher = open_clip(used)
    if stage == "upsampler" and size is None:
        raise ValueError("an upsampler's config needs the side of the pictures that it shall make: --size 256")
    data = DataConfig(source=source, size=size, embeddings=embeddings)
    model = None if start else json.loads(_model(stage, scale, teacher, size).to_json())
    return Training(
        stage=stage,
        data=data,
        held_out=None if held_out is None else DataConfig(source=held_out, size=size),  # too few to be worth embeddings
        train=_train(stage, scale),
        model=model,
        start=start,
        clip=used,
    )


def _model(stage: Stage, scale: Scale, clip: CLIP | None, size: int | None) -> Config:
    if stage == "clip":
        return _clip(scale, size)
    if stage == "upsampler":
        assert size is not None
        return _upsampler(scale, size)
    assert clip is not None
    if stage == "decoder":
        return _decoder(scale, clip, size)
    return _prior(stage, scale, clip)


def _clip(scale: Scale, size: int | None) -> CLIPConfig:
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


def _prior(stage: Stage, scale: Scale, clip: CLIP) -> Config:
    width, layers = {"small": (256, 6), "base": (1024, 20)}[scale]
    transformer = TransformerConfig(width=width, layers=layers, heads=width // 64, dropout=0.1 if scale == "small" else 0.0)
    given: dict[str, Any] = {"embed_dim": clip.embed_dim, "context": clip.context_length, "states_width": _states(clip)}
    if stage == "ar_prior":
        return ARPriorConfig(network=ARNetworkConfig(transformer=transformer, **given), quantizer=QuantizerConfig(dims=0.99))
    network = PriorNetworkConfig(transformer=transformer, **given)
    return ContrastivePriorConfig(network=network) if stage == "contrastive_prior" else PriorConfig(network=network)


def _decoder(scale: Scale, clip: CLIP, size: int | None) -> DecoderConfig:
    text = Caption(kind="clip_states", context=clip.context_length, states_width=_states(clip), embed_dim=clip.embed_dim)
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


def _upsampler(scale: Scale, size: int) -> UpsamplerConfig:
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


def _train(stage: Stage, scale: Scale) -> TrainConfig:
    """Small: the settings of the shipped weights.  Base: the paper's rates at a batch for one GPU."""
    image = stage in ("decoder", "upsampler")
    small = scale == "small"
    shared: dict[str, Any] = {"precision": "bfloat16", "channels_last": image, "examine_every": 500 if small else 5000}
    shared["sample_every"] = (1000 if small else 5000) if image else None
    made = {
        "clip": TrainConfig(steps=2000, batch=128, lr=1e-3, warmup=100, weight_decay=0.1, betas=(0.9, 0.98), ema=0.99),
        "decoder": TrainConfig(steps=12_500, batch=32, lr=4e-4, warmup=300, ema=0.9995),
        "upsampler": TrainConfig(steps=4000, batch=16, lr=6e-4, warmup=100, ema=0.998),
    }.get(stage, TrainConfig(steps=2500, batch=128, lr=5e-4, warmup=200, weight_decay=0.06, betas=(0.9, 0.96), ema=0.999))
    if not small:
        rate = {"clip": 5e-4, "decoder": 1.2e-4, "upsampler": 1.2e-4}.get(stage, 1.1e-4)
        longer: dict[str, Any] = {"steps": 500_000, "batch": 256 if image else 1024, "lr": rate, "warmup": 1000, "ema": 0.9999}
        made = made.replace(**longer, decay="cosine" if stage == "clip" else "constant", workers=8)
    return made.replace(**shared)


def _states(clip: CLIP) -> int:
    return int(clip.text_width)


def write(training: Training, path: Path) -> None:
    from unclip.files import write_files

    if path.exists():
        raise ValueError(f"{path} exists already: choose another file, nothing is overwritten")
    write_files([(path, training.to_json().encode())])

"""ADM (OpenAI, "Diffusion models beat GANs"): class-conditional decoders, two upsamplers and classifiers, a file each.

The files are bare state dicts, known by their public names: what no tensor tells (heads, the order of attention's rows, the
schedule, the side of the pictures) stands in tables here.  Sources: github openai/guided-diffusion (README, script_util,
unet).  Pictures of ImageNet's 1,000 classes, by number.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from decoder import Classifier, ClassifierConfig, Decoder, DecoderConfig
from unclip.checkpoint import Stored
from unclip.conditions import Conditions, Label
from unclip.diffusion.schedule import ScheduleConfig
from unclip.hub import repository
from unclip.sampling import Sampling
from unclip.weights import Lazy, in_file
from upsamplers import CorruptionConfig, Upsampler, UpsamplerConfig

from .recipe import Loaders, Recipe
from .table import as_linear, row, transposed
from .unet import ADM, Layout, adm_config, denoising

SAMPLING = Sampling(sampler="ddpm", steps=250, variance="learned", threshold="static")  # of the published numbers
LABELS = {"network.conditions.label.embedding.weight": row("label_emb.weight")}
POOL = {
    "network.norm.*": row("out.0.*"),
    "network.pool.positions": row("out.2.positional_embedding", how=transposed),
    "network.pool.qkv.*": row("out.2.qkv_proj.*", how=as_linear),  # in the new order, in all files
    "network.pool.out.*": row("out.2.c_proj.*", how=as_linear),
}


class Diffusion(NamedTuple):
    """Of a file with a diffusion model, what its tensors do not tell."""

    size: int  # side of the pictures that it draws
    schedule: Literal["linear", "cosine"] = "linear"
    heads: int | None = None  # None = 64 channels each
    layout: Layout = "adm"
    dropout: float = 0.0
    scale: float | None = None  # of the classifier's gradient, in the published numbers; None = it knows other classes


class Upsampling(NamedTuple):
    low: int
    high: int
    heads: int | None = None


class Classifying(NamedTuple):
    schedule: Literal["linear", "cosine"] = "linear"
    depth: int = 2


DECODERS = {
    "64x64_diffusion.pt": Diffusion(64, "cosine", layout="adm_new_order", dropout=0.1, scale=1.0),
    "128x128_diffusion.pt": Diffusion(128, heads=4, scale=0.5),
    "256x256_diffusion.pt": Diffusion(256, scale=1.0),
    "256x256_diffusion_uncond.pt": Diffusion(256, scale=10.0),
    "512x512_diffusion.pt": Diffusion(512, scale=4.0),
    "lsun_bedroom.pt": Diffusion(256, dropout=0.1),
    "lsun_cat.pt": Diffusion(256, dropout=0.1),
    "lsun_horse.pt": Diffusion(256, dropout=0.1),
    "lsun_horse_nodropout.pt": Diffusion(256),
}
UPSAMPLERS = {"64_256_upsampler.pt": Upsampling(64, 256, heads=4), "128_512_upsampler.pt": Upsampling(128, 512)}
CLASSIFIERS = {
    "64x64_classifier.pt": Classifying("cosine", depth=4),
    "128x128_classifier.pt": Classifying(),
    "256x256_classifier.pt": Classifying(),
    "512x512_classifier.pt": Classifying(),
}


def recognise(folder: Path) -> bool:
    """An upsampler or classifier will do, to say which files it needs beside it."""
    return any((folder / name).is_file() for name in (*DECODERS, *UPSAMPLERS, *CLASSIFIERS))


def open_adm(folder: Path, source: str, dtype: torch.dtype | None = None, variant: str | None = None) -> Stored:
    """The cascade in a folder: a diffusion model, with the upsampler and the classifier that go with it where they are there.

    variant: the file of the diffusion model, where there are several.
    """
    names = [name for name in DECODERS if (folder / name).is_file()]
    names = [name for name in names if name == variant] or names
    if len(names) != 1:
        wrong = f"it holds {', '.join(names)} (variant=FILE takes one)" if names else "it has no diffusion model"
        raise ValueError(f"{source} is no whole model of ADM's: {wrong}; one of {', '.join(DECODERS)} is expected")
    (name,) = names
    public = DECODERS[name]
    recipes = {"decoder": decoder_recipe(name, in_file(folder / name), str(folder / name))}
    beside = f"{public.size}x{public.size}_classifier.pt"
    if public.scale is not None and (path := folder / beside).is_file():
        recipes["guide"] = classifier_recipe(beside, in_file(path), str(path), public.scale)
    conditional = recipes["decoder"].config.conditions.label is not None  # type: ignore[attr-defined]
    for upper, sizes in UPSAMPLERS.items():
        if sizes.low == public.size and conditional and (path := folder / upper).is_file():
            recipes[f"upsampler_{sizes.high}"] = upsampler_recipe(upper, in_file(path), str(path))
    components: Loaders = {
        key: partial(recipe.make, None if key == "guide" else dtype)  # whose gradient in half precision would be noise
        for key, recipe in recipes.items()
    }
    provenance = {
        "family": "ADM (OpenAI, Diffusion models beat GANs)",
        "license": "MIT",
        "source": source,
        "files": ", ".join(Path(recipe.where).name for recipe in recipes.values()),
    }
    title = Path(repository(source)).name or Path(source).resolve().name or name.removesuffix(".pt")
    return Stored(folder, title, components, 1, provenance, None, "Cascade")


def decoder_recipe(name: str, source: Mapping[str, Lazy], where: str) -> Recipe:
    """The diffusion model in a file of this public name."""
    public = DECODERS[name]
    adm = adm_config(source, "", where, heads=public.heads)
    _check_channels(adm, 3, where)
    config = DecoderConfig(
        image_size=public.size,
        unet=adm.unet.replace(dropout=public.dropout),
        conditions=_conditions(source),
        schedule=ScheduleConfig(name=public.schedule),
        first_timestep=0,
        sampling=SAMPLING,
    )
    return Recipe(Decoder, config, {**denoising(adm.unet, public.layout, ""), **LABELS}, source, where)


def upsampler_recipe(name: str, source: Mapping[str, Lazy], where: str) -> Recipe:
    """The upsampler in a file of this public name."""
    public = UPSAMPLERS[name]
    adm = adm_config(source, "", where, heads=public.heads)
    _check_channels(adm, 6, where)
    config = UpsamplerConfig(
        scale=public.high // public.low,
        unet=adm.unet,
        conditions=_conditions(source),
        schedule=ScheduleConfig(name="linear"),
        variance="learned",
        resize="bilinear",
        first_timestep=0,
        corruption=CorruptionConfig(kind="none"),
        sampling=SAMPLING,
    )
    return Recipe(Upsampler, config, {**denoising(adm.unet, "adm", ""), **LABELS}, source, where)


def classifier_recipe(name: str, source: Mapping[str, Lazy], where: str, scale: float = 1.0) -> Recipe:
    """The classifier in a file of this public name.  scale: of its gradient, by default."""
    public = CLASSIFIERS[name]
    adm = adm_config(source, "", where, depth=public.depth)
    pooled, classes = (source.get(f"out.2.{key}") for key in ("positional_embedding", "c_proj.weight"))
    if pooled is None or classes is None or len(pooled.shape) != 2:
        raise ValueError(f"{where} has no attention pool (out.2.positional_embedding, out.2.c_proj): is it ADM's classifier?")
    config = ClassifierConfig(
        image_size=isqrt(pooled.shape[1] - 1) * adm.unet.multiple_of,
        unet=adm.unet,
        classes=classes.shape[0],
        schedule=ScheduleConfig(name=public.schedule),
        first_timestep=0,
        scale=scale,
    )
    return Recipe(Classifier, config, {**denoising(adm.unet, "adm", ""), **POOL}, source, where)


def _conditions(source: Mapping[str, Lazy]) -> Conditions:
    """Labels that were never dropped: the published models have no null, so there is no classifier-free guidance."""
    labels = source.get("label_emb.weight")
    return Conditions(label=None if labels is None else Label(classes=labels.shape[0], drop=0.0))


def _check_channels(adm: ADM, channels: int, where: str) -> None:
    if (adm.in_channels, adm.out_channels) != (channels, 6):
        actual = f"{adm.in_channels} channels come in and {adm.out_channels} go out"
        raise ValueError(f"{where}: {actual}, where {channels} and 6 are expected: is it the file that its name says?")

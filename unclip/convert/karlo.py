"""Karlo v1 alpha (KakaoBrain, CreativeML OpenRAIL-M): what its two layouts have in common, and its components' configs.

The largest public unCLIP: a prior of 1.0B, a decoder of 0.9B, an upsampler 64 -> 256 of two networks of 0.7B, over OpenAI's
ViT-L/14.  Sources: github kakaobrain/karlo (configs/*.yaml, karlo/models) and diffusers' UnCLIPPipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from decoder import Decoder, DecoderConfig
from prior import DiffusionPrior, PriorConfig, PriorNetworkConfig
from unclip.checkpoint import Component, Stored
from unclip.clip.encoder import CLIP
from unclip.conditions import Caption, Conditions, ImageEmbedding
from unclip.hub import repository
from unclip.nn.transformer import TransformerConfig
from unclip.nn.unet import UNetConfig
from unclip.sampling import Sampling
from unclip.types import Text
from upsamplers import CorruptionConfig, UpsamplerConfig

from .recipe import Loaders, Recipe
from .table import Row, channels_first, flat, row

UPSAMPLING = Sampling(sampler="ddpm", steps=7, variance="small", threshold="static")  # its last network was trained for 7
CONDITIONED = "network.conditions."
NULL_IMAGE = f"{CONDITIONED}image_embed.null"
NO_PRIOR = (
    "its weights are those for image variations; take kakaobrain/karlo-v1-alpha, or put that repository's folders prior and "
    "prior_scheduler beside the others and load again"
)


def prior_config(transformer: TransformerConfig, embed_dim: int, context: int, clamp: float | None) -> PriorConfig:
    """`clamp`: 10 in the original, 5 in diffusers' copy."""
    return PriorConfig(
        network=PriorNetworkConfig(
            transformer=transformer,
            embed_dim=embed_dim,
            context=context,
            states_width=embed_dim,
            null="empty",
            first_timestep=0,
        ),
        embedding="raw",
        scaling="statistics",
        text_drop=0.2,
        clamp=clamp,
        sampling=Sampling(sampler="ddpm", steps=25, guidance=4.0, variance="small"),
    )


def decoder_config(
    unet: UNetConfig, width: int, image_size: int, embed_dim: int, tokens: int, context: int, steps: int
) -> DecoderConfig:
    """width: of the context tokens.  `steps`: 50 in the original, 25 in diffusers' pipeline and the original's "fast"."""
    return DecoderConfig(
        image_size=image_size,
        unet=unet,
        conditions=Conditions(
            image_embed=ImageEmbedding(embed_dim=embed_dim, tokens=tokens, scale="raw", drop=0.1),
            text=Caption(
                kind="clip_states", context=context, states_width=embed_dim, embed_dim=embed_dim, null="empty", drop=0.3
            ),
            width=width,
        ),
        first_timestep=0,
        sampling=Sampling(sampler="ddpm", steps=steps, guidance=8.0, variance="learned", threshold="static"),
    )


def upsampler_config(unet: UNetConfig, scale: int) -> UpsamplerConfig:
    return UpsamplerConfig(
        scale=scale,
        unet=unet,
        corruption=CorruptionConfig(kind="none"),
        first_timestep=0,
        last_step="own",
        sampling=UPSAMPLING,
    )


def statistics(mean: str, std: str) -> dict[str, Row]:
    """The prior's mean and std per dimension; `norm` is the root mean square length that they imply."""

    def norm(mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        return (mean.double().square() + std.double().square()).sum().sqrt().to(mean.dtype)

    return {
        "scaling.mean": row(mean, how=flat),
        "scaling.std": row(std, how=flat),
        "scaling.norm": row(mean, std, how=norm),
    }


def conditions(names: Mapping[str, str], tokens: int) -> dict[str, Row]:
    """The decoder's projections of embedding and caption: ours from theirs, of which one stores tokens by channel."""
    table = {f"{CONDITIONED}{ours}.*": row(f"{theirs}.*") for ours, theirs in names.items()}
    table[f"{CONDITIONED}image_embed.to_tokens.*"] = row(f"{names['image_embed.to_tokens']}.*", how=channels_first(tokens))
    return table


def check_statistics(prior: DiffusionPrior, where: str) -> None:
    """Zero is what diffusers' model is created with, so it is what a partial file leaves behind."""
    for name in ("mean", "std"):
        value = getattr(prior.scaling, name)
        if not torch.isfinite(value).all() or not value.any() or (name == "std" and (value <= 0).any()):
            raise ValueError(f"{where}: the embeddings' {name} is zero or not finite; the file is not whole, get it again")


def assemble(recipes: dict[str, Recipe], folder: Path, source: str, layout: str, dtype: torch.dtype | None) -> Stored:
    """Loaders of the recipes' components; prior and decoder are given CLIP's empty caption, which is their null."""
    empty: list[Text] = []

    def clip() -> Component[Any]:
        component = recipes["clip"].make(dtype)
        if not empty:
            assert isinstance(component, CLIP)
            with torch.no_grad():
                empty.append(component.encode_text([""]))
        return component

    def with_null(recipe: Recipe) -> Component[Any]:
        if not empty:
            clip()  # and let go of it: one component in memory at a time
        component = recipe.make(dtype)
        assert isinstance(component, (DiffusionPrior, Decoder))
        if isinstance(component, DiffusionPrior):
            check_statistics(component, recipe.where)
        component.set_null(empty[0])
        return component

    components: Loaders = {"clip": clip}
    if "prior" in recipes:
        components["prior"] = partial(with_null, recipes["prior"])
    components["decoder"] = partial(with_null, recipes["decoder"])
    for key, recipe in recipes.items():
        if key.startswith("upsampler_"):
            components[key] = partial(recipe.make, dtype)
    provenance = {"family": "Karlo v1 alpha (KakaoBrain)", "license": "CreativeML OpenRAIL-M", "source": source, "layout": layout}
    if "prior" not in recipes:
        provenance["no_prior"] = NO_PRIOR
    name = Path(repository(source)).name or Path(source).resolve().name or "karlo"
    return Stored(folder=folder, name=name, components=components, candidates=1, provenance=provenance, clip_identity=None)

"""Karlo as diffusers stores it: a folder per component, of UnCLIPPipeline or UnCLIPImageVariationPipeline.

Captions and pictures come in two repositories that share decoder and upsamplers; what one lacks may stand in the same
folder, and from the hub it is fetched from the other.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from decoder import Decoder
from prior import DiffusionPrior
from unclip.checkpoint import Stored
from unclip.clip.encoder import CLIP
from unclip.files import read_json
from unclip.hub import download, repository
from unclip.nn.transformer import TransformerConfig
from unclip.nn.unet import UNetConfig
from unclip.weights import Lazy, in_folder
from upsamplers import Upsampler

from . import clip as clips
from .karlo import NULL_IMAGE, assemble, conditions, decoder_config, prior_config, statistics, upsampler_config
from .recipe import Recipe, number, require
from .table import Row, flat, row, rows_of
from .unet import denoising

PIPELINES = ("UnCLIPPipeline", "UnCLIPImageVariationPipeline")
OTHER_HALF = {
    "kakaobrain/karlo-v1-alpha": ("kakaobrain/karlo-v1-alpha-image-variations", ("image_encoder", "feature_extractor")),
    "kakaobrain/karlo-v1-alpha-image-variations": ("kakaobrain/karlo-v1-alpha", ("prior", "prior_scheduler")),
}
NEEDED = ("text_encoder", "text_proj", "decoder", "super_res_first", "super_res_last")

PRIOR = {
    "network.time.hidden.*": row("time_embedding.linear_1.*"),
    "network.time.out.*": row("time_embedding.linear_2.*"),
    "network.image_embed.*": row("proj_in.*"),
    "network.text_embed.*": row("embedding_proj.*"),
    "network.text.*": row("encoder_hidden_states_proj.*"),
    "network.positions": row("positional_embedding", how=rows_of),
    "network.query": row("prd_embedding", how=flat),
    "network.out.*": row("proj_to_clip_embeddings.*"),
    "network.transformer.norm.*": row("norm_out.*"),
    "network.transformer.blocks.#.norm1.*": row("transformer_blocks.#.norm1.*"),
    "network.transformer.blocks.#.attention.qkv.*": row(*(f"transformer_blocks.#.attn1.to_{x}.*" for x in "qkv")),
    "network.transformer.blocks.#.attention.out.*": row("transformer_blocks.#.attn1.to_out.0.*"),
    "network.transformer.blocks.#.norm2.*": row("transformer_blocks.#.norm3.*"),
    "network.transformer.blocks.#.up.*": row("transformer_blocks.#.ff.net.0.proj.*"),
    "network.transformer.blocks.#.down.*": row("transformer_blocks.#.ff.net.2.*"),
    **statistics("clip_mean", "clip_std"),
}
CONDITIONS = {
    "image_embed.to_emb": "text_proj.clip_image_embeddings_project_to_time_embeddings",
    "image_embed.to_tokens": "text_proj.clip_extra_context_tokens_proj",
    "text.to_emb": "text_proj.embedding_proj",
    "text.to_states.0": "text_proj.encoder_hidden_states_proj",
    "text.to_states.1": "text_proj.text_encoder_hidden_states_norm",
}


def recognise(folder: Path) -> bool:
    return (folder / "model_index.json").is_file() and read_json(folder / "model_index.json").get("_class_name") in PIPELINES


def open_karlo(folder: Path, source: str, dtype: torch.dtype | None = None, variant: str | None = None) -> Stored:
    """The pipeline in a folder; `source` is what its user called it."""
    folders = [folder]
    if repository(source) in OTHER_HALF:
        other, names = OTHER_HALF[repository(source)]
        if not (folder / names[0] / "config.json").is_file():
            try:
                folders.append(download(other, [f"{name}/*{end}" for name in names for end in (".json", ".safetensors")]))
            except ValueError as error:  # one half is of use without the other
                warnings.warn(f"{source} goes without {names[0]}, which {other} would have brought: {error}", stacklevel=2)
    return _Folder(folders, source, variant).open(dtype)


class _Folder:
    """The components' configs, read once; their tensors, known by name and shape."""

    def __init__(self, folders: Sequence[Path], source: str, variant: str | None = None):
        self.folder, self.source, self.variant = folders[0], source, variant
        subfolders = {path.name: path for folder in reversed(folders) for path in folder.iterdir() if path.is_dir()}
        self.folders = {name: path for name, path in subfolders.items() if any(path.glob("*.json"))}
        missing = [name for name in NEEDED if name not in self.folders]
        if missing:
            raise ValueError(f"{source} is half of a Karlo: it has no {', '.join(missing)}; a whole one has {', '.join(NEEDED)}")

    def open(self, dtype: torch.dtype | None) -> Stored:
        recipes = {"clip": self.clip()}
        if "prior" in self.folders:
            recipes["prior"] = self.prior()
        recipes["decoder"] = self.decoder()
        upsampler = self.upsampler()
        recipes[f"upsampler_{self.image_size * upsampler.config.scale}"] = upsampler  # type: ignore[attr-defined]
        return assemble(recipes, self.folder, self.source, "diffusers", dtype)

    def config(self, name: str) -> dict[str, Any]:
        return read_json(self.where(name))

    def tensors(self, name: str) -> dict[str, Lazy]:
        return in_folder(self.folders[name], self.variant)

    def where(self, name: str) -> Path:
        return self.folders[name] / "config.json"

    def scheduler(self, name: str, **expected: Any) -> dict[str, Any]:
        """A scheduler's config; ValueError when it is not what the stage was trained with.  Absent: nothing to contradict."""
        if name not in self.folders:
            return {}
        path = self.folders[name] / "scheduler_config.json"
        config = read_json(path)
        require(config, path, num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", **expected)
        return config

    @cached_property
    def image_size(self) -> int:
        return number(self.config("decoder"), "sample_size", self.where("decoder"), 64)

    @cached_property
    def text(self) -> dict[str, Lazy]:
        return self.tensors("text_encoder")

    def clip(self) -> Recipe:
        source, vision, preprocess = dict(self.text), None, {}
        if "image_encoder" in self.folders:
            vision = self.config("image_encoder")
            source |= self.tensors("image_encoder")
        if "feature_extractor" in self.folders:
            preprocess = read_json(self.folders["feature_extractor"] / "preprocessor_config.json")
        where = str(self.folders["text_encoder"])
        config = clips.hugging_face(source, self.config("text_encoder"), vision, where)
        if preprocess:
            config = config.replace(
                mean=preprocess.get("image_mean"),
                std=preprocess.get("image_std"),
                resize="crop" if preprocess.get("do_center_crop", True) else "squash",
            )
        constants = {"network.logit_scale": torch.tensor(clips.LOGIT_SCALE)}
        return Recipe(CLIP, config, clips.HUGGING_FACE, source, where, clips.IGNORED, constants)

    def prior(self) -> Recipe:
        config, where = self.config("prior"), self.where("prior")
        require(
            config, where, additional_embeddings=4, added_emb_type="prd", encoder_hid_proj_type="linear", norm_in_type=None,
            embedding_proj_norm_type=None, time_embed_act_fn="silu",
        )  # fmt: skip
        schedule = self.scheduler("prior_scheduler", variance_type="fixed_small_log", prediction_type="sample")
        heads = number(config, "num_attention_heads", where, 32)
        transformer = TransformerConfig(
            width=heads * number(config, "attention_head_dim", where, 64),
            layers=number(config, "num_layers", where, 20, most=1000),
            heads=heads,
        )
        ours = prior_config(
            transformer,
            embed_dim=number(config, "embedding_dim", where, 768),
            context=number(config, "num_embeddings", where, 77),
            clamp=float(schedule.get("clip_sample_range", 5.0)) if schedule.get("clip_sample", True) else None,
        )
        return Recipe(DiffusionPrior, ours, PRIOR, self.tensors("prior"), str(self.folders["prior"]))

    def decoder(self) -> Recipe:
        config, where = self.config("decoder"), self.where("decoder")
        projection, at = self.config("text_proj"), self.where("text_proj")
        require(config, where, class_embed_type="identity", encoder_hid_dim_type=None, addition_embed_type=None)
        self.scheduler("decoder_scheduler", variance_type="learned_range", prediction_type="epsilon", clip_sample_range=1.0)
        context = number(config, "cross_attention_dim", where)
        tokens = number(projection, "clip_extra_context_tokens", at, 4)
        require(projection, at, cross_attention_dim=context)
        unet = self.unet("decoder", in_channels=3, out_channels=6)
        source = {f"decoder.{name}": x for name, x in self.tensors("decoder").items()}
        source |= {f"text_proj.{name}": x for name, x in self.tensors("text_proj").items()}
        ours = decoder_config(
            unet,
            context,
            image_size=self.image_size,
            embed_dim=number(projection, "clip_embeddings_dim", at, 768),
            tokens=tokens,
            context=self.text["text_model.embeddings.position_embedding.weight"].shape[0],
            steps=25,
        )
        table = {
            **conditions(CONDITIONS, tokens),
            NULL_IMAGE: row("text_proj.learned_classifier_free_guidance_embeddings"),
            **denoising(unet, "diffusers", "decoder."),
        }
        return Recipe(Decoder, ours, table, source, f"{self.folders['decoder']} with text_proj")

    def upsampler(self) -> Recipe:
        config, where = self.config("super_res_first"), self.where("super_res_first")
        size = number(config, "sample_size", where, 256)
        if size % self.image_size:
            raise ValueError(f"{where}: sample_size is {size}, no multiple of the decoder's {self.image_size}")
        self.scheduler("super_res_scheduler", variance_type="fixed_small_log", prediction_type="epsilon", clip_sample_range=1.0)
        unet = self.unet("super_res_first", in_channels=6, out_channels=3)
        if self.unet("super_res_last", in_channels=6, out_channels=3) != unet:
            raise ValueError(f"{self.where('super_res_last')}: the network of the last step is built otherwise than the first's")
        source: dict[str, Lazy] = {}
        table: dict[str, Row] = {}
        for name, prefix in (("super_res_first", ""), ("super_res_last", "last_")):
            source |= {f"{name}.{key}": x for key, x in self.tensors(name).items()}
            table |= denoising(unet, "diffusers", f"{name}.", f"network.{prefix}time.", f"network.{prefix}unet.")
        ours = upsampler_config(unet, size // self.image_size)
        return Recipe(Upsampler, ours, table, source, f"{self.folders['super_res_first']} with super_res_last")

    def unet(self, name: str, in_channels: int, out_channels: int) -> UNetConfig:
        """Our config of a UNet2DConditionModel or UNet2DModel built of residual blocks."""
        config, where = self.config(name), self.where(name)
        require(config, where, in_channels=in_channels, out_channels=out_channels)
        widths = config.get("block_out_channels")
        kinds = {"ResnetDownsampleBlock2D": False, "SimpleCrossAttnDownBlock2D": True}
        down, up = config.get("down_block_types", []), config.get("up_block_types", [])
        mirrored = [kind.replace("Down", "Up", 1).replace("Downsample", "Upsample") for kind in reversed(down)]
        if not widths or len(down) != len(widths) or any(kind not in kinds for kind in down) or up != mirrored:
            raise ValueError(
                f"{where} describes no UNet of Karlo's: block_out_channels {widths}, down_block_types {down}, up_block_types {up}"
            )
        if any(width % widths[0] for width in widths):
            raise ValueError(f"{where}: block_out_channels {widths} are no multiples of the first")
        attention = tuple(level for level, kind in enumerate(down) if kinds[kind])
        require(
            config, where, act_fn="silu", norm_num_groups=32, norm_eps=1e-5, flip_sin_to_cos=True, freq_shift=0,
            center_input_sample=False, time_embedding_type="positional", time_embedding_dim=None, mid_block_scale_factor=1,
            **({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"} if attention else {"add_attention": False}),
        )  # fmt: skip
        modulation = config.get("resnet_time_scale_shift", "default")
        if modulation not in ("default", "scale_shift"):
            raise ValueError(f"{where}: resnet_time_scale_shift is {modulation!r}; known are 'default' and 'scale_shift'")
        return UNetConfig(
            channels=widths[0],
            depth=number(config, "layers_per_block", where, 2, most=100),
            multiple=tuple(width // widths[0] for width in widths),
            attention=attention,
            head_channels=number(config, "attention_head_dim", where, 8) if attention else 64,
            modulation="add" if modulation == "default" else "scale_shift",
        )

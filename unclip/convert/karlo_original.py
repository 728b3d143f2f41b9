"""Karlo as KakaoBrain published it: five files of pickles, whose configs follow from their tensors' shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from decoder import Decoder
from prior import DiffusionPrior
from unclip.checkpoint import Stored
from unclip.clip.encoder import CLIP
from unclip.nn.transformer import TransformerConfig
from unclip.weights import Lazy, tensors_by_name, tree
from upsamplers import Upsampler

from . import clip as clips
from .karlo import NULL_IMAGE, assemble, conditions, decoder_config, prior_config, statistics, upsampler_config
from .recipe import Recipe
from .table import flat, heads_last, row, rows_of, under
from .unet import adm_config, denoising

FILES = {  # as they are published; downloads may have mangled what stands between
    "clip": "ViT-L-14.pt",
    "statistics": "ViT-L-14_stats.th",
    "prior": "prior-ckpt*.ckpt",
    "decoder": "decoder-ckpt*.ckpt",
    "upsampler": "improved-sr-ckpt*.ckpt",
}
IMAGE_SIZE, HEAD, CLAMP = 64, 64, 10.0  # which no tensor tells (configs/*.yaml, prior_model.py)

PRIOR = {
    "network.time.hidden.*": row("time_embed.0.*"),
    "network.time.out.*": row("time_embed.2.*"),
    "network.image_embed.*": row("clip_img_proj.*"),
    "network.text_embed.*": row("text_emb_proj.*"),
    "network.text.*": row("text_enc_proj.*"),
    "network.positions": row("positional_embedding", how=rows_of),
    "network.query": row("prd_emb", how=flat),
    "network.out.*": row("out_proj.*"),
    "network.transformer.norm.*": row("final_ln.*"),
    "network.transformer.blocks.#.norm1.*": row("transformer.resblocks.#.ln_1.*"),
    # Rows hold q, k and v of one head after the other.
    "network.transformer.blocks.#.attention.qkv.*": row(
        "transformer.resblocks.#.attn.c_qkv.*", how=heads_last(3, head_width=HEAD)
    ),
    "network.transformer.blocks.#.attention.out.*": row("transformer.resblocks.#.attn.c_proj.*"),
    "network.transformer.blocks.#.norm2.*": row("transformer.resblocks.#.ln_2.*"),
    "network.transformer.blocks.#.up.*": row("transformer.resblocks.#.mlp.c_fc.*"),
    "network.transformer.blocks.#.down.*": row("transformer.resblocks.#.mlp.c_proj.*"),
}
CONDITIONS = {
    "image_embed.to_emb": "model.clip_emb",
    "image_embed.to_tokens": "model.clip_tok_proj",
    "text.to_emb": "model.text_feat_proj",
    "text.to_states.0": "model.text_seq_proj.0",
    "text.to_states.1": "model.text_seq_proj.1",
}


def recognise(folder: Path) -> bool:
    """Half of the files will do, to say which others are missing."""
    return any(any(folder.glob(FILES[name])) for name in ("prior", "decoder", "upsampler"))


def open_karlo(folder: Path, source: str, dtype: torch.dtype | None = None, variant: str | None = None) -> Stored:
    """The pipeline in a folder of the five files; `source` is what its user called it.  variant: a file's name, of several."""
    matches = {name: sorted(folder.glob(pattern)) for name, pattern in FILES.items()}
    matches = {name: [path for path in paths if path.name == variant] or paths for name, paths in matches.items()}
    missing = [FILES[name] for name, paths in matches.items() if not paths]
    several = [FILES[name] for name, paths in matches.items() if len(paths) > 1]
    if missing or several:
        choose = "(--variant FILE takes one)"
        wrong = f"it has no {', '.join(missing)}" if missing else f"it has several {', '.join(several)} {choose}"
        raise ValueError(f"{source} is no whole Karlo: {wrong}; a whole one has one each of {', '.join(FILES.values())}")
    paths = {name: path for name, (path,) in matches.items()}
    clip = _clip(paths["clip"])
    context = clip.source["positional_embedding"].shape[0]
    decoder, upsampler = _decoder(paths["decoder"], context), _upsampler(paths["upsampler"])
    recipes = {"clip": clip, "prior": _prior(paths["prior"], paths["statistics"]), "decoder": decoder}
    recipes[f"upsampler_{IMAGE_SIZE * upsampler.config.scale}"] = upsampler  # type: ignore[attr-defined]
    return assemble(recipes, folder, source, "original", dtype)


def _weights(path: Path) -> dict[str, Lazy]:
    """The tensors of a checkpoint's `state_dict`; what else a trainer has put there is not looked at."""
    saved = tree(path)
    if not isinstance(saved, dict) or not isinstance(saved.get("state_dict"), dict):
        raise ValueError(f"{path} is no checkpoint of Karlo's: expected a dictionary with 'state_dict'")
    return tensors_by_name(saved["state_dict"], str(path))


def _shape(source: Mapping[str, Lazy], name: str, where: Path, dimensions: int = 2) -> tuple[int, ...]:
    if name not in source or len(source[name].shape) != dimensions:
        raise ValueError(f"{where} has no tensor {name} of {dimensions} dimensions: is it the file that it should be?")
    return source[name].shape


def _clip(path: Path) -> Recipe:
    source = tensors_by_name(tree(path), str(path))
    return Recipe(CLIP, clips.openai(source, str(path)), clips.OPENAI, source, str(path), clips.IGNORED)


def _prior(path: Path, statistics_path: Path) -> Recipe:
    source, stats = _weights(path), tensors_by_name(tree(statistics_path), str(statistics_path))
    if sorted(stats) != ["0", "1"]:
        raise ValueError(f"{statistics_path} must hold two tensors, mean and std; it holds {', '.join(stats) or 'none'}")
    _, positions, width = _shape(source, "model.positional_embedding", path, 3)
    layers = sum(name.endswith(".attn.c_qkv.weight") for name in source)
    transformer = TransformerConfig(width=width, layers=layers, heads=width // HEAD)
    embed_dim = _shape(source, "model.out_proj.weight", path)[0]
    config = prior_config(transformer, embed_dim, context=positions - 4, clamp=CLAMP)
    table = {**under("", PRIOR, "model."), **statistics("statistics.0", "statistics.1")}
    source |= {f"statistics.{name}": x for name, x in stats.items()}
    return Recipe(DiffusionPrior, config, table, source, f"{path} with {statistics_path.name}")


def _decoder(path: Path, context: int) -> Recipe:
    source = _weights(path)
    adm = adm_config(source, "model.", str(path), HEAD)
    if adm.context_width is None:
        raise ValueError(f"{path} has no encoder_kv, through which embeddings enter: is it Karlo's decoder?")
    rows, embed_dim = _shape(source, "model.clip_tok_proj.weight", path)
    tokens = rows // adm.context_width
    config = decoder_config(adm.unet, adm.context_width, IMAGE_SIZE, embed_dim, tokens, context, steps=50)
    table = {
        **conditions(CONDITIONS, tokens),
        NULL_IMAGE: row("model.cf_param"),
        **denoising(adm.unet, "adm", "model."),
    }
    return Recipe(Decoder, config, table, source, str(path))


def _upsampler(path: Path) -> Recipe:
    source = _weights(path)
    unet = adm_config(source, "model_first_steps.", str(path), HEAD).unet
    table = {
        **denoising(unet, "adm", "model_first_steps."),
        **denoising(unet, "adm", "model_last_step.", "network.last_time.", "network.last_unet."),
    }
    return Recipe(Upsampler, upsampler_config(unet, scale=4), table, source, str(path))

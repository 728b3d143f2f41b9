"""CLIP as Hugging Face's transformers and OpenAI store it, as an open_clip model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from unclip.clip.encoder import Architecture, CLIPConfig, TextTower, VisionTower
from unclip.weights import Lazy

from .table import Row, row, transposed

LOGIT_SCALE = math.log(100)  # of OpenAI's models; transformers' towers come without it
VOCABULARY = 49408

LAYER = {
    "ln_1.*": row("layer_norm1.*"),
    "attn.in_proj_weight": row(*(f"self_attn.{x}_proj.weight" for x in "qkv")),
    "attn.in_proj_bias": row(*(f"self_attn.{x}_proj.bias" for x in "qkv")),
    "attn.out_proj.*": row("self_attn.out_proj.*"),
    "ln_2.*": row("layer_norm2.*"),
    "mlp.c_fc.*": row("mlp.fc1.*"),
    "mlp.c_proj.*": row("mlp.fc2.*"),
}


def _layers(ours: str, theirs: str) -> dict[str, Row]:
    return {f"{ours}.#.{name}": Row(tuple(f"{theirs}.#.{t}" for t in r.theirs), r.how) for name, r in LAYER.items()}


TEXT = {
    "network.token_embedding.weight": row("text_model.embeddings.token_embedding.weight"),
    "network.positional_embedding": row("text_model.embeddings.position_embedding.weight"),
    "network.ln_final.*": row("text_model.final_layer_norm.*"),
    "network.text_projection": row("text_projection.weight", how=transposed),
    **_layers("network.transformer.resblocks", "text_model.encoder.layers"),
}
VISION = {
    "network.visual.class_embedding": row("vision_model.embeddings.class_embedding"),
    "network.visual.conv1.weight": row("vision_model.embeddings.patch_embedding.weight"),
    "network.visual.positional_embedding": row("vision_model.embeddings.position_embedding.weight"),
    "network.visual.ln_pre.*": row("vision_model.pre_layrnorm.*"),
    "network.visual.ln_post.*": row("vision_model.post_layernorm.*"),
    "network.visual.proj": row("visual_projection.weight", how=transposed),
    **_layers("network.visual.transformer.resblocks", "vision_model.encoder.layers"),
}
HUGGING_FACE = {**TEXT, **VISION}
OPENAI = {"network.*": row("*")}  # open_clip took over OpenAI's names
IGNORED = ("position_ids", "attn_mask", "input_resolution", "context_length", "vocab_size")  # constants, no weights


def hugging_face(source: Mapping[str, Lazy], text: Mapping[str, Any], vision: Mapping[str, Any] | None, where: str) -> CLIPConfig:
    """From the towers' tensors; their config.json tells heads and activation."""
    names = {ours: r.theirs[0] for ours, r in HUGGING_FACE.items()}
    activations = {tower.get("hidden_act", "quick_gelu") for tower in (text, vision) if tower is not None}
    if len(activations) != 1 or not activations <= {"quick_gelu", "gelu"}:
        raise ValueError(
            f"{where}: hidden_act is {', '.join(sorted(activations))}; known are quick_gelu and gelu, for both towers"
        )
    for tower in (text, vision or {}):
        if tower.get("layer_norm_eps", 1e-5) != 1e-5:
            raise ValueError(f"{where}: layer_norm_eps is {tower['layer_norm_eps']}; open_clip's is 1e-05")
    heads = int(text.get("num_attention_heads", 8)), int((vision or {}).get("num_attention_heads", 12))
    architecture = _architecture(source, names, heads, (1, 0), vision is not None, where)
    return CLIPConfig(architecture=architecture, quick_gelu=activations == {"quick_gelu"})


def openai(source: Mapping[str, Lazy], where: str) -> CLIPConfig:
    """From the tensors alone: OpenAI's heads are 64 wide, its activation is quick GELU."""
    names = {name: name.removeprefix("network.") for name in HUGGING_FACE}
    return CLIPConfig(architecture=_architecture(source, names, None, (0, 1), True, where), quick_gelu=True)


def _architecture(
    source: Mapping[str, Lazy],
    names: Mapping[str, str],
    heads: tuple[int, int] | None,
    projection: tuple[int, int],  # which dimensions of a projection are its width and the embedding's
    with_vision: bool,
    where: str,
) -> Architecture:
    def shape(name: str) -> tuple[int, ...]:
        if names[f"network.{name}"] not in source:
            raise ValueError(f"{where} has no tensor {names[f'network.{name}']}: is it a CLIP?")
        return source[names[f"network.{name}"]].shape

    def layers(name: str) -> int:
        pattern = re.escape(names[f"network.{name}.#.ln_1.*"]).replace(r"\#", r"(\d+)").replace(r"\*", "weight")
        return sum(re.fullmatch(pattern, key) is not None for key in source)

    width, embed = (shape("text_projection")[i] for i in projection)
    vocabulary = shape("token_embedding.weight")[0]
    if vocabulary != VOCABULARY:
        raise ValueError(f"{where} has {vocabulary} byte pairs, CLIP's tokenizer has {VOCABULARY}")
    vision = None
    if with_vision:
        inner, _, _, patch = shape("visual.conv1.weight")
        side = math.isqrt(shape("visual.positional_embedding")[0] - 1) * patch
        head = inner // heads[1] if heads else 64
        vision = VisionTower(
            image_size=side, patch_size=patch, width=inner, layers=layers("visual.transformer.resblocks"), head_width=head
        )
    text = TextTower(
        context_length=shape("positional_embedding")[0],
        width=width,
        layers=layers("transformer.resblocks"),
        heads=heads[0] if heads else width // 64,
    )
    return Architecture(embed_dim=embed, vision=vision, text=text)

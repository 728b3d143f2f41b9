"""A tiny Karlo of random weights: as diffusers' pipelines, as their folders, and as the five original files."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

EMBED, LEVELS, CONTEXT, SIZE = 64, (64, 128), 48, 16
SR_LEVELS = (32, 64)


def fill(module: nn.Module, seed: int) -> Any:
    """Seeded weights everywhere, also where a model is created with zeros, that keep activations at about their size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                noise = 1 + 0.3 * noise
            elif parameter.ndim > 1 and "embedding" not in name:
                noise = noise * parameter[0].numel() ** -0.5
            else:
                noise = 0.3 * noise
            parameter.copy_(noise)
    return module.eval()


def unet(levels: tuple[int, ...], attention: bool, **changes: Any) -> dict[str, Any]:
    """What diffusers' UNets of Karlo's kind are called with."""
    kind, inner = ("SimpleCrossAttn{}Block2D", len(levels) - 1) if attention else ("Resnet{}sampleBlock2D", 0)
    down = ["ResnetDownsampleBlock2D"] * (len(levels) - inner) + [kind.format("Down")] * inner
    up = [kind.format("Up")] * inner + ["ResnetUpsampleBlock2D"] * (len(levels) - inner)
    return dict(block_out_channels=levels, down_block_types=tuple(down), up_block_types=tuple(up), **changes)


def prior(seed: int = 1, heads: int = 2, layers: int = 2, embed: int = EMBED) -> Any:
    from diffusers import PriorTransformer

    model = fill(PriorTransformer(num_attention_heads=heads, num_layers=layers, embedding_dim=embed), seed)
    with torch.no_grad():
        model.clip_std.copy_(0.3 + 0.2 * torch.rand(1, embed, generator=torch.Generator().manual_seed(seed)))
    return model


def decoder(seed: int = 2, levels: tuple[int, ...] = LEVELS, depth: int = 1, context: int = CONTEXT, embed: int = EMBED) -> Any:
    """The UNet and the projections before it."""
    from diffusers import UNet2DConditionModel
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    model = UNet2DConditionModel(
        sample_size=SIZE if levels == LEVELS else 64,
        layers_per_block=depth,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        in_channels=3,
        out_channels=6,
        cross_attention_dim=context,
        class_embed_type="identity",
        attention_head_dim=64,
        resnet_time_scale_shift="scale_shift",
        **unet(levels, True),
    )
    projections = UnCLIPTextProjModel(time_embed_dim=4 * levels[0], cross_attention_dim=context, clip_embeddings_dim=embed)
    return fill(model, seed), fill(projections, seed + 10)


def super_res(seed: int, levels: tuple[int, ...] = SR_LEVELS, depth: int = 1, size: int | None = 4 * SIZE) -> Any:
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=size, layers_per_block=depth, in_channels=6, out_channels=3, add_attention=False, **unet(levels, False)
    )
    return fill(model, seed)


def text_encoder(seed: int = 5, **changes: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes = dict(hidden_size=EMBED, projection_dim=EMBED, intermediate_size=4 * EMBED, num_hidden_layers=2, num_attention_heads=1)
    config = CLIPTextConfig(vocab_size=49408, bos_token_id=49406, eos_token_id=49407, **{**sizes, **changes})
    return fill(CLIPTextModelWithProjection(config), seed)


def image_encoder(seed: int = 6, **changes: Any) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = dict(hidden_size=64, projection_dim=EMBED, intermediate_size=256, num_hidden_layers=2, num_attention_heads=1)
    config = CLIPVisionConfig(image_size=32, patch_size=8, **{**sizes, **changes})
    return fill(CLIPVisionModelWithProjection(config), seed)


@functools.cache
def _vocabulary() -> tuple[dict[str, int], list[str]]:
    from unclip.clip.tokenizer import byte_pairs

    bpe = byte_pairs()
    start, end = bpe.all_special_ids[:2]
    vocabulary = {word: i for word, i in bpe.encoder.items() if i not in (start, end)}
    return vocabulary | {"<|startoftext|>": start, "<|endoftext|>": end}, [" ".join(pair) for pair in bpe.bpe_ranks]


def tokenizer(folder: Path) -> Any:
    """transformers' CLIP tokenizer, over the byte pairs that come with open_clip."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words, merges = _vocabulary()
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def scheduler(**changes: Any) -> Any:
    from diffusers import UnCLIPScheduler

    return UnCLIPScheduler(**changes)


def exact(scheduler: Any) -> Any:
    """A fresh one with tables in float64, as the original's (and ours) are.

    In float32 they lose 5e-4 of the picture in the last step, and random networks make 0.7 / 255 of what they lose in others.
    """
    again = scheduler.from_config(scheduler.config)
    u = torch.arange(1001, dtype=torch.float64) / 1000
    bar = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
    again.betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    again.alphas = 1 - again.betas
    again.alphas_cumprod = again.alphas.cumprod(0)
    return again


@functools.cache
def components() -> dict[str, Any]:
    """The components that both pipelines share, and those of either."""
    unet_model, projections = decoder()
    return {
        "prior": prior(),
        "prior_scheduler": scheduler(prediction_type="sample", clip_sample_range=5.0),
        "decoder": unet_model,
        "text_proj": projections,
        "decoder_scheduler": scheduler(variance_type="learned_range"),
        "super_res_first": super_res(3),
        "super_res_last": super_res(4),
        "super_res_scheduler": scheduler(),
        "text_encoder": text_encoder(),
        "image_encoder": image_encoder(),
    }


def save_diffusers(folder: Path, half: str = "captions", weights: str = "safetensors") -> Path:
    """What `save_pretrained` of the one or the other pipeline writes, without the tokenizer, which nobody reads."""
    leave = ("image_encoder",) if half == "captions" else ("prior", "prior_scheduler")
    kept = {name: part for name, part in components().items() if half == "both" or name not in leave}
    for name, part in kept.items():
        if isinstance(part, nn.Module) and name not in ("text_encoder", "image_encoder"):
            part.save_pretrained(folder / name, safe_serialization=weights == "safetensors")
        else:
            part.save_pretrained(folder / name)
    kind = "UnCLIPImageVariationPipeline" if half == "pictures" else "UnCLIPPipeline"
    index = {name: ["diffusers", type(part).__name__] for name, part in kept.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, "_diffusers_version": "0.16.0", **index}))
    return folder


# The original files


def save_original(folder: Path) -> Path:
    """The same weights under KakaoBrain's names (karlo/models, karlo/modules at 3c68a50) and OpenAI's."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = components()
    save = {
        "prior-ckpt-step=01000000-of-01000000.ckpt": original_prior(parts["prior"]),
        "decoder-ckpt-step=01000000-of-01000000.ckpt": original_decoder(parts["decoder"], parts["text_proj"]),
        "improved-sr-ckpt-step=1.2M.ckpt": {
            **original_unet(parts["super_res_first"], "model_first_steps."),
            **original_unet(parts["super_res_last"], "model_last_step."),
        },
    }
    for name, state in save.items():
        torch.save({"state_dict": {k: v.detach().clone() for k, v in state.items()}, "global_step": 1_000_000}, folder / name)
    stats = parts["prior"]
    torch.save((stats.clip_mean[0].detach().clone(), stats.clip_std[0].detach().clone()), folder / "ViT-L-14_stats.th")
    save_openai(openai_state(parts["text_encoder"], parts["image_encoder"]), folder / "ViT-L-14.pt")
    return folder


def interleaved(parts: list[Tensor], head: int = 64) -> Tensor:
    """Rows of q, k, v one after the other -> head by head, q, k and v of each."""
    return torch.cat([torch.cat(rows) for rows in zip(*(part.split(head) for part in parts))])


def affine(ours: str, module: Any) -> dict[str, Tensor]:
    return {f"{ours}.weight": module.weight, f"{ours}.bias": module.bias}


def original_prior(model: Any) -> dict[str, Tensor]:
    state = {"positional_embedding": model.positional_embedding, "prd_emb": model.prd_embedding}
    state |= affine("time_embed.0", model.time_embedding.linear_1) | affine("time_embed.2", model.time_embedding.linear_2)
    state |= affine("clip_img_proj", model.proj_in) | affine("text_emb_proj", model.embedding_proj)
    state |= affine("text_enc_proj", model.encoder_hidden_states_proj) | affine("out_proj", model.proj_to_clip_embeddings)
    state |= affine("final_ln", model.norm_out)
    for i, block in enumerate(model.transformer_blocks):
        name, attention = f"transformer.resblocks.{i}", block.attn1
        for end in ("weight", "bias"):
            parts = [getattr(x, end) for x in (attention.to_q, attention.to_k, attention.to_v)]
            state[f"{name}.attn.c_qkv.{end}"] = interleaved(parts)
        state |= affine(f"{name}.attn.c_proj", attention.to_out[0])
        state |= affine(f"{name}.ln_1", block.norm1) | affine(f"{name}.ln_2", block.norm3)
        state |= affine(f"{name}.mlp.c_fc", block.ff.net[0].proj) | affine(f"{name}.mlp.c_proj", block.ff.net[2])
    return {f"model.{name}": tensor for name, tensor in state.items()}


def original_decoder(model: Any, projections: Any) -> dict[str, Tensor]:
    state = original_unet(model, "model.")
    for ours, theirs in {
        "clip_emb": projections.clip_image_embeddings_project_to_time_embeddings,
        "clip_tok_proj": projections.clip_extra_context_tokens_proj,
        "text_feat_proj": projections.embedding_proj,
        "text_seq_proj.0": projections.encoder_hidden_states_proj,
        "text_seq_proj.1": projections.text_encoder_hidden_states_norm,
    }.items():
        state |= affine(f"model.{ours}", theirs)
    return state | {"model.cf_param": projections.learned_classifier_free_guidance_embeddings}


def original_unet(model: Any, prefix: str) -> dict[str, Tensor]:
    """A UNetModel's three lists: a level's upsampling block stands behind the others in the last entry of its level."""
    state = affine("time_embed.0", model.time_embedding.linear_1) | affine("time_embed.2", model.time_embedding.linear_2)
    state |= affine("input_blocks.0.0", model.conv_in) | affine("out.0", model.conv_norm_out) | affine("out.2", model.conv_out)
    entries = [[]] + [entry for block in model.down_blocks for entry in _entries(block)]
    for n, entry in enumerate(entries):
        state |= _layers(f"input_blocks.{n}", entry)
    middle = model.mid_block
    attention = [a for a in middle.attentions or [] if a is not None]
    state |= _layers("middle_block", [middle.resnets[0], *attention, middle.resnets[1]])
    outs: list[list[Any]] = []
    for block in model.up_blocks:
        *blocks, last = _entries(block)
        outs += [*blocks[:-1], [*blocks[-1], *last]] if block.upsamplers else [*blocks, last]
    for n, entry in enumerate(outs):
        state |= _layers(f"output_blocks.{n}", entry)
    return {prefix + name: tensor for name, tensor in state.items()}


def _entries(block: Any) -> Iterator[list[Any]]:
    attentions = list(getattr(block, "attentions", None) or [])
    for i, resnet in enumerate(block.resnets):
        yield [resnet, attentions[i]] if attentions else [resnet]
    for resnet in getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or []:
        yield [resnet]


def _layers(name: str, layers: list[Any]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for i, layer in enumerate(layers):
        at = f"{name}.{i}"
        if hasattr(layer, "time_emb_proj"):
            state |= affine(f"{at}.in_layers.0", layer.norm1) | affine(f"{at}.in_layers.2", layer.conv1)
            state |= affine(f"{at}.emb_layers.1", layer.time_emb_proj)
            state |= affine(f"{at}.out_layers.0", layer.norm2) | affine(f"{at}.out_layers.3", layer.conv2)
            if layer.conv_shortcut is not None:
                state |= affine(f"{at}.skip_connection", layer.conv_shortcut)
            continue
        state |= affine(f"{at}.norm", layer.group_norm)
        sets = {"qkv": (layer.to_q, layer.to_k, layer.to_v), "encoder_kv": (layer.add_k_proj, layer.add_v_proj)}
        sets["proj_out"] = (layer.to_out[0],)
        for ours, linears in sets.items():
            state[f"{at}.{ours}.weight"] = interleaved([x.weight for x in linears])[..., None]  # convolutions over one axis
            state[f"{at}.{ours}.bias"] = interleaved([x.bias for x in linears])
    return state


def openai_state(text: Any, vision: Any) -> dict[str, Tensor]:
    """The towers of transformers under OpenAI's names, with the constants that its file holds beside the weights."""
    v, t = vision.vision_model, text.text_model
    state = {
        "visual.class_embedding": v.embeddings.class_embedding,
        "visual.conv1.weight": v.embeddings.patch_embedding.weight,
        "visual.positional_embedding": v.embeddings.position_embedding.weight,
        "visual.proj": vision.visual_projection.weight.T,
        "token_embedding.weight": t.embeddings.token_embedding.weight,
        "positional_embedding": t.embeddings.position_embedding.weight,
        "text_projection": text.text_projection.weight.T,
        "logit_scale": torch.tensor(100.0).log(),
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    state |= affine("visual.ln_pre", v.pre_layrnorm) | affine("visual.ln_post", v.post_layernorm)
    state |= affine("ln_final", t.final_layer_norm)
    for prefix, tower in (("visual.transformer", v), ("transformer", t)):
        for i, layer in enumerate(tower.encoder.layers):
            name, attention = f"{prefix}.resblocks.{i}", layer.self_attn
            for end in ("weight", "bias"):
                parts = [getattr(x, end) for x in (attention.q_proj, attention.k_proj, attention.v_proj)]
                state[f"{name}.attn.in_proj_{end}"] = torch.cat(parts)
            state |= affine(f"{name}.attn.out_proj", attention.out_proj)
            state |= affine(f"{name}.ln_1", layer.layer_norm1) | affine(f"{name}.ln_2", layer.layer_norm2)
            state |= affine(f"{name}.mlp.c_fc", layer.mlp.fc1) | affine(f"{name}.mlp.c_proj", layer.mlp.fc2)
    return state


class Box(nn.Module):
    """A module of nothing but what is put in."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def save_openai(state: dict[str, Tensor], path: Path) -> None:
    """A TorchScript archive of modules nested as the names say, as OpenAI published its CLIPs."""
    root = Box()
    for name, tensor in state.items():
        *parents, last = name.split(".")
        node: nn.Module = root
        for parent in parents:
            if parent not in dict(node.named_children()):
                node.add_module(parent, Box())
            node = node.get_submodule(parent)
        value = tensor.detach().clone()
        if value.is_floating_point():
            node.register_parameter(last, nn.Parameter(value))
        else:
            node.register_buffer(last, value)
    torch.jit.save(torch.jit.script(root), path)


def token_rows(weight: Tensor, tokens: int = 4) -> Tensor:
    """Rows (channel, token) as rows (token, channel)."""
    return rearrange(weight, "(c k) ... -> (k c) ...", k=tokens)

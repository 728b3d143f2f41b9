"""CLIP of transformers and of OpenAI as open_clip's: the same answers to the same tokens and pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import karlo
import pytest
import torch
from torch import Tensor

from unclip.clip.encoder import CLIP
from unclip.clip.identity import identity, same_identity
from unclip.convert import clip as clips
from unclip.convert.recipe import Recipe
from unclip.files import read_json
from unclip.weights import in_file, in_folder

CAPTIONS = ["a red heart", "", "two dogs and a woman with a very long hat! " * 20]


def convert(folder: Path, text: Any, vision: Any | None) -> CLIP:
    source: dict[str, Any] = {}
    configs: list[dict[str, Any] | None] = []
    for name, model in (("text", text), ("vision", vision)):
        if model is None:
            configs.append(None)
            continue
        model.save_pretrained(folder / name)
        source |= in_folder(folder / name)
        configs.append(read_json(folder / name / "config.json"))
    config = clips.hugging_face(source, configs[0] or {}, configs[1], str(folder))
    constants = {"network.logit_scale": torch.tensor(clips.LOGIT_SCALE)}
    made = Recipe(CLIP, config, clips.HUGGING_FACE, source, str(folder), clips.IGNORED, constants).make()
    assert isinstance(made, CLIP)
    return made


def close(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape and (a - b).abs().max() < 1e-4 * b.square().mean().sqrt()


@torch.no_grad()
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_towers_of_transformers(tmp_path: Path, activation: str) -> None:
    text = karlo.text_encoder(
        hidden_size=32, intermediate_size=128, num_attention_heads=4, projection_dim=24, hidden_act=activation
    )
    vision = karlo.image_encoder(
        hidden_size=48,
        intermediate_size=192,
        num_attention_heads=3,
        num_hidden_layers=3,
        projection_dim=24,
        hidden_act=activation,
    )
    clip = convert(tmp_path, text, vision)
    assert clip.config.quick_gelu == (activation == "quick_gelu")
    with pytest.warns(UserWarning, match="longer than CLIP's context"):
        given = clip.encode_text(CAPTIONS)
    tokenizer = karlo.tokenizer(tmp_path / "tokenizer")
    tokens = tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    assert torch.equal(given.mask, tokens.attention_mask.bool())
    assert torch.equal(given.tokens[given.mask], tokens.input_ids[given.mask])  # padding differs, and is masked
    expected = text(tokens.input_ids)
    close(given.embed, expected.text_embeds)
    close(given.states[given.mask], expected.last_hidden_state[given.mask])
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels = (pictures / 2 + 0.5 - clip.mean) / clip.std
    close(clip.encode_image(pictures), vision(pixels).image_embeds)
    assert float(clip.logit_scale.exp()) == pytest.approx(100)


@torch.no_grad()
def test_openais_file(tmp_path: Path) -> None:
    text, vision = karlo.text_encoder(), karlo.image_encoder()
    karlo.save_openai(karlo.openai_state(text, vision), tmp_path / "ViT-L-14.pt")
    source = in_file(tmp_path / "ViT-L-14.pt")
    config = clips.openai(source, "x")
    openai = Recipe(CLIP, config, clips.OPENAI, source, "x", clips.IGNORED).make()
    whole = convert(tmp_path, text, vision)
    assert config == whole.config
    same_identity(identity(openai), identity(whole))  # type: ignore[arg-type]
    state = whole.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in openai.state_dict().items())


@torch.no_grad()
def test_captions_alone(tmp_path: Path) -> None:
    text = karlo.text_encoder()
    alone, whole = convert(tmp_path / "a", text, None), convert(tmp_path / "b", text, karlo.image_encoder())
    assert torch.equal(alone.encode_text(["a heart"]).embed, whole.encode_text(["a heart"]).embed)
    assert not [name for name in alone.state_dict() if "visual" in name]
    same_identity(identity(alone), identity(whole))  # type: ignore[arg-type]
    same_identity(identity(whole), identity(alone))  # type: ignore[arg-type]
    other = convert(tmp_path / "c", karlo.text_encoder(seed=9), None)
    with pytest.raises(ValueError, match="another CLIP"):
        same_identity(identity(whole), identity(other))  # type: ignore[arg-type]
    alone.save_pretrained(tmp_path / "saved")
    again = CLIP.from_pretrained(tmp_path / "saved")
    assert torch.equal(alone.encode_text(["a heart"]).states, again.encode_text(["a heart"]).states)


def test_no_clip(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x has no tensor text_projection: is it a CLIP"):
        clips.openai({}, "x")
    small = karlo.text_encoder(hidden_size=32, num_attention_heads=4, intermediate_size=128)
    small.resize_token_embeddings(100)
    with pytest.raises(ValueError, match="has 100 byte pairs, CLIP's tokenizer has 49408"):
        convert(tmp_path, small, None)

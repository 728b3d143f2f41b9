"""Channels for known pixels: a widened network is what it was, to the last bit, until it is trained."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from decoder import Decoder, DecoderConfig
from unclip.conditions import Conditions, Known, Label
from unclip.data.open import DataConfig
from unclip.nn.unet import UNetConfig
from unclip.randomness import Noise
from unclip.runs import Training, build
from unclip.sampling import Sampling
from unclip.training import TrainConfig
from unclip.training.widen import INPUT, widened
from unclip.types import Cond
from upsamplers import Upsampler, UpsamplerConfig

FAST = Sampling(steps=2, threshold="static")
KNOWN = Conditions(known=Known())


def unet(patch: int = 1) -> UNetConfig:
    return UNetConfig(channels=32, depth=1, multiple=(1,), patch=patch)


def disturbed(made: Decoder | Upsampler) -> Decoder | Upsampler:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wide(model: Decoder | Upsampler) -> Decoder | Upsampler:
    """The same with channels for known pixels."""
    made = copy.deepcopy(type(model)(model.config.replace(conditions=KNOWN))).eval()
    made.load_state_dict(widened(model.state_dict(), model.config, made.config))
    return made


@pytest.mark.parametrize("patch", [1, 2])
def test_a_widened_decoder_is_what_it_was(patch):
    model = disturbed(Decoder(DecoderConfig(image_size=8, unet=unet(patch), sampling=FAST)))
    made, known = wide(model), (random(2, 3, 8, 8), random(2, 1, 8, 8, seed=2) > 0)
    assert made.network.unet.input.weight.shape[1] == 7 * patch**2
    before = model.sample(Cond(), noise=Noise.of(0, [0, 1]))
    assert torch.equal(made.sample(Cond(known=known), noise=Noise.of(0, [0, 1])), before)
    with torch.no_grad():
        made.network.unet.input.weight += 0.1
    after = [made.sample(cond, noise=Noise.of(0, [0, 1])) for cond in (Cond(known=known), Cond())]
    assert not torch.equal(*after)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_widened_upsampler_is_what_it_was(patch):
    model = disturbed(Upsampler(UpsamplerConfig(scale=2, unet=unet(patch), sampling=FAST)))
    made, known = wide(model), (random(2, 3, 8, 8), random(2, 1, 8, 8, seed=2) > 0)
    low = random(2, 3, 4, 4, seed=3).clamp(-1, 1)
    assert made.network.unet.input.weight.shape[1] == 10 * patch**2
    before = model.sample(low, noise=Noise.of(0, [0, 1]))
    assert torch.equal(made.sample(low, Cond(known=known), noise=Noise.of(0, [0, 1])), before)


def test_nothing_else_is_widened():
    state = {INPUT: random(32, 3, 3, 3)}
    plain = DecoderConfig(image_size=8, unet=unet())
    labelled, known = (plain.replace(conditions=c) for c in (Conditions(label=Label(classes=2)), KNOWN))
    for start, config in ((plain, labelled), (known, plain), (known, known)):
        assert widened(state, start, config)[INPUT] is state[INPUT]
    assert widened(state, plain, known)[INPUT].shape == (32, 7, 3, 3) and len(state) == 1


def test_a_training_starts_from_a_network_without_the_channels(tmp_path: Path):
    for i in range(2):
        Image.new("RGB", (16, 16), (90 * i, 40, 200)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("a picture")
    model = disturbed(Decoder(DecoderConfig(image_size=8, unet=unet(), sampling=FAST)))
    model.save_pretrained(tmp_path / "base")
    recipe = Training(
        model=model.config.replace(conditions=KNOWN),
        start=str(tmp_path / "base"),
        data=DataConfig(source=str(tmp_path), size=8),
        train=TrainConfig(steps=1, batch=2, lr=1e-3),
    )
    built = build(recipe, say=lambda what: None).task.model
    assert torch.equal(built.sample(Cond(), noise=Noise.of(0, [0])), model.sample(Cond(), noise=Noise.of(0, [0])))
    with pytest.raises(ValueError, match="network.unet.input.weight"):
        other = recipe.model.replace(conditions=Conditions())
        wide(model).save_pretrained(tmp_path / "wide")
        build(recipe.replace(model=other, start=str(tmp_path / "wide")), say=lambda what: None)

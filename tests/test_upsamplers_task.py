"""Training of upsamplers with conditions: by `unclip train`, and what they learn from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_pipelines_cascade import CAPTION
from torch import Tensor
from typer.testing import CliRunner

from unclip.cli import app
from unclip.conditions import Caption, Conditions, Known, Label
from unclip.images import to_pil
from unclip.randomness import Noise
from unclip.runs import open_component
from unclip.runs.build import fresh
from unclip.training import TrainConfig, train
from unclip.types import Batch, Cond
from upsamplers import CorruptionConfig, Upsampler, UpsamplerConfig, UpsamplerTask
from upsamplers.filters import resize

STATES = Caption(kind="clip_states", context=tiny.CONTEXT, states_width=tiny.WIDTH, embed_dim=tiny.EMBED, null="empty")
KINDS = {
    "text": Conditions(text=CAPTION),
    "states": Conditions(text=STATES, width=16),
    "label": Conditions(label=Label(classes=2)),
    "known": Conditions(known=Known(drop=0.2)),
    "all": Conditions(text=CAPTION, label=Label(classes=2), known=Known()),
}


def upsampler(conditions: Conditions, **changes: Any) -> Upsampler:
    unet = tiny.unet(attention=(0,), head_channels=16) if conditions.text else tiny.unet()
    config = tiny.upsampler().config.replace(unet=unet, conditions=conditions)
    return tiny._build(Upsampler, config.replace(**changes), 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP, and captioned pictures of 64 pixels in a folder for each class."""
    place = tmp_path_factory.mktemp("upsamplers")
    tiny.pipeline().save_pretrained(place / "model")
    images = resize(Noise.of(1, range(8)).uniform((3, 8, 8)) * 1.6 - 0.8, (64, 64), "bilinear")
    for i, image in enumerate(images):
        path = place / "pictures" / ("cats", "dogs")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(path)
        path.with_suffix(".txt").write_text(tiny.CAPTIONS[i % len(tiny.CAPTIONS)])
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_an_upsampler_with_conditions_is_trained_by_the_command(kind: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    config = upsampler(KINDS[kind]).config
    data = {"source": "pictures", "size": 64} | ({"labels": "folder"} if config.conditions.label else {})
    # Layers that begin at zero let the gradient through one after the other, to the conditions in the fifth step.
    settings = {"steps": 6, "batch": 4, "lr": 1e-3, "warmup": 0, "ema": 0.0, "sample_every": 3, "weight_decay": 0.0}
    training = {"model": {"class": "Upsampler", **json.loads(config.to_json())}, "data": data, "held_out": data}
    training |= {"train": settings} | ({"clip": "model"} if kind == "states" else {})
    Path(f"{kind}.json").write_text(json.dumps(training))
    result = CliRunner().invoke(app, ["train", f"{kind}.json"])
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "psnr" in result.output and len(list(Path(f"runs/{kind}/samples").iterdir())) == 2
    trained = open_component(f"runs/{kind}")
    assert isinstance(trained, Upsampler)
    if config.conditions.label:
        assert trained.label_names == ("cats", "dogs")
    before = fresh(Upsampler, trained.config, 0).state_dict()
    moved = [name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])]
    assert any(name.startswith("network.conditions.") for name in moved) or kind == "known"
    assert any(name.startswith("network.unet.") for name in moved)


def test_without_conditions_the_loss_is_that_of_the_upsampler() -> None:
    model, noise = tiny.upsampler(), Noise.of(3, range(2))
    images = Noise.of(2, range(2)).uniform((3, 64, 64)) * 2 - 1
    task = UpsamplerTask(model)
    assert torch.equal(task(Batch(["a", "b"], images), noise).total, model.loss(images, noise=noise).total)
    with pytest.raises(ValueError, match="reads no CLIP states of captions is trained without a CLIP: leave clip out"):
        UpsamplerTask(model, tiny.clip())


def test_known_pixels_are_those_of_the_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    model = upsampler(Conditions(known=Known()), crops_per_image=3)
    seen: list[tuple[Tensor, Cond]] = []
    loss_pairs = model.loss_pairs

    def spy(low: Tensor, high: Tensor, cond: Cond, *, noise: Noise) -> Any:
        seen.append((high, cond))
        return loss_pairs(low, high, cond, noise=noise)

    monkeypatch.setattr(model, "loss_pairs", spy)
    images = Noise.of(2, range(2)).uniform((3, 64, 64)) * 2 - 1
    UpsamplerTask(model)(Batch(["a", "b"], images), Noise.of(3, range(2)))
    ((high, cond),) = seen
    assert cond.known is not None
    known, keep = cond.known
    assert len(high) == 6 and torch.equal(known, high) and keep.any() and not keep.all()
    assert len({keep[i].numpy().tobytes() for i in range(6)}) > 3  # each crop has a hole of its own


class Stripes:
    """Pictures whose low resolution is grey: whether stripes are dark or light at the even columns the label alone tells."""

    pattern = (torch.arange(16) % 2 * 2.0 - 1).expand(3, 16, 16)
    keys = [str(i) for i in range(32)]

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Any, noise: Noise | None = None) -> Batch:
        labels = torch.tensor([int(i) % 2 for i in indices])
        images = 0.7 * self.pattern * (2.0 * labels - 1)[:, None, None, None]
        return Batch([self.keys[i] for i in indices], images, labels=labels)


def test_what_the_low_resolution_does_not_show_the_label_tells(tmp_path: Path) -> None:
    config = UpsamplerConfig(
        unet=tiny.unet(patch=2),
        conditions=Conditions(label=Label(classes=2)),
        predicts="x0",
        crop=1.0,
        corruption=CorruptionConfig(kind="none"),
        sampling=tiny.upsampler().config.sampling.replace(steps=1),
    )
    model = tiny._build(Upsampler, config, 3)
    settings = TrainConfig(steps=60, batch=16, lr=1e-2, warmup=5, ema=0.8, log_every=30, save_every=60)
    model.load_state_dict(train(UpsamplerTask(model), Stripes(), settings, tmp_path).ema)
    model.eval()
    dark, light = (
        model.sample(torch.zeros(4, 3, 4, 4), Cond(label=torch.full((4,), k)), noise=Noise.of(9, range(4))) for k in (0, 1)
    )
    apart = ((light - dark) * Stripes.pattern).mean((1, 2, 3))  # in one step from the same noise; 1.4 where all is learnt
    assert (apart > 0.1).all() and apart.mean() > 0.3, apart

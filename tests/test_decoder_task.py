"""DecoderTask: embeddings and captions from the batch, or from a frozen CLIP."""

from __future__ import annotations

import pytest
import torch
from tiny_decoder import EMBED, STATES, build, conditions, conds, pictures
from torch import Tensor, nn

from decoder import DecoderTask
from unclip.conditions import Known
from unclip.randomness import Noise
from unclip.types import Batch, Text

NOISE = Noise.of(0, range(3))


class FakeCLIP(nn.Module):
    embed_dim, image_size = EMBED, 16

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, EMBED)
        self.calls: list[str] = []

    def encode_image(self, images: Tensor) -> Tensor:
        self.calls.append("image")
        return self.layer(nn.functional.interpolate(images, (16, 16)).flatten(1))

    def encode_text(self, captions: list[str]) -> Text:
        self.calls.append("text")
        b = len(captions)
        lengths = torch.tensor([len(c) for c in captions])
        states = lengths[:, None, None] * torch.linspace(-1, 1, 6 * STATES).reshape(1, 6, STATES)
        embed = lengths[:, None] * torch.linspace(-1, 1, EMBED)
        return Text(captions, torch.ones(b, 6, dtype=torch.int64), embed, states, torch.ones(b, 6, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["no text", "clip_states"])
def test_precomputed_and_frozen_clip_agree(kind):
    clip, model, images, captions = FakeCLIP(), build(text=kind), pictures(3), ["a", "bcd", "ef"]
    ready = Batch(keys=captions, images=images, image_embed=clip.encode_image(images).detach(), text=clip.encode_text(captions))
    clip.calls.clear()
    task = DecoderTask(model, clip)
    live = task(Batch(keys=captions, images=images, captions=captions), NOISE)
    assert torch.allclose(live.total, DecoderTask(model)(ready, NOISE).total, rtol=1e-6)
    assert clip.calls == (["image"] if kind == "no text" else ["image", "text"])
    clip.calls.clear()
    task(ready, NOISE)
    assert not clip.calls  # what the batch has is not computed again
    live.total.sum().backward()
    assert clip.layer.weight.grad is None
    # The teacher is neither trained nor saved.
    assert {id(p) for p in task.parameters()} == {id(p) for p in model.parameters()}
    other = DecoderTask(model)(ready._replace(image_embed=ready.image_embed.flip(0)), NOISE)
    assert not torch.allclose(other.total, live.total, rtol=1e-3)


def test_clip_sees_larger_pictures_than_the_decoder():
    clip, model = FakeCLIP(), build()
    large = nn.functional.interpolate(pictures(3), scale_factor=4)
    large += 0.1 * torch.randn(large.shape, generator=torch.Generator().manual_seed(0))
    batch = Batch(keys=["a", "b", "c"], images=large)
    losses = DecoderTask(model, clip)(batch, NOISE)
    small = nn.functional.interpolate(large, (8, 8), mode="bicubic", antialias=True).clamp(-1, 1)
    expected = Batch(keys=batch.keys, images=small, image_embed=clip.encode_image(large).detach())
    assert torch.allclose(losses.total, DecoderTask(model)(expected, NOISE).total, rtol=1e-5)
    blurred = expected._replace(image_embed=clip.encode_image(small).detach())
    assert not torch.allclose(losses.total, DecoderTask(model)(blurred, NOISE).total, rtol=1e-4)


def test_it_draws_for_its_batch():
    model, cond = build(text="clip_states"), conds("clip_states")
    batch = Batch(keys=["a", "b", "c"], images=pictures(3), image_embed=cond.image_embed, text=cond.text)
    assert torch.equal(DecoderTask(model).sample_images(batch, NOISE), model.sample(cond, noise=NOISE))


def test_a_batch_that_lacks_something_is_refused():
    embed = torch.ones(1, EMBED)
    plain, captioned = build(), build(text="clip_states")
    image = pictures(1)
    for task, batch, message in (
        (DecoderTask(plain), Batch(keys=["a"], image_embed=embed), "needs batches with images"),
        (DecoderTask(plain), Batch(keys=["a"], images=image), "needs batches with image_embed;"),
        (DecoderTask(captioned), Batch(keys=["a"], images=image, image_embed=embed), "with image_embed, text;"),
        (DecoderTask(captioned, FakeCLIP()), Batch(keys=["a"], images=image), "with images, captions;"),
    ):
        with pytest.raises(ValueError, match=message):
            task(batch, NOISE)


def test_known_pixels_are_the_pictures_own_outside_holes_drawn_at_random(monkeypatch):
    model, seen = build(conditions=conditions().replace(known=Known())), []
    loss = model.loss
    monkeypatch.setattr(model, "loss", lambda images, cond, *, noise: (seen.append(cond), loss(images, cond, noise=noise))[1])
    images = pictures(3)
    batch = Batch(keys=["a", "b", "c"], images=images, image_embed=torch.ones(3, EMBED))
    DecoderTask(model)(batch, NOISE)
    known, keep = seen[0].known
    assert torch.equal(known, images) and keep.shape == (3, 1, 8, 8) and keep.any() and not keep.all()
    assert DecoderTask(model).sample_images(batch, NOISE).shape == images.shape
    assert {"error", "change_image"} <= DecoderTask(model).validate(batch, NOISE).keys()

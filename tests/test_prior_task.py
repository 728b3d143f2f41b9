"""PriorTask: embeddings from the batch, or from a frozen CLIP."""

import pytest
import torch
from torch import nn

from prior import DiffusionPrior, PriorConfig, PriorNetworkConfig, PriorTask
from unclip.nn.transformer import TransformerConfig
from unclip.randomness import Noise
from unclip.types import Batch, Text


class FakeCLIP(nn.Module):
    embed_dim, image_size = 8, 4

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(48, 8)
        self.calls = []

    def encode_image(self, images):
        self.calls.append("image")
        return self.layer(images.flatten(1))

    def encode_text(self, captions):
        self.calls.append("text")
        b = len(captions)
        states = torch.full((b, 6, 12), 0.1)
        return Text(captions, torch.zeros(b, 6, dtype=torch.int64), torch.ones(b, 8), states, torch.ones(b, 6).bool())


@pytest.fixture
def prior():
    torch.manual_seed(0)
    network = PriorNetworkConfig(
        transformer=TransformerConfig(width=32, layers=1, heads=4), embed_dim=8, context=6, states_width=12
    )
    return DiffusionPrior(PriorConfig(network=network))


def test_precomputed_and_frozen_clip_agree(prior):
    clip, noise = FakeCLIP(), Noise.of(0, range(3))
    images, captions = torch.randn(3, 3, 4, 4), ["a", "b", "c"]
    ready = Batch(keys=captions, image_embed=clip.encode_image(images).detach(), text=clip.encode_text(captions))
    clip.calls.clear()
    task = PriorTask(prior, clip)
    live = task(Batch(keys=captions, images=images, captions=captions), noise)
    assert torch.equal(live.total, PriorTask(prior)(ready, noise).total)
    assert clip.calls == ["image", "text"]
    task(ready, noise)
    assert clip.calls == ["image", "text"]  # what the batch has is not computed again
    live.total.sum().backward()
    assert clip.layer.weight.grad is None
    assert {id(p) for p in task.parameters()} == {id(p) for p in prior.parameters()}  # the teacher is neither trained nor saved


def test_a_batch_that_lacks_something_is_refused(prior):
    batch = Batch(keys=["a"], images=torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="image_embed, text"):
        PriorTask(prior)(batch, Noise.of(0))
    with pytest.raises(ValueError, match="captions"):
        PriorTask(prior, FakeCLIP())(batch, Noise.of(0))

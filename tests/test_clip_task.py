"""Contrastive training: open_clip's loss, augmentation from the given streams, sharpness-aware steps."""

from __future__ import annotations

import math

import pytest
import torch
from open_clip.loss import ClipLoss

from unclip.clip.encoder import CLIP, Architecture, CLIPConfig, TextTower, VisionTower
from unclip.clip.task import CLIPTask, CLIPTaskConfig, drop_words, jitter
from unclip.clip.tokenizer import UNKNOWN, compact_token_ids
from unclip.randomness import Noise
from unclip.training import TrainConfig, read_log, train
from unclip.training.sam import sam_ascend, sam_restore
from unclip.types import Batch

COLOURS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "white": (1, 1, 1), "black": (-1, -1, -1)}
CAPTIONS = [f"a {name} square" for name in COLOURS]


def make(seed=0, **config):
    torch.manual_seed(seed)
    vision = VisionTower(image_size=16, patch_size=8, width=32, layers=1, head_width=16)
    text = TextTower(context_length=8, width=32, layers=1, heads=2, token_ids=compact_token_ids(CAPTIONS))
    return CLIPTask(CLIP(CLIPConfig(architecture=Architecture(embed_dim=16, vision=vision, text=text))), CLIPTaskConfig(**config))


def batch():
    images = torch.tensor(list(COLOURS.values()), dtype=torch.float32)[:, :, None, None].expand(-1, 3, 16, 16)
    return Batch(keys=list(COLOURS), images=images, captions=CAPTIONS)


def noise(step=0, n=5):
    return Noise.of(step, range(n))


def test_loss_is_open_clips_and_its_mean_over_the_batch_is_what_is_minimised():
    task = make().eval()
    losses = task(batch(), noise())
    z_i = torch.nn.functional.normalize(task.model.encode_image(batch().images), dim=-1)
    z_t = torch.nn.functional.normalize(task.model.encode_text(CAPTIONS).embed, dim=-1)
    logits = z_i @ z_t.T * task.model.logit_scale.exp()
    by_hand = (torch.diag(logits.log_softmax(0)) + torch.diag(logits.log_softmax(1))).mean() / -2
    torch.testing.assert_close(losses.total.mean(), by_hand)
    torch.testing.assert_close(losses.total.mean(), ClipLoss()(z_i, z_t, task.model.logit_scale.exp()))
    assert losses.total.shape == (5,) and losses.t is None
    assert all(term.shape == (5,) and not term.requires_grad for term in losses.terms.values())


@pytest.mark.parametrize("rho", [None, 0.02])
def test_training_learns_five_colours(rho):
    task = make(sam=rho).train()
    parameters = list(task.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for step in range(90):
        task(batch(), noise(step)).total.mean().backward()
        if task.sam_rho is not None:
            before = sam_ascend(parameters, task.sam_rho)
            optimizer.zero_grad()
            task(batch(), noise(step)).total.mean().backward()
            sam_restore(parameters, before)
        optimizer.step()
        optimizer.zero_grad()
    losses = task.eval()(batch(), noise())
    assert losses.total.mean() < 0.3
    assert losses.terms["image_to_text"].mean() == losses.terms["text_to_image"].mean() == 1


def test_logit_scale_is_held_at_a_hundred():
    task = make().train()
    task.model.logit_scale.data.fill_(7.0)
    task(batch(), noise())
    assert task.model.logit_scale.item() == pytest.approx(math.log(100))


def test_what_a_sample_draws_comes_from_its_own_stream():
    task = make(shift=0.1, drop_words=0.3).train()
    assert torch.equal(task(batch(), noise()).total, task(batch(), noise()).total)
    assert not torch.equal(task(batch(), noise(0)).total, task(batch(), noise(1)).total)
    state = torch.random.get_rng_state()
    task(batch(), noise())
    assert torch.equal(state, torch.random.get_rng_state())
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(jitter(images, 0.1, noise())[1:3], jitter(images[1:3], 0.1, noise()[1:3]))
    assert torch.equal(task.eval()(batch(), noise(0)).total, task(batch(), noise(1)).total)


class Ramps:
    """The five colours, growing from left to right, so that it shows when a picture moves."""

    keys = list(COLOURS)

    def __len__(self):
        return 5

    def batch(self, indices, noise=None):
        images = batch().images[list(indices)] * torch.linspace(-1, 1, 16)
        return Batch([self.keys[i] for i in indices], images, [CAPTIONS[i] for i in indices])


def test_the_training_loop_augments_and_holds_the_scale(tmp_path):
    """It leaves the task in evaluation mode and trains its model."""
    losses = {}
    for name, settings in {"plain": {}, "shift": {"shift": 0.4}, "drop_words": {"drop_words": 0.4}}.items():
        task = make(**settings)
        task.model.logit_scale.data.fill_(9.0)
        train(task, Ramps(), TrainConfig(steps=1, batch=5, lr=1e-9, log_every=1), tmp_path / name)
        assert task.model.logit_scale.item() == pytest.approx(math.log(100))
        losses[name] = read_log(tmp_path / name)[0]["loss"]
    assert losses["shift"] != losses["plain"] != losses["drop_words"]


def test_jitter_knows_places_exactly_under_autocast():
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        moved = jitter(images, 0.1, noise())
    assert torch.equal(moved, jitter(images, 0.1, noise()))


def test_jitter_moves_a_little_and_zero_moves_nothing():
    ramp = torch.linspace(-1, 1, 64).expand(200, 3, 64, 64)
    assert jitter(ramp, 0.0, noise(n=200)) is ramp
    moved = jitter(ramp, 0.1, noise(n=200))
    # In the middle column a move by at most 10 % of the side changes a ramp of height 2 by at most 0.2.
    change = (moved - ramp)[:, 0, 32, 32]
    assert change.abs().max() <= 0.21 and change.std() > 0.05
    assert moved.abs().max() <= 1 + 1e-6


def test_dropped_words_are_never_start_end_or_padding():
    task = make()
    ids, mask = task.model.tokenize(["a red square", "", "a blue square"])
    dropped = drop_words(ids, mask, 0.999999, Noise.of(0, range(3)))
    ends = mask.sum(1) - 1
    assert (dropped[0, 1:4] == UNKNOWN).all() and torch.equal(dropped[1], ids[1])
    assert torch.equal(dropped[torch.arange(3), ends], ids[torch.arange(3), ends])
    assert torch.equal(dropped[:, 0], ids[:, 0]) and torch.equal(dropped[~mask], ids[~mask])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="CLIPTask needs batches with images, captions"):
        make()(Batch(keys=["x"], captions=["a"]), noise(n=1))
    for bad in ({"sam": 0.0}, {"shift": 0.5}, {"drop_words": 1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            CLIPTaskConfig(**bad)
    vision = VisionTower(image_size=16, patch_size=8, width=32, layers=1, head_width=16)
    whole = Architecture(embed_dim=16, vision=vision, text=TextTower(width=32, layers=1, heads=2))
    with pytest.raises(ValueError, match="compact vocabulary"):
        CLIPTask(CLIP(CLIPConfig(architecture=whole)), CLIPTaskConfig(drop_words=0.1))


def test_sam_climbs_by_rho_along_the_gradient_and_comes_back_exactly():
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(x) for x in (torch.randn(4, 3), torch.randn(7), torch.ones(2))]
    start = [p.detach().clone() for p in weights]
    (weights[0].square().sum() + 3 * weights[1].sum()).backward()
    grads = [weights[0].grad.clone(), weights[1].grad.clone()]
    norm = torch.cat([g.flatten() for g in grads]).norm()
    before = sam_ascend(weights, 0.1)
    for p, s, g in zip(weights, start, grads):
        torch.testing.assert_close(p.detach() - s, 0.1 * g / norm)
    assert torch.equal(weights[2].detach(), start[2])  # no gradient, no move
    sam_restore(weights, before)
    assert all(torch.equal(p.detach(), s) for p, s in zip(weights, start))


@pytest.mark.parametrize("gradient", [0.0, math.nan, math.inf])
def test_sam_stays_where_it_is_without_a_usable_gradient(gradient):
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.full((3,), gradient)
    sam_restore([p], sam_ascend([p], 0.1))
    sam_ascend([p], 0.1)
    assert torch.equal(p.detach(), torch.ones(3))

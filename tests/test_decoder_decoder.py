"""The decoder: what it is trained on, how it samples and inverts, what it refuses, and that it learns."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_decoder import EMBED, UNET, build, conds, config, embeds, pictures, random, texts
from torch import Tensor

from decoder import Decoder, DecoderConfig
from decoder.network import Encoded
from unclip.diffusion.samplers import ddim
from unclip.diffusion.schedule import ScheduleConfig
from unclip.randomness import Noise
from unclip.sampling import Inversion, Sampling
from unclip.types import Cond, Losses
from unclip.types import Decoder as Contract

DDIM = Sampling(sampler="ddim", steps=4)


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def test_keeps_the_contract():
    model = build(text="tokens")
    assert isinstance(model, Contract) and model.takes == ("image_embed", "text")
    assert build().takes == ("image_embed",)
    assert model.resolve().steps == (1000, 667, 334, 1, 0) and model.resolve(DDIM.replace(steps=2)).steps == (1000, 1, 0)
    twin = copy.deepcopy(model)  # as an average of weights does: its denoiser must use its own
    assert twin.denoiser.net is twin.network
    assert DecoderConfig.from_json(model.config.to_json()) == model.config


# Training


def recorded(model: Decoder, rows: int) -> dict[str, Tensor]:
    """What `loss` draws for so many pictures, without running the network."""
    seen: dict[str, Tensor] = {}

    def encode(cond, count, drops):
        seen.update(image=drops["image_embed"], text=drops["text"])
        return Encoded(None, None, None, None)

    model.network.encode = encode

    class Recorder:
        def loss(self, images, t, eps, encoded, weighting):
            seen.update(t=t, eps=eps)
            return Losses(torch.zeros(len(t)), t, {})

    model.denoiser = Recorder()
    model.loss(torch.zeros(rows, 3, 8, 8), Cond(), noise=Noise.of(0, range(rows)).at("step 7"))
    return seen


def test_drops_happen_at_their_rates_and_independently():
    n = 4000
    seen = recorded(build(text="tokens"), n)
    both = seen["image"] & seen["text"]
    for drops, rate in ((seen["image"], 0.1), (seen["text"], 0.5), (both, 0.05)):
        assert drops.shape == (n,) and abs(float(drops.float().mean()) - rate) < 4 * math.sqrt(rate * (1 - rate) / n)
    assert seen["t"].min() >= 1 and seen["t"].max() <= 1000 and abs(float(seen["t"].float().mean()) - 500.5) < 20
    assert seen["eps"].shape == (n, 3, 8, 8) and abs(float(seen["eps"].std()) - 1) < 0.01
    seen = recorded(build(text="tokens", image_drop=0.0, text_drop=1.0), 50)
    assert not seen["image"].any() and seen["text"].all()


def test_the_loss_of_dropped_conditions_is_that_of_none():
    noise, images = Noise.of(0, range(3)), pictures(3)
    always, never = build(text="tokens", image_drop=1.0, text_drop=1.0), build(text="tokens", image_drop=0.0, text_drop=0.0)
    dropped = always.loss(images, conds("tokens"), noise=noise).total
    assert torch.allclose(dropped, never.loss(images, Cond(), noise=noise).total, atol=1e-6)
    assert (dropped - never.loss(images, conds("tokens"), noise=noise).total).abs().min() > 1e-4


def test_the_loss_is_of_each_picture_alone():
    model, images, cond = build(text="clip_states"), pictures(3), conds("clip_states")
    together = model.loss(images, cond, noise=Noise.of(2, range(3)))
    alone = model.loss(images[1:2], Cond(cond.image_embed[1:2], cond.text.rows(slice(1, 2))), noise=Noise.of(2, 1))
    assert together.total.shape == (3,) and together.total.requires_grad
    assert torch.allclose(together.total[1:2], alone.total, rtol=1e-4) and together.t[1] == alone.t[0]
    assert set(together.terms) == {"mse", "vlb"}
    assert torch.allclose(together.total, together.terms["mse"] + together.terms["vlb"], rtol=1e-5)
    assert set(build(variance="fixed").loss(images, conds("no text"), noise=Noise.of(0, range(3))).terms) == {"mse"}


def test_an_untrained_decoder_predicts_zero():
    model, images = build(std=0.0), pictures(2)
    losses = model.loss(images, conds("no text", (1, 1)), noise=Noise.of(0, [0, 1]))
    eps = Noise.of(0, [0, 1]).at("eps").normal((3, 8, 8))
    assert torch.allclose(losses.terms["mse"], eps.square().mean((1, 2, 3)), rtol=1e-5)


def test_gradient_reaches_every_parameter():
    for kind in ("no text", "tokens", "clip_states"):
        model = build(text=kind, image_drop=0.5)
        rows = (3, 6, 5, 2, 4, 6)
        model.loss(pictures(6), conds(kind, rows), noise=Noise.of(1, range(6))).total.mean().backward()
        idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
        assert not idle


def test_overfits_one_batch():
    model = build(std=0.0, variance="fixed", predicts="x0", weighting="min_snr", image_drop=0.0)
    images, cond = pictures(4), Cond(embeds(4))
    optimiser = torch.optim.Adam(model.parameters(), 5e-3, fused=True)
    for step in range(60):
        optimiser.zero_grad()
        model.loss(images, cond, noise=Noise.of(step, range(4))).total.mean().backward()
        optimiser.step()
    swapped = Cond(cond.image_embed[[1, 0, 3, 2]])
    for condition, expected in ((cond, images), (swapped, images[[1, 0, 3, 2]])):
        out = model.sample(condition, noise=Noise.of(0, range(4)), sampling=Sampling(steps=10))
        assert rms(out - expected) < 0.4 * rms(images)  # the wrong picture is at 1.4, their mean at 0.9


# Sampling


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(sampler="ddpm", steps=4, variance="learned", threshold="static"),
        Sampling(sampler="ddim", steps=4, eta=1.0, guidance=2.0, threshold=0.9),
        Sampling(sampler="dpmpp_2m", steps=4, guidance=1.5, interval=(100, 900), threshold="static"),
    ],
)
def test_a_picture_depends_on_its_stream_alone(sampling):
    model, cond = build(text="clip_states"), conds("clip_states")
    whole = model.sample(cond, noise=Noise.of(3, range(3)), sampling=sampling)
    assert whole.shape == (3, 3, 8, 8) and whole.isfinite().all() and whole.abs().max() <= 1
    assert torch.equal(model.sample(cond, noise=Noise.of(3, range(3)), sampling=sampling), whole)
    order, text = [2, 0, 1], cond.text
    turned = Cond(cond.image_embed[order], type(text)([text.strings[i] for i in order], *(x[order] for x in text[1:])))
    out = model.sample(turned, noise=Noise.of(3, order), sampling=sampling)
    assert torch.allclose(out, whole[order], atol=1e-4)
    alone = model.sample(Cond(cond.image_embed[1:2], text.rows(slice(1, 2))), noise=Noise.of(3, 1), sampling=sampling)
    assert torch.allclose(alone, whole[1:2], atol=1e-4)
    assert not torch.allclose(model.sample(cond, noise=Noise.of(4, range(3)), sampling=sampling), whole, atol=0.05)


@torch.no_grad()
def test_the_learned_variance_is_split_off_before_guidance():
    model, cond, x = build(), conds("no text"), random(3, 3, 8, 8)
    t, null = torch.full((3,), 400), Cond()
    raw = model.network(x, t, model.network.encode(cond, 3))
    absent = model.network(x, t, model.network.encode(null, 3))
    plain = model.denoise(cond, 3, DDIM)(x, t)
    assert torch.allclose(plain.eps, raw[:, :3], atol=1e-5) and torch.allclose(plain.variance_mix, raw[:, 3:], atol=1e-5)
    guided = model.denoise(cond, 3, DDIM.replace(guidance=3.0))(x, t)
    assert torch.allclose(guided.eps, absent[:, :3] + 3 * (raw[:, :3] - absent[:, :3]), atol=1e-4)
    assert torch.allclose(guided.variance_mix, raw[:, 3:], atol=1e-5)  # the conditional one, unguided (traps C1)
    clipped = model.denoise(cond, 3, DDIM.replace(threshold="static"))(x, t)
    assert clipped.x0.abs().max() <= 1 < plain.x0.abs().max()
    # And the sampler reads it.
    learned = Sampling(sampler="ddpm", steps=3, variance="learned", threshold="static")
    out = [model.sample(cond, noise=Noise.of(0, range(3)), sampling=learned.replace(variance=v)) for v in ("learned", "small")]
    assert not torch.allclose(*out, atol=1e-2)


def test_guidance_costs_a_second_row_and_no_second_pass():
    model, cond = build(), conds("no text")
    rows: list[int] = []
    model.network.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))

    def cost(**changes) -> list[int]:
        rows.clear()
        model.sample(cond, noise=Noise.of(0, range(3)), sampling=DDIM.replace(**changes))
        return list(rows)

    assert cost() == [3, 3, 3, 3]
    assert cost(guidance=2.0) == [6, 6, 6, 6]
    assert cost(guidance=2.0, interval=(300, 700)) == [3, 6, 6, 3]  # at 1000, 667, 334, 1


def test_conditions_are_encoded_once():
    model, cond = build(text="tokens"), conds("tokens")
    calls: list[int] = []
    model.network.conditions.text.register_forward_hook(lambda module, args, out: calls.append(args[1]))
    model.sample(cond, noise=Noise.of(0, range(3)), sampling=DDIM.replace(guidance=2.0))
    assert calls == [3, 1]  # the captions, and one null for all


@torch.no_grad()
def test_sampling_starts_where_it_is_told():
    model, cond, x_t = build(text="tokens"), conds("tokens"), random(3, 3, 8, 8)
    out = model.sample(cond, noise=Noise.of(9, range(3)), x_t=x_t, t=600, sampling=DDIM)
    denoise = model.denoise(cond, 3, DDIM)
    assert torch.equal(out, ddim(denoise, x_t, model.schedule, (600, 334, 1, 0)).clamp(-1, 1))
    noise = Noise.of(2, range(3))
    from_noise = model.sample(cond, noise=noise, x_t=noise.at("x_T").normal((3, 8, 8)), t=1000)
    assert torch.equal(from_noise, model.sample(cond, noise=Noise.of(2, range(3))))
    with pytest.raises(ValueError, match="no x_t"):
        model.sample(cond, noise=noise, t=600)
    with pytest.raises(ValueError, match="nothing to sample"):
        model.sample(cond, noise=noise, x_t=x_t, t=600, sampling=DDIM.replace(steps=(800, 700)))


@pytest.mark.parametrize("predicts", ["eps", "v"])
def test_inverting_and_sampling_returns_the_picture(predicts):
    # Little noise at T: there an untrained eps is multiplied by 1 / alpha_T, a trained one is nearly x_t.
    schedule = ScheduleConfig(name="linear", end=0.005)
    model = build(text="clip_states", predicts=predicts, std=0.1, schedule=schedule)
    images, cond, noise = pictures(2), conds("clip_states", (3, 6)), Noise.of(0, range(2))
    x_t, back = model.invert(images, cond, inversion=Inversion(steps=24, refine=3, lowest=1))
    assert len(back) == (23 if predicts == "eps" else 24) and back[-1] == 1
    assert (back[0] == 1000) == (predicts != "eps")  # one step from T multiplies an error of eps most
    assert rms(x_t - images) > 0.2
    sampling = Sampling(sampler="ddim", steps=back)
    again = model.sample(cond, noise=noise, x_t=x_t, t=back[0], sampling=sampling)
    assert (again - images).abs().max() < 1e-3
    other = model.sample(Cond(-cond.image_embed), noise=noise, x_t=x_t, t=back[0], sampling=sampling)
    assert (other - images).abs().max() > 0.05  # under another condition it leads elsewhere
    x_t, _ = model.invert(images, cond, inversion=Inversion(steps=24, refine=0, lowest=1))
    plain = model.sample(cond, noise=noise, x_t=x_t, t=back[0], sampling=sampling)
    assert (plain - images).abs().max() > 0.01  # refining is what does it


# Saving


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model, cond = build(text="tokens", std=0.05), conds("tokens")
    expected = model.sample(cond, noise=Noise.of(0, range(3)))
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "half", torch.float16)
    whole, half = (Decoder.from_pretrained(tmp_path / name) for name in ("whole", "half"))
    assert whole.config == half.config == model.config and not whole.training
    assert torch.equal(whole.sample(cond, noise=Noise.of(0, range(3))), expected)
    assert all(p.dtype == torch.float32 for p in half.parameters())
    near = half.sample(cond, noise=Noise.of(0, range(3)))
    assert torch.allclose(near, expected, atol=0.05) and not torch.equal(near, expected)


# Refusals


def test_conditions_it_was_not_built_for_are_refused_by_name():
    model, noise, image = build(), Noise.of(0, range(3)), embeds(3)
    known = (pictures(3), torch.ones(3, 1, 8, 8, dtype=torch.bool))
    for name, cond in (
        ("label", Cond(image, label=torch.zeros(3, dtype=torch.int64))),
        ("known", Cond(image, known=known)),
        ("text", Cond(image, texts((3, 6, 5)))),
    ):
        for use in (
            lambda cond=cond: model.sample(cond, noise=noise),
            lambda cond=cond: model.loss(pictures(3), cond, noise=noise),
            lambda cond=cond: model.invert(pictures(3), cond),
        ):
            with pytest.raises(ValueError, match=f"not built for the condition '{name}'; it takes image_embed"):
                use()


def test_embeddings_of_another_clip_are_refused():
    model, noise = build(text="tokens"), Noise.of(0, range(3))
    with pytest.raises(ValueError, match=rf"shape \(3, {EMBED}\), got \(3, {EMBED + 1}\): were they made by another CLIP"):
        model.sample(Cond(torch.ones(3, EMBED + 1)), noise=noise)
    with pytest.raises(ValueError, match="3 pictures but 2 captions"):
        model.sample(Cond(embeds(3), texts((3, 6))), noise=noise)


def test_variances_it_does_not_have_are_refused():
    fixed = build(variance="fixed")
    for variance, message in (("learned", "the decoder's variance is 'fixed'"), ("analytic", "no analytic")):
        sampling = Sampling(sampler="ddpm", steps=3, variance=variance)
        for use in (
            lambda s: fixed.sample(Cond(), noise=Noise.of(0), sampling=s),
            fixed.resolve,  # which a pipeline asks before anything is drawn
            lambda s: fixed.config.replace(sampling=s),
        ):
            with pytest.raises(ValueError, match=message):
                use(sampling)
        fixed.sample(Cond(), noise=Noise.of(0), sampling=sampling.replace(sampler="ddim"))  # which has no use for it


def test_one_noise_stream_for_each_picture():
    model, one = build(text="tokens"), Noise.of(0)
    with pytest.raises(ValueError, match=r"3 pictures need a noise stream each, got 1: Noise.of\(seed, range\(3\)\)"):
        model.sample(Cond(embeds(3)), noise=one, x_t=torch.zeros(3, 3, 8, 8))
    text = texts((2, 3, 4))
    for few in (Cond(embeds(3)), Cond(text=text), Cond(embeds(3), text)):  # nothing is wrong with their CLIP
        with pytest.raises(ValueError, match="3 pictures need a noise stream each, got 1"):
            model.sample(few, noise=one)
    with pytest.raises(ValueError, match="2 image embeddings: give one embedding for each picture"):
        model.sample(Cond(embeds(2), text), noise=Noise.of(0, range(3)))
    with pytest.raises(ValueError, match="3 pictures need a noise stream each, got 1"):
        model.loss(torch.zeros(3, 3, 8, 8), Cond(embeds(3)), noise=one)


def test_pictures_that_are_not_in_range_are_not_trained_on():
    model, noise = build(), Noise.of(0, range(2))
    with pytest.raises(ValueError, match=r"in \[-1, 1\], given values from 200"):
        model.loss(torch.full((2, 3, 8, 8), 200.0), Cond(embeds(2)), noise=noise)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"unet": UNET.replace(attention=())}, "context enters through attention"),
        ({"image_size": 9}, "image_size is 9; pictures of this UNet have a side that divides by 2"),
        ({"variance": "fixed", "sampling": Sampling(sampler="ddpm", variance="learned")}, "variance is 'fixed'"),
        ({"sampling": Sampling(steps=1001)}, "sampling: cannot take 1001 steps out of 1000"),
        ({"sampling": Sampling(steps="999,2")}, "sampling: cannot take 999 steps out of 500"),
        ({"sampling": Sampling(steps=(1001, 0))}, "sampling: a list of timesteps .* descends within 1000..0"),
        ({"inversion": Inversion(steps=1001)}, "inversion: cannot take 1001 steps out of 1000"),
        ({"inversion": Inversion(steps=(19, 0))}, "inversion: lowest is 20, but its steps climb to 19 only"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)

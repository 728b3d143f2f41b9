"""ADM's classifier: it learns, says log probabilities with gradients, guides cascades, and is refused where it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from typer.testing import CliRunner

import unclip
from decoder import Classifier, ClassifierConfig, ClassifierTask, Decoder, DecoderConfig
from unclip import Cascade
from unclip.cli import app
from unclip.conditions import Conditions, Label
from unclip.diffusion.schedule import ScheduleConfig
from unclip.images import metadata
from unclip.nn.unet import UNetConfig
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.training.evaluation import judge
from unclip.types import Batch, Cond, GuideModel, Labelled

NAMES = ("dark", "light", "striped")
UNET = UNetConfig(channels=32, depth=1, multiple=(1, 2), attention=(1,), head_channels=16)
CONFIG = ClassifierConfig(image_size=16, unet=UNET, classes=3, names=NAMES)


def classifier(**changes: Any) -> Classifier:
    made: Classifier = tiny._build(Classifier, CONFIG.replace(**changes), 3)
    return made


def decoder(**changes: Any) -> Decoder:
    conditions = changes.pop("conditions", Conditions(label=Label(classes=3, names=NAMES)))
    sampling = Sampling(sampler="ddim", steps=tiny.STEPS, threshold="static")
    config = DecoderConfig(
        **{"image_size": 16, "unet": UNET, "conditions": conditions, "variance": "fixed", "sampling": sampling, **changes}
    )
    made: Decoder = tiny._build(Decoder, config, 2)
    return made


def pictures(labels: Tensor, seed: int = 0) -> Tensor:
    """Flat dark ones, flat light ones, and stripes, each a little different."""
    flat = torch.tensor([-0.6, 0.6, 0.0])[labels][:, None, None, None].expand(-1, 3, 16, 16)
    stripes = 0.6 * (-1.0) ** torch.arange(16).view(16, 1) * (labels == 2)[:, None, None, None]
    return (flat + stripes + 0.2 * Noise.of(seed, range(len(labels))).normal((3, 1, 1))).clamp(-1, 1)


@pytest.fixture(scope="module")
def trained() -> Classifier:
    """Sixty steps of Adam on its task."""
    model = classifier().train()
    task, optimizer = ClassifierTask(model), torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(60):
        noise = Noise.of(step, range(24))
        labels = noise.integers(0, 3)
        loss = task(Batch([""] * 24, pictures(labels, step), labels=labels), noise).total.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_training_beats_chance_and_noise_makes_it_harder(trained: Classifier) -> None:
    task, labels = ClassifierTask(trained), torch.arange(96) % 3
    with torch.no_grad():
        halves = [
            task.validate(Batch([""] * 48, pictures(labels[rows], 99)[:48], labels=labels[rows]), Noise.of(7, range(96))[rows])
            for rows in (slice(0, 48), slice(48, 96))
        ]
    told = task.summarize({name: torch.cat([half[name] for half in halves]) for name in halves[0]})
    assert told["accuracy_q1"] > 0.95 and told["accuracy_q1"] > told["accuracy_q4"] + 0.1 and told["loss_q1"] < told["loss_q4"]
    assert {told[f"accuracy{q}/chance"] for q in ("", "_q1", "_q2", "_q3", "_q4")} == {1 / 3}
    assert all(one.better for one in judge(told) if one.number in ("accuracy", "accuracy_q1", "accuracy_q2"))


@torch.no_grad()
def test_loss_is_cross_entropy_at_the_noise_of_the_schedule() -> None:
    model, labels, noise = classifier(), torch.tensor([0, 2]), Noise.of(5, range(2))
    images = pictures(labels)
    losses = model.loss(images, Cond(label=labels), noise=noise)
    for i, t in enumerate(losses.t):
        alpha, sigma = model.schedule.alpha[t], model.schedule.sigma[t]
        x_t = (alpha * images[i] + sigma * Noise.of(5, [i]).at("eps").normal((3, 16, 16))[0]).float()[None]
        logits = model(x_t, t[None])
        assert float(losses.total[i]) == pytest.approx(float(logits.logsumexp(1) - logits[0, labels[i]]), rel=1e-4)
        assert float(losses.terms["accuracy"][i]) == float(logits.argmax() == labels[i])


def test_every_parameter_learns() -> None:
    model, labels = classifier(), torch.tensor([0, 1, 2, 1])
    model.loss(pictures(labels), Cond(label=labels), noise=Noise.of(0, range(4))).total.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_log_probability_sums_to_one_and_has_the_gradient_of_differences() -> None:
    model, x, t = classifier(), Noise.of(1, 0).normal((3, 16, 16)), torch.tensor([300])
    total = sum(model.log_probability(torch.tensor([k]))(x, t).exp() for k in range(3))
    assert torch.allclose(total, torch.ones(1), atol=1e-5)
    log_p = model.guide(Cond(label=torch.tensor([1])))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_p(leaf, t).sum(), leaf)
    step = 0.02 * gradient / gradient.norm()
    with torch.no_grad():
        difference = float(log_p(x + step, t) - log_p(x - step, t)) / 0.04
    assert difference == pytest.approx(float(gradient.norm()), rel=0.02) and difference > 0


def test_guide_is_float32_where_the_decoder_is_not() -> None:
    model, x, t, label = classifier(), Noise.of(1, range(2)).normal((3, 16, 16)), torch.tensor([5, 5]), torch.tensor([0, 2])
    expected = model.log_probability(label)(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.log_probability(label)(x.bfloat16().float(), t), model.log_probability(label)(x.bfloat16(), t))
        assert torch.equal(model.log_probability(label)(x, t), expected) and expected.dtype == torch.float32
    with pytest.raises(ValueError, match="guides in float32"):
        model.bfloat16().log_probability(label)(x, t)


def test_guided_pictures_are_of_the_class(trained: Classifier) -> None:
    """An untrained decoder that takes no label draws mud; the classifier's gradient makes dark and light of it."""
    assert isinstance(trained, GuideModel) and isinstance(trained, Labelled)
    cascade = Cascade(decoder(conditions=Conditions()), guide=trained)
    ask = {"n": 4, "seed": 1, "decoder": Sampling(sampler="ddim", steps=20, threshold="static")}
    means = [float(cascade.generate(labels=name, **ask, guide_scale=6.0).images.mean()) for name in NAMES[:2]]
    free = float(cascade.generate(labels="dark", **ask, guide_scale=0.0).images.mean())
    assert means[0] < free - 0.05 < free + 0.05 < means[1]


def test_cascade_is_saved_with_its_guide_and_drawn_by_the_command(tmp_path: Path) -> None:
    cascade = Cascade(decoder(), [tiny.upsampler()], guide=classifier(scale=3.0), name="adm")
    cascade.save_pretrained(tmp_path / "adm", dtype="float16")
    again = unclip.from_pretrained(tmp_path / "adm", dtype="bfloat16")
    assert next(again.guide.parameters()).dtype == torch.float32 and next(again.decoder.parameters()).dtype == torch.bfloat16
    cascade = unclip.from_pretrained(tmp_path / "adm")
    own, three, free = (cascade.generate(labels="light", seed=2, guide_scale=s, size=16).images for s in (None, 3.0, 0.0))
    assert torch.equal(own, three) and not torch.allclose(own, free, atol=1e-3)
    words = ["--label", "light", "--seed", "2", "--model", str(tmp_path / "adm"), "--size", "16"]
    for scale, steps in (("3", "4"), ("0", "ddim25")):
        png = tmp_path / f"{scale}.png"
        more = ["--guide-scale", scale, "--steps", f"decoder={steps}", "-o", str(png)]
        done = CliRunner().invoke(app, ["generate", *words, *more])
        assert done.exit_code == 0 and metadata(png)["caption"] == "light", done.output
    done = CliRunner().invoke(app, ["generate", "-o", str(tmp_path / "x.png"), *words[2:]])
    assert done.exit_code == 2 and "guides towards a label, and there is none: give labels, or guide_scale 0" in done.output
    Cascade(decoder()).save_pretrained(tmp_path / "plain")
    done = CliRunner().invoke(
        app, ["generate", "-o", str(tmp_path / "x.png"), "--model", str(tmp_path / "plain"), "--guide-scale", "1"]
    )
    assert done.exit_code == 2 and "this model has no classifier" in done.output


def test_guide_that_does_not_fit_is_refused() -> None:
    """By name, in a cascade and in a call."""
    plain = Cascade(decoder())
    for changes, problem in (
        ({"image_size": 32}, "the guide, a Classifier, reads pictures of 32 pixels, and the decoder draws 16"),
        ({"schedule": ScheduleConfig(name="linear")}, r"another noise schedule \(1000 timesteps, alpha 0.280 at t = 500\)"),
        ({"schedule": ScheduleConfig(steps=500)}, r"another noise schedule \(500 timesteps"),
        ({"names": ("dark", "striped", "light")}, "other classes than the decoder: 'striped' where that has 'light'"),
        ({"names": ("dark", "light"), "classes": 2}, "other classes than the decoder: None where that has 'striped'"),
    ):
        wrong = classifier(**changes)
        with pytest.raises(ValueError, match=problem):
            Cascade(decoder(), guide=wrong)
        with pytest.raises(ValueError, match=problem):
            plain.generate(labels=1, guide=wrong)
    with pytest.raises(ValueError, match=r"labels \[3\] were given"):
        Cascade(decoder(conditions=Conditions()), guide=classifier()).generate(labels=3)
    with pytest.raises(ValueError, match="no label 'ligth'; near are light"):
        plain.generate(labels="ligth")


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda m: m.guide(Cond()), "guides towards a label"),
        (lambda m: m.log_probability(torch.tensor([5])), r"labels \[5\] were given"),
        (lambda m: m(torch.zeros(1, 3, 8, 8), torch.tensor([1])), r"reads pictures of shape \(b, 3, 16, 16\)"),
        (lambda m: m.loss(torch.zeros(2, 3, 16, 16), Cond(), noise=Noise.of(0, range(2))), "got none"),
        (
            lambda m: ClassifierTask(m)(Batch(["a"], torch.zeros(1, 3, 16, 16)), Noise.of(0, 0)),
            "needs batches with images, labels",
        ),
        (lambda m: CONFIG.replace(image_size=15), "a side that divides by 2"),
        (lambda m: CONFIG.replace(classes=1), "at least 2 apart"),
        (lambda m: CONFIG.replace(names=("a", "b")), "2 names for 3 classes"),
        (lambda m: CONFIG.replace(scale=float("nan")), "scale is nan"),
        (lambda m: CONFIG.replace(first_timestep=2), "first_timestep is 2"),
        (lambda m: CONFIG.replace(unet=UNET.replace(attention=(), head_channels=48)), "the pool's width 64"),
    ],
)
def test_bad_input_is_named(call: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        call(classifier())

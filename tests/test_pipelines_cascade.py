"""Cascades of captions and labels, what steers and watches a drawing, and several threads on one pipeline."""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor
from typer.testing import CliRunner

import unclip
from decoder import Decoder, DecoderConfig
from unclip import Cancelled, Cascade, Step, UnCLIP
from unclip.checkpoint import Component
from unclip.cli import app
from unclip.cli.generate import class_labels
from unclip.conditions import Caption, Conditions, Label
from unclip.config import Config
from unclip.diffusion.schedule import NoiseSchedule
from unclip.images import metadata
from unclip.nn.transformer import TransformerConfig
from unclip.pipelines.stage import labels_of
from unclip.pipelines.steering import check_callables
from unclip.randomness import Noise
from unclip.sampling import Inversion, Sampling
from unclip.types import Cond, Denoise, Losses, Prediction, Wrap
from upsamplers import Upsampler, UpsamplerConfig

SMALL = TransformerConfig(width=16, layers=1, heads=2)
CAPTION = Caption(kind="tokens", context=9, transformer=SMALL, states="direct", tokenizer="clip")
NAMES = ("cat", "dog", "tree")


def decoder(conditions: Conditions) -> Decoder:
    config = DecoderConfig(
        image_size=16,
        unet=tiny.unet(attention=(0,), head_channels=16),
        conditions=conditions,
        predicts="x0",
        variance="fixed",
        sampling=Sampling(sampler="ddim", steps=tiny.STEPS, guidance=2.0, threshold="static"),
    )
    return tiny._build(Decoder, config, 2)


def text_upsampler() -> Upsampler:
    config = UpsamplerConfig(
        unet=tiny.unet(attention=(0,), head_channels=16),
        conditions=Conditions(text=CAPTION),
        variance="learned",
        sampling=Sampling(sampler="ddpm", steps=tiny.STEPS, variance="learned", guidance=1.5, threshold="static"),
    )
    return tiny._build(Upsampler, config, 5)


@pytest.fixture(scope="module")
def glide() -> Cascade:
    return Cascade(decoder(Conditions(text=CAPTION)), [text_upsampler()], name="glide")


@pytest.fixture(scope="module")
def adm() -> Cascade:
    return Cascade(decoder(Conditions(label=Label(classes=3, names=NAMES))), [tiny.upsampler()], name="adm")


@pytest.fixture(scope="module")
def pipe() -> UnCLIP:
    return tiny.pipeline()


def test_generate_from_captions_makes_each_picture_again_alone(glide: Cascade) -> None:
    made = glide.generate(["a cat", "two dogs"], n=2, seed=3)
    assert glide.sizes == (16, 64) and made.images.shape == (4, 3, 64, 64) and made.latent is None
    assert made.captions == ("a cat", "a cat", "two dogs", "two dogs") and made.seeds[3] == (3, 3) and made.model == "glide"
    alone = glide.generate("two dogs", seed=3, first=3)
    assert (alone.images[0] - made.images[3]).abs().max() < 0.02
    unsaid = glide.generate(seed=3, first=3)
    assert unsaid.captions == ("",) and (unsaid.images - alone.images).abs().max() > 0.1
    # The upsampler reads the caption as well.
    told = Cascade(glide.decoder, [tiny.upsampler()]).generate("two dogs", seed=3, first=3)
    assert torch.equal(told.stages[16], alone.stages[16]) and not torch.allclose(told.images, alone.images, atol=0.1)


def test_generate_from_labels_takes_names_and_numbers(adm: Cascade) -> None:
    named = adm.generate(labels=["dog", "tree"], seed=1, size=16)
    assert named.captions == ("dog", "tree") and torch.equal(named.images, adm.generate(labels=[1, 2], seed=1, size=16).images)
    for same in ("dog", torch.tensor(1), torch.tensor([1])):
        assert torch.equal(adm.generate(labels=same, seed=1, size=16).images, adm.generate(labels=1, seed=1, size=16).images)
    assert (named.images[0] - adm.generate(seed=1, size=16).images[0]).abs().max() > 0.1  # without a label: the null


@pytest.mark.parametrize("which", ["glide", "adm"])
def test_cascade_is_saved_loaded_and_drawn_by_the_command(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cascade: Cascade = request.getfixturevalue(which)
    folder = tmp_path / which
    cascade.save_pretrained(folder)
    assert json.loads((folder / "unclip.json").read_text())["kind"] == "Cascade"
    again = unclip.from_pretrained(folder)
    assert isinstance(again, Cascade) and isinstance(unclip.from_pretrained(folder, offload=True), Cascade)
    what = {"captions": "a cat"} if which == "glide" else {"labels": "cat"}
    made = cascade.generate(**what, seed=2)
    assert torch.equal(again.generate(**what, seed=2).images, made.images)
    assert torch.equal(unclip.from_pretrained(folder, offload=True).generate(**what, seed=2).images, made.images)
    with pytest.raises(ValueError, match=r"holds a pipeline of the kind Cascade, not UnCLIP: load it with unclip.Cascade"):
        UnCLIP.from_pretrained(folder)
    words = ["a cat"] if which == "glide" else ["--label", "cat"]
    png = tmp_path / "x.png"
    done = CliRunner().invoke(app, ["generate", *words, "-o", str(png), "--model", str(folder), "--seed", "2"])
    assert done.exit_code == 0, done.output
    assert metadata(png)["caption"] == ("a cat" if which == "glide" else "cat")
    assert "Decoder" in CliRunner().invoke(app, ["info", str(folder)]).output
    done = CliRunner().invoke(app, ["vary", str(png), "-o", str(tmp_path / "y.png"), "--model", str(folder)])
    assert done.exit_code == 2 and "is a Cascade" in done.output


def test_label_of_the_command_is_a_name_first_and_a_number_where_none_is_called_so() -> None:
    assert class_labels(["2", "1", "cat"], ("10", "2", "cat")) == ["2", 1, "cat"]  # folders of digits sort as text


def test_conditions_that_a_cascade_does_not_have_are_refused(glide: Cascade, adm: Cascade) -> None:
    for call, message in (
        (lambda: glide.generate(labels=1), "not conditioned on 'label'; it takes text"),
        (lambda: adm.generate("a cat"), "not conditioned on 'text'; it takes label"),
        (lambda: adm.generate(labels="dgo"), "no label 'dgo'; near are dog"),
        (lambda: adm.generate(labels=3), r"labels \[3\] were given; the classes are 0 to 2"),
        (lambda: adm.generate(labels=[]), "no label was given: the list of labels is empty"),
        (lambda: glide.generate("a cat", n=0), "n is 0; it must be a whole number of at least 1"),
        (lambda: glide.generate("a cat", size=32), "size is 32"),
        (lambda: glide.generate(["a", "b"], negative=["x", "y", "z"]), "3 negative captions came with 2"),
        (lambda: adm.generate(labels=1, negative="a dog"), "this decoder reads no captions"),
        (lambda: adm.generate(labels=True), "a label is True"),
        (lambda: labels_of([1.5], NAMES), "label is 1.5; it must be a whole number"),
        (lambda: check_callables(3, None, 1.0), "callback is 3"),
        (lambda: check_callables(None, "cat", 1.0), "guide is 'cat'"),
        (lambda: check_callables(None, None, "much"), "guide_scale is 'much'"),
        (lambda: adm.generate(labels=1, guide=lambda x, t: x.sum((1, 2, 3)), guide_scale=float("nan")), "guide_scale is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_negative_leads_away_and_a_blank_one_is_the_null(pipe: UnCLIP, glide: Cascade) -> None:
    guided = {"prior": pipe.prior.sampling.replace(guidance=3.0), "size": 16, "seed": 4}
    plain = pipe.generate(tiny.CAPTIONS[0], **guided)
    assert torch.equal(pipe.generate(tiny.CAPTIONS[0], **guided, negative=" ").images, plain.images)
    away = pipe.generate(tiny.CAPTIONS[0], **guided, negative=tiny.CAPTIONS[1])
    assert not torch.allclose(away.latent.image_embed, plain.latent.image_embed, atol=1e-3)
    itself = pipe.generate(tiny.CAPTIONS[0], **guided, negative=tiny.CAPTIONS[0])  # from itself to itself: no guidance
    off = pipe.generate(tiny.CAPTIONS[0], **{**guided, "prior": pipe.prior.sampling})
    assert torch.allclose(itself.latent.image_embed, off.latent.image_embed, atol=1e-3)
    with pytest.warns(UserWarning, match="negative changes nothing in the prior"):
        pipe.generate(tiny.CAPTIONS[0], size=16, negative=tiny.CAPTIONS[1])
    cat = {"captions": "a cat", "seed": 1, "size": 16}
    assert not torch.allclose(glide.generate(**cat, negative="a dog").images, glide.generate(**cat).images, atol=1e-3)
    two = {"captions": tiny.CAPTIONS[:2], **guided}  # a blank one among others is the null of its caption alone
    some = pipe.generate(**two, negative=["", tiny.CAPTIONS[2]]).latent.image_embed - pipe.generate(**two).latent.image_embed
    assert some[0].abs().max() < 1e-5 and some[1].abs().max() > 1e-3


def test_negative_leads_upsamplers_too_that_read_captions(glide: Cascade, pipe: UnCLIP) -> None:
    asked = {"captions": "a cat", "seed": 1, "decoder": glide.decoder.sampling.replace(guidance=1.0)}
    plain = glide.generate(**asked)
    with pytest.warns(UserWarning, match="negative changes nothing in the decoder: its guidance is 1"):
        away = glide.generate(**asked, negative="a dog")
    assert torch.equal(away.stages[16], plain.stages[16]) and (away.images - plain.images).abs().max() > 0.01
    unguided = [glide.upsamplers[0].sampling.replace(guidance=1.0)]
    with pytest.warns(UserWarning) as warned:
        same = glide.generate(**asked, negative="a dog", upsamplers=unguided)
    assert [str(one.message).split(":")[0] for one in warned] == [
        "negative changes nothing in the decoder",
        "negative changes nothing in the upsampler_64",
    ]
    assert torch.equal(same.images, glide.generate(**asked, upsamplers=unguided).images)
    with warnings.catch_warnings():  # a stage that is not drawn is not warned of, nor one that reads no captions
        warnings.simplefilter("error")
        glide.generate("a cat", negative="a dog", size=16, upsamplers=unguided)
        prior = pipe.prior.sampling.replace(guidance=2.0)
        pipe.generate(tiny.CAPTIONS[0], negative=tiny.CAPTIONS[1], prior=prior)


# Callbacks


def test_callback_is_told_of_every_step_and_changes_no_bit(pipe: UnCLIP) -> None:
    told: list[Step] = []
    ask = {"captions": tiny.CAPTIONS[:2], "seed": 1}
    made = pipe.generate(**ask, callback=told.append)
    assert torch.equal(made.images, pipe.generate(**ask).images)
    stages = dict.fromkeys(step.stage for step in told)
    assert list(stages) == ["prior", "decoder", "upsampler_64", "upsampler_256"]
    for stage in stages:
        steps = [step for step in told if step.stage == stage]
        assert [step.step for step in steps] == [1, 2, 3] * (len(steps) // 3) and {step.steps for step in steps} == {3}
    last = [step for step in told if step.stage == "decoder"][-1]
    shown = last.images()
    assert shown is not None and torch.allclose(shown, made.stages[16], atol=1e-5) and last.rows == slice(0, 2)
    assert next(step for step in told if step.stage == "prior").images() is None


@pytest.mark.parametrize("offload", [False, True])
def test_cancel_at_step_3_of_the_second_stage_leaves_the_pipeline_as_it_was(offload: bool, pipe: UnCLIP, tmp_path: Path) -> None:
    if offload:
        pipe.save_pretrained(tmp_path / "tiny")
        pipe = UnCLIP.from_pretrained(tmp_path / "tiny", offload=True)
    before = pipe.generate(tiny.CAPTIONS[0], seed=2, size=64)

    def cancel(step: Step) -> None:
        if step.stage == "decoder" and step.step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        pipe.generate(tiny.CAPTIONS[0], seed=2, size=64, callback=cancel)
    assert torch.equal(pipe.generate(tiny.CAPTIONS[0], seed=2, size=64).images, before.images)


# Guidance by a gradient: data are two Gaussians, one pixel, whose classifier and tilted mean are known

MU, S, SCHEDULE = 0.4, 0.2, NoiseSchedule.cosine()


class TwoClasses:
    """A decoder whose denoiser is exact for 0.5 N(-MU, S^2) + 0.5 N(MU, S^2) in each of its pixels."""

    image_size, takes = 8, ()

    def __init__(self, sampling: Sampling):
        self.sampling = sampling

    def resolve(self, sampling: Sampling | None = None) -> Sampling:
        return self.sampling

    def loss(self, images: Tensor, cond: Cond, *, noise: Noise) -> Losses:
        raise AssertionError

    def invert(self, images: Tensor, cond: Cond, *, inversion: Inversion | None = None) -> tuple[Tensor, tuple[int, ...]]:
        raise AssertionError

    def sample(
        self,
        cond: Cond,
        *,
        noise: Noise,
        x_t: Tensor | None = None,
        t: int | None = None,
        sampling: Sampling | None = None,
        wrap: Wrap | None = None,
    ) -> Tensor:
        from unclip.diffusion.samplers import run

        assert x_t is not None
        denoise: Denoise = exact if wrap is None else wrap(exact)
        return run(denoise, x_t, SCHEDULE, self.sampling, noise=noise.at("steps"))


def exact(x: Tensor, t: Tensor) -> Prediction:
    alpha, sigma = SCHEDULE.at(t, x)
    var = alpha**2 * S**2 + sigma**2
    right = posterior(x, t).exp()
    mean = (2 * right - 1) * MU
    # Within a class x0 is Gaussian given x_t; between them it is weighed by the class's probability.
    x0 = mean + alpha * S**2 / var * (x - alpha * mean)
    return Prediction(x0, (x - alpha * x0) / sigma)


def posterior(x: Tensor, t: Tensor) -> Tensor:
    """log p(the class at MU | x_t), per pixel."""
    alpha, sigma = SCHEDULE.at(t, x)
    return torch.nn.functional.logsigmoid(2 * alpha * MU * x / (alpha**2 * S**2 + sigma**2))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_guide_turns_a_mixture_into_one_of_its_classes(sampler: str) -> None:
    steps = 1000 if sampler == "ddpm" else 200
    visited = tuple(round(k * 1000 / steps) for k in range(steps, -1, -1))
    cascade = Cascade(TwoClasses(Sampling(sampler=sampler, steps=visited)))
    n = 50  # pictures of 192 independent numbers
    free = cascade.generate(n=n, seed=5).images
    assert abs(float(free.mean())) < 3 * (MU**2 + S**2) ** 0.5 / (192 * n) ** 0.5  # both classes
    # p(x) p(right | x) is the right class: the gradient of its classifier makes the sampler draw that, exactly.
    drawn = cascade.generate(n=n, seed=5, guide=lambda x, t: posterior(x, t).flatten(1).sum(1)).images
    assert abs(float(drawn.mean()) - MU) < 3 * S / (192 * n) ** 0.5 + 2e-3
    assert abs(float(drawn.std()) - S) < 0.01


class Guiding:
    """A guide that knows conditions: one per chunk of pictures."""

    def __init__(self) -> None:
        self.seen: list[Cond] = []

    def guide(self, cond: Cond):
        self.seen.append(cond)
        return lambda x, t: x.flatten(1).sum(1)


def test_guide_that_knows_conditions_is_bound_to_each_chunk(adm: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unclip.pipelines.cascade.PIXELS_AT_ONCE", 16 * 16)
    guide = Guiding()
    steered = adm.generate(labels=[0, 2], seed=1, size=16, guide=guide, guide_scale=0.3)
    assert [cond.label.tolist() for cond in guide.seen] == [[0], [2]]  # one per chunk of pictures
    free = adm.generate(labels=[0, 2], seed=1, size=16)
    assert not torch.allclose(steered.images, free.images, atol=0.1)
    still = adm.generate(labels=[0, 2], seed=1, size=16, guide=guide, guide_scale=0.0)
    assert torch.allclose(still.images, free.images, atol=1e-2)
    with pytest.raises(ValueError, match="the decoder cannot be guided: its sample"):
        Cascade(tiny.ForeignDecoder()).generate(seed=1, guide=guide)


class ClassifierConfig(Config, frozen=True, kw_only=True):
    classes: int = 2


class Classifier(Component[ClassifierConfig]):
    """Prefers bright pictures for class "light", dark ones for "dark"."""

    config_class = ClassifierConfig
    label_names = ("dark", "light")

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.weight = torch.nn.Parameter(torch.tensor([-3.0, 3.0]))

    def guide(self, cond: Cond):
        assert cond.label is not None
        weight = self.weight[cond.label]
        return lambda x, t: torch.nn.functional.logsigmoid(weight * x.mean((1, 2, 3)))


@pytest.mark.parametrize("offload", [False, True])
def test_guide_of_a_cascade_reads_labels_that_its_decoder_does_not_take(offload: bool, glide: Cascade, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not conditioned on 'label'; it takes text, and no guide model"):
        Cascade(glide.decoder).generate(labels=1)
    steered = Cascade(glide.decoder, glide.upsamplers, guide=Classifier(ClassifierConfig()), name="steered")
    steered.save_pretrained(tmp_path / "steered")
    loaded = Cascade.from_pretrained(tmp_path / "steered", {"Classifier": Classifier}, offload=offload)
    assert list(loaded.components) == ["decoder", "upsampler_64", "guide"] and loaded.label_names == ("dark", "light")
    ask = {"seed": 1, "guide_scale": 40.0}
    made = loaded.generate(labels=["dark", "light"], **ask)
    assert torch.equal(made.images, steered.generate(labels=[0, 1], **ask).images) and made.captions == ("dark", "light")
    other = loaded.generate(labels=["light", "light"], **ask)  # which is steered by its class
    assert torch.equal(other.images[1], made.images[1]) and (other.stages[16][0] - made.stages[16][0]).abs().max() > 0.1


def test_what_cannot_lead_the_decoder_is_refused_before_the_prior_draws(pipe: UnCLIP) -> None:
    told: list[Step] = []
    closed = UnCLIP(tiny.ForeignEncoder(), tiny.ForeignPrior(), tiny.ForeignDecoder())
    with pytest.raises(ValueError, match="the decoder cannot be guided"):
        closed.generate("a cat", guide=lambda x, t: x.flatten(1).sum(1), callback=told.append)
    with pytest.raises(ValueError, match="guide_scale is inf"):
        pipe.generate("a cat", guide=lambda x, t: x.flatten(1).sum(1), guide_scale=float("inf"), callback=told.append)
    assert not told


def test_guide_of_an_unclip_sees_captions_and_embeddings_whatever_its_decoder_takes(pipe: UnCLIP) -> None:
    guide = Guiding()
    alone = UnCLIP(pipe.clip, pipe.prior, tiny.decoder(text=False), name="tiny")
    made = alone.generate(["a cat", "two dogs"], seed=1, guide=guide, guide_scale=0.1)
    (cond,) = guide.seen
    assert cond.text.strings == ["a cat", "two dogs"] and torch.equal(cond.image_embed, made.latent.image_embed)
    assert torch.equal(cond.text.z_t, pipe.clip.encode_text(["a cat", "two dogs"]).z_t)


def test_parts_of_yesterdays_contract_draw_and_are_told_of_by_a_step_each() -> None:
    pipe = UnCLIP(tiny.ForeignEncoder(), tiny.ForeignPrior(), tiny.ForeignDecoder(), [tiny.ForeignUpsampler()])
    told: list[Step] = []
    made = pipe.generate("a cat", seed=1, callback=told.append)
    assert made.images.shape == (1, 3, 16, 16)
    assert [(step.stage, step.step, step.steps) for step in told] == [("prior", 1, 1), ("decoder", 1, 1), ("upsampler_16", 1, 1)]
    with pytest.raises(ValueError, match="the prior takes no negative caption"):
        pipe.generate("a cat", seed=1, negative="a dog")


def test_without_a_prior_pictures_are_edited_and_captions_refused(pipe: UnCLIP, tmp_path: Path) -> None:
    alone = UnCLIP(pipe.clip, None, pipe.decoder, pipe.upsamplers, name="tiny")
    with pytest.raises(ValueError, match=r"no prior, so it cannot draw pictures for captions: .*with_prior"):
        alone.generate("a cat")
    picture = 0.5 * torch.ones(3, 16, 16)
    edited = alone.vary(picture, n=1, size=16)
    assert torch.equal(edited.images, pipe.vary(picture, n=1, size=16).images)
    alone.save_pretrained(tmp_path / "alone")
    again = UnCLIP.from_pretrained(tmp_path / "alone")
    assert again.prior is None and list(again.components) == ["clip", "decoder", "upsampler_64", "upsampler_256"]
    made = again.with_prior(pipe.prior).generate("two dogs", size=16)
    assert torch.equal(made.images, pipe.generate("two dogs", size=16).images)


# Threads


@pytest.mark.parametrize("offload", [False, True])
def test_threads_on_one_pipeline_get_their_own_pictures(offload: bool, pipe: UnCLIP, tmp_path: Path) -> None:
    if offload:
        pipe.save_pretrained(tmp_path / "tiny")
        pipe = UnCLIP.from_pretrained(tmp_path / "tiny", offload=True)
    want = [pipe.generate(caption, seed=k, size=64) for k, caption in enumerate(tiny.CAPTIONS)]
    found: dict[int, list[Tensor]] = {k: [] for k in range(3)}

    def draw(k: int) -> None:
        for _ in range(4):
            made = pipe.generate(tiny.CAPTIONS[k], seed=k, size=64)
            made.save(tmp_path / "same.png")
            found[k].append(made.images)

    threads = [threading.Thread(target=draw, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(images) for images in found.values()] == [4, 4, 4]
    assert all(torch.equal(image, want[k].images) for k, images in found.items() for image in images)
    assert metadata(tmp_path / "same.png")["caption"] in tiny.CAPTIONS
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_threads_on_one_clip_get_their_own_states() -> None:
    clip = tiny.clip()
    with torch.no_grad():
        want = [clip.encode_text([caption]).states for caption in tiny.CAPTIONS]
    wrong: list[int] = []

    def ask(k: int) -> None:
        with torch.no_grad():
            wrong.extend(k for _ in range(60) if not torch.equal(clip.encode_text([tiny.CAPTIONS[k]]).states, want[k]))

    import sys

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=ask, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []

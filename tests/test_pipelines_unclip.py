"""The whole chain on a tiny pipeline: what it returns, what it depends on and what it refuses."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable

import pytest
import tiny
import torch
from test_cli import ar_prior
from tiny import CAPTIONS, STEPS

import unclip.pipelines.candidates
import unclip.pipelines.cascade
import unclip.pipelines.unclip
from prior import ARSampling
from unclip.contracts import keep_contract
from unclip.pipelines.cascade import Cascade
from unclip.pipelines.generation import Generation
from unclip.pipelines.load import from_pretrained
from unclip.pipelines.stage import captions_of, numbers_of
from unclip.pipelines.unclip import UnCLIP
from unclip.randomness import Noise
from unclip.sampling import Inversion, Sampling
from unclip.types import Cond, Decoder, ImageTextEncoder, Prior, Step, Text, Upsampler, best_of


@pytest.fixture(scope="module")
def pipe() -> UnCLIP:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def made(pipe: UnCLIP) -> Generation:
    return pipe.generate(CAPTIONS[:2], n=2, seed=5, first=7)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def test_what_is_returned(pipe: UnCLIP, made: Generation) -> None:
    assert pipe.sizes == (16, 64, 256)
    assert list(pipe.components) == ["clip", "prior", "decoder", "upsampler_64", "upsampler_256"]
    assert made.images.shape == (4, 3, 256, 256) and made.images is made.stages[256] and list(made.stages) == [16, 64, 256]
    assert made.images.dtype == torch.float32 and made.images.abs().max() <= 1
    assert made.captions == ("a red heart", "a red heart", "a cat with a hat", "a cat with a hat")
    assert made.seeds == ((5, 7), (5, 8), (5, 9), (5, 10)) and made.model == "tiny"
    assert made.latent.image_embed.shape == (4, tiny.EMBED) and made.latent.x_t.shape == (4, 3, 16, 16)
    assert (made.latent.t, made.latent.sampling) == (1000, pipe.decoder.resolve()) and made.latent.captions == made.captions
    assert (
        made.latent.models["pipeline"] == "tiny" and len(made.latent.models["clip"]) == len(made.latent.models["decoder"]) == 16
    )
    assert min(difference(a, b) for i, a in enumerate(made.images) for b in made.images[:i]) > 0.5
    assert len(made) == 4 and len(made.pil()) == 4


def test_smaller_sizes_run_no_upsampler(pipe: UnCLIP, made: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe.upsamplers[1], "sample", None)
    middle = pipe.generate(CAPTIONS[:2], n=2, seed=5, first=7, size=64)
    assert list(middle.stages) == [16, 64] and torch.equal(middle.images, made.stages[64])
    monkeypatch.setattr(pipe.upsamplers[0], "sample", None)
    small = pipe.generate(CAPTIONS[:2], n=2, seed=5, first=7, size=16)
    assert list(small.stages) == [16] and torch.equal(small.images, made.stages[16])


def test_a_picture_of_a_batch_is_made_again_alone(pipe: UnCLIP, made: Generation) -> None:
    for k in (0, 3):
        alone = pipe.generate(made.captions[k], seed=5, first=7 + k, size=64)
        assert alone.seeds == (made.seeds[k],) and torch.equal(alone.latent.x_t[0], made.latent.x_t[k])
        assert difference(alone.images[0], made.stages[64][k]) < 0.02
    again = pipe.generate(made.captions[3], seed=5, first=10, size=64)
    assert torch.equal(again.images, alone.images)
    other = pipe.generate(made.captions[3], seed=6, first=10, size=16)
    assert difference(other.images, again.stages[16]) > 0.5


def test_chunks_bound_the_memory_and_change_nothing(pipe: UnCLIP, made: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[int]] = {"prior": [], "decoder": []}
    for name, sizes in seen.items():
        part = pipe.components[name]
        run = part.sample
        monkeypatch.setattr(part, "sample", lambda *a, run=run, sizes=sizes, **k: sizes.append(len(k["noise"])) or run(*a, **k))
    monkeypatch.setattr(unclip.pipelines.cascade, "PIXELS_AT_ONCE", 3 * 16 * 16)
    monkeypatch.setattr(unclip.pipelines.candidates, "AT_ONCE", 2)
    told: list[tuple[str, int, int]] = []

    def callback(step: Step) -> None:
        if step.step == step.steps:
            told.append((step.stage, step.rows.stop, step.total))

    again = pipe.generate(CAPTIONS[:2], n=2, seed=5, first=7, size=64, callback=callback)
    assert seen == {"prior": [2, 2], "decoder": [3, 1]}
    assert told == [("prior", 2, 4), ("prior", 4, 4), ("decoder", 3, 4), ("decoder", 4, 4)] + [
        ("upsampler_64", k, 4) for k in (1, 2, 3, 4)
    ]
    assert difference(again.images, made.stages[64]) < 0.02


def test_settings_of_a_stage_leave_the_others_alone(pipe: UnCLIP, made: Generation) -> None:
    calls: dict[str, int] = {}
    hooks = [
        part.network.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
        for name, part in pipe.components.items()
        if name != "clip"
    ]
    ask = {"captions": CAPTIONS[:2], "n": 2, "seed": 5, "first": 7, "size": 64}
    try:
        slow = Sampling(sampler="ddim", steps=5)
        up = pipe.generate(**ask, upsamplers=[slow, None])
        assert calls == {"prior": STEPS, "decoder": STEPS, "upsampler_64": 5 * 1} and torch.equal(up.stages[16], made.stages[16])
        assert not torch.equal(up.images, made.stages[64])
        down = pipe.generate(**ask, decoder=slow.replace(steps=(800, 300, 0)))
        assert torch.equal(down.latent.image_embed, made.latent.image_embed) and torch.equal(
            down.latent.x_t[:, :, :, 0], made.latent.x_t[:, :, :, 0]
        )
        assert down.latent.t == 800 and not torch.equal(down.stages[16], made.stages[16])
        calls.clear()
        first = pipe.generate(**{**ask, "size": 16}, prior=Sampling(sampler="dpmpp_2m", steps=7))
        assert calls == {"prior": 7, "decoder": STEPS}
        assert torch.equal(first.latent.x_t, made.latent.x_t) and not torch.equal(
            first.latent.image_embed, made.latent.image_embed
        )
    finally:
        for hook in hooks:
            hook.remove()


def test_the_best_candidate_is_kept() -> None:
    pipe = tiny.pipeline(candidates=5)
    made = pipe.generate(CAPTIONS, seed=1, size=16)
    text = pipe.clip.encode_text(CAPTIONS)
    drawn = pipe.prior.sample(text, noise=Noise.of(1, range(3)).at("prior"), n=5)
    torch.testing.assert_close(made.latent.image_embed, best_of(drawn, text.embed))
    assert not torch.allclose(made.latent.image_embed, drawn[:, 0])


def test_an_empty_caption_is_an_unconditional_picture(pipe: UnCLIP) -> None:
    empty = pipe.generate("", seed=3, size=64)
    assert empty.captions == ("",) and difference(pipe.generate(" \n", seed=3, size=64).images, empty.images) < 1e-4
    # Guidance pulls away from no caption towards the caption: without one there is nothing to pull.
    guided = pipe.generate("", seed=3, size=16, prior=pipe.prior.config.sampling.replace(guidance=4.0))
    torch.testing.assert_close(guided.latent.image_embed, empty.latent.image_embed, rtol=1e-3, atol=1e-4)
    # Nothing is near to nothing: the first candidate is taken, whatever CLIP thinks of the empty caption.
    text = pipe.clip.encode_text([""])
    drawn = pipe.prior.sample(text, noise=Noise.of(3).at("prior"), n=2)
    torch.testing.assert_close(empty.latent.image_embed, drawn[:, 0])
    mixed = pipe.generate(["a red heart", ""], seed=3, first=-0, size=16)
    alone = pipe.generate("", seed=3, first=1, size=16)
    assert difference(mixed.images[1], alone.images[0]) < 0.02


def test_a_latent_draws_its_picture_again(pipe: UnCLIP, made: Generation) -> None:
    latent = made.latent
    cond = Cond(latent.image_embed, pipe.clip.encode_text(list(latent.captions)))
    again = pipe.decoder.sample(cond, noise=Noise.of(99, range(4)), x_t=latent.x_t, t=latent.t)
    assert difference(again, made.stages[16]) < 1e-3
    noisy = Sampling(sampler="ddpm", steps=4)
    drawn = pipe.generate(CAPTIONS[0], seed=2, size=16, decoder=noisy)
    cond = Cond(drawn.latent.image_embed, pipe.clip.encode_text(CAPTIONS[:1]))
    again = pipe.decoder.sample(cond, noise=Noise.of(2).at("decoder"), x_t=drawn.latent.x_t, t=drawn.latent.t, sampling=noisy)
    assert difference(again, drawn.images) < 1e-3


def test_a_decoder_without_text_and_fewer_upsamplers(pipe: UnCLIP, made: Generation) -> None:
    mixed = UnCLIP(pipe.clip, pipe.prior, tiny.decoder(text=False), pipe.upsamplers[:1])
    assert mixed.sizes == (16, 64)
    drawn = mixed.generate(CAPTIONS[:2], n=2, seed=5, first=7)
    assert drawn.images.shape == (4, 3, 64, 64) and torch.equal(drawn.latent.image_embed, made.latent.image_embed)
    assert drawn.latent.models["clip"] == made.latent.models["clip"]
    assert drawn.latent.models["decoder"] != made.latent.models["decoder"]


def test_parts_from_outside_that_keep_the_contracts() -> None:
    encoder = tiny.ForeignEncoder()
    foreign = UnCLIP(encoder, tiny.ForeignPrior(), tiny.ForeignDecoder(), [tiny.ForeignUpsampler()], name="foreign")
    assert foreign.sizes == (8, 16) and foreign.device == torch.device("cpu")
    made = foreign.generate(["one", "two"], n=2, seed=1)
    assert made.images.shape == (4, 3, 16, 16)
    colours = encoder.encode_text(["one", "two"]).embed[:, :3].repeat_interleave(2, 0).clamp(-1, 1)
    assert difference(made.images.mean((2, 3)), colours) < 0.2
    assert set(made.latent.models) == {"pipeline", "clip", "decoder"}
    own = tiny.parts()
    mixed = UnCLIP(own["clip"], tiny.ForeignPrior(), own["decoder"], [own["upsamplers"][0], tiny.ForeignUpsampler()])
    assert mixed.generate("two dogs").images.shape == (1, 3, 128, 128)


def test_parts_that_break_a_contract_are_refused_by_name() -> None:
    own = tiny.parts()
    for part, contract, message in [
        (own["clip"], Prior, "CLIP does not keep the contract Prior of unclip.types: it lacks loss, sample$"),
        (own["prior"], Decoder, "DiffusionPrior does not keep the contract Decoder .* lacks image_size, takes"),
        (own["decoder"], Upsampler, "Decoder does not keep the contract Upsampler .* lacks scale"),
        (torch.nn.Linear(1, 1), ImageTextEncoder, "lacks embed_dim, image_size, encode_image, encode_text"),
        (tiny.ForeignPrior, Prior, "not the class ForeignPrior itself"),
    ]:
        with pytest.raises(ValueError, match=message):
            keep_contract(part, contract)
    # Under the type checker of the tests the constructor's signature speaks first.
    for changes in ({"prior": own["clip"]}, {"decoder": own["prior"]}, {"upsamplers": [own["decoder"]]}, {"clip": own["prior"]}):
        with pytest.raises(Exception, match="contract|type"):
            UnCLIP(**{**own, **changes})
    with pytest.raises(ValueError, match="at least one embedding"):
        UnCLIP(**own, candidates=0)
    own["upsamplers"][0].scale = 1
    with pytest.raises(ValueError, match="by 2 or more; this one's scale is 1"):
        UnCLIP(**own)


def test_parts_of_another_kind_are_refused_by_their_parameters(pipe: UnCLIP) -> None:
    told = (
        r"^Decoder does not keep the contract Prior of unclip.types: it has sample\(cond, noise, x_t, t, sampling, "
        r"negative, wrap\) where it must have sample\(text, noise, n, sampling\): got an unexpected keyword argument 'n'$"
    )
    with pytest.raises(ValueError, match=told):
        pipe.with_prior(pipe.decoder)
    with pytest.raises(ValueError, match=r"Upsampler does not keep .* must have sample\(text, noise, n, sampling\)"):
        keep_contract(pipe.upsamplers[0], Prior)

    class Short(tiny.ForeignPrior):
        def sample(self, text: Text) -> torch.Tensor:  # type: ignore[override]
            return text.embed[:, None]

    class Open(tiny.ForeignPrior):
        def sample(self, captions: Text, **others: object) -> torch.Tensor:  # type: ignore[override]
            return captions.embed[:, None].expand(-1, 2, -1)

    with pytest.raises(ValueError, match=r"it has sample\(text\) where it must have sample\(text, noise, n, sampling\)"):
        keep_contract(Short(), Prior)
    assert torch.isfinite(pipe.with_prior(Open()).generate("two dogs", size=16).images).all()


class Spoilt(tiny.ForeignPrior):
    def __init__(self, spoil: Callable[[torch.Tensor], object]):
        self.spoil = spoil

    def sample(self, *given: object, **options: object) -> object:  # type: ignore[override]
        return self.spoil(super().sample(*given, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda x: x[:1], r"of shape \(1, 2, 12\)"),
        (lambda x: x[:, 0], r"of shape \(3, 12\)"),
        (lambda x: x[..., :5], r"of shape \(3, 2, 5\)"),
        (lambda x: x.numpy(), "of type ndarray"),
        (lambda x: x.index_fill(0, torch.tensor([1]), torch.nan), "of which 24 numbers are NaN or infinite"),
    ],
)
def test_what_a_prior_draws_is_looked_at(pipe: UnCLIP, spoil: Callable[[torch.Tensor], object], told: str) -> None:
    broken = pipe.with_prior(Spoilt(spoil))
    with pytest.raises(ValueError, match=rf"Spoilt.sample drew embeddings {told}; expected \(captions, n, d\) = \(3, 2, 12\)"):
        broken.generate(CAPTIONS, size=16)


def test_settings_of_a_wrong_kind_are_refused(pipe: UnCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = inspect.unwrap(UnCLIP.generate)  # the type checker of the tests would be quicker
    two = Sampling(steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(pipe.prior, "sample", None)
        for ask, message in [
            ({"prior": ARSampling()}, "prior: ARSampling.* is no Sampling"),
            ({"prior": 5}, "prior: 5 is no Sampling"),
            ({"decoder": 5}, "decoder: 5 is no Sampling"),
            ({"decoder": {"steps": 5}}, "decoder: {'steps': 5} is no Sampling, which tells how this component samples"),
            ({"upsamplers": two}, "Sampling.* for 2 upsamplers; give a list, one each"),
            ({"upsamplers": [two, 5]}, "upsamplers: 5 is no Sampling"),
            ({"seed": 1.7}, "seed is 1.7; it must be a whole number"),
            ({"seed": "7"}, "seed is '7'"),
        ]:
            with pytest.raises(ValueError, match=message):
                generate(pipe, "two dogs", **ask)
    made = generate(pipe, "two dogs", seed=torch.tensor(3), size=16)
    assert made.seeds == ((3, 0),) and torch.equal(made.images, pipe.generate("two dogs", seed=3, size=16).images)
    with pytest.raises(ValueError, match="size is '64'; this pipeline makes pictures of 16, 64, 256 pixels"):
        inspect.unwrap(Cascade.stages)(pipe.cascade, "64")
    own = pipe.with_prior(ar_prior())
    for how in (ARSampling(top_p=0.5), Sampling(guidance=2.0)):
        own.generate("two dogs", size=16, prior=how)
    with pytest.raises(ValueError, match="prior: Inversion.* is no ARSampling"):
        own.generate("two dogs", size=16, prior=Inversion())
    pipe.with_prior(tiny.ForeignPrior()).generate("two dogs", size=16, prior=Inversion())  # its own business


def test_another_clip_is_refused(pipe: UnCLIP) -> None:
    with pytest.raises(ValueError, match="another CLIP.*cosine"):
        tiny.pipeline(clip=tiny.clip(seed=9), clip_identity=pipe.clip_identity)
    assert tiny.pipeline(clip=tiny.clip(), clip_identity=pipe.clip_identity).clip_identity == pipe.clip_identity


def test_a_long_caption_is_cut_and_the_dropped_text_shown(pipe: UnCLIP) -> None:
    with pytest.warns(UserWarning, match="longer than CLIP's context of 10 tokens; dropped: 'on a hat'$") as caught:
        made = pipe.generate("a cat with a red heart a cat on a hat", size=16, n=3)
    assert len(caught) == 1 and made.captions[0].endswith("on a hat")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.pipeline()  # the fixed captions of a CLIP's identity do not warn


def test_precision(made: Generation) -> None:
    pipe = tiny.pipeline().to(dtype=torch.bfloat16)
    half = pipe.generate(CAPTIONS[:2], n=2, seed=5, first=7, size=64)
    assert half.images.dtype == half.latent.image_embed.dtype == half.latent.x_t.dtype == torch.float32
    assert torch.equal(half.latent.x_t, made.latent.x_t) and not torch.equal(half.images, made.stages[64])
    assert float((half.images - made.stages[64]).abs().mean()) < 0.1
    assert next(pipe.decoder.parameters()).dtype == torch.float32
    assert torch.equal(pipe.to(dtype=torch.float32).generate(CAPTIONS[:2], n=2, seed=5, first=7, size=64).images, made.stages[64])
    with pytest.raises(ValueError, match="use bfloat16 or float32"):
        pipe.to("cpu", torch.float16)
    with pytest.raises(ValueError, match="not in torch.float64"):
        pipe.to(dtype=torch.float64)
    assert pipe.dtype == torch.float32
    assert pipe.to(dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ValueError, match="no dtype 'half'; there are float32, bfloat16, float16"):
        pipe.to(dtype="half")
    for where in ("gpu", "cuda:99", "meta", ""):
        with pytest.raises(ValueError, match=f"device {where!r} cannot be used here: "):
            pipe.to(where)


def test_weights_are_loaded_and_stored_in_a_type_by_its_name(tmp_path: Path) -> None:
    tiny.pipeline().save_pretrained(tmp_path / "half", dtype="float16")
    loaded = UnCLIP.from_pretrained(tmp_path / "half", dtype="bfloat16")
    assert next(loaded.decoder.parameters()).dtype == torch.bfloat16
    part = type(loaded.decoder).from_pretrained(tmp_path / "half" / "decoder", dtype="torch.float16")
    assert next(part.parameters()).dtype == torch.float16
    assert torch.equal(next(part.parameters()).bfloat16(), next(loaded.decoder.parameters()))
    for load in (from_pretrained, UnCLIP.from_pretrained, lambda source, dtype: loaded.save_pretrained(tmp_path / "new", dtype)):
        with pytest.raises(ValueError, match="no dtype 'fp61'; there are float32, bfloat16, float16"):
            load(tmp_path / "half", dtype="fp61")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"size": 100}, "size is 100; this pipeline makes pictures of 16, 64, 256 pixels"),
        ({"size": 0}, "size is 0"),
        ({"size": True}, "size is True; this pipeline makes"),
        ({"n": 0}, "n is 0; it must be a whole number of at least 1: how many pictures for each caption"),
        ({"n": True}, "n is True; it must be a whole number"),
        ({"seed": True}, "seed is True; it must be a whole number"),
        ({"first": -1}, "first is -1; it must be a whole number of at least 0"),
        ({"captions": []}, "no caption was given: the list of captions is empty"),
        ({"captions": "\udc80"}, "a caption is text"),
        ({"upsamplers": [None]}, "1 settings for 2 upsamplers"),
        ({"decoder": Sampling(steps=1001)}, "cannot take 1001 steps out of 1000"),
        ({"decoder": Sampling(steps=(1001, 9))}, "descends within 1000..0"),
        ({"prior": Sampling(threshold="static")}, "a prior keeps x0 in range by its config's `clamp`"),
        (
            {"prior": Sampling(sampler="ddpm", variance="analytic", steps=5)},
            "analytic variance was not measured .* sample with variance 'small'",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(
    pipe: UnCLIP, ask: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe.decoder, "sample", None)
    with pytest.raises(ValueError, match=message):
        pipe.generate(**{"captions": "a red heart", **ask})


def test_captions_and_numbers_of_other_kinds_are_refused_by_name() -> None:
    for wrong, message in (
        (5, "captions are 5; give a string, or a list of strings"),
        (None, "captions are None; give a string"),
        (b"heart", "captions are b'heart'; give a string"),
        (["a", 3], "a caption is text, not 3"),
    ):
        with pytest.raises(ValueError, match=message):
            captions_of(wrong)
    for n in (2.0, None, "2", True):
        with pytest.raises(ValueError, match=f"n is {n!r}; it must be a whole number of at least 1: how many pictures"):
            numbers_of(n, 0, 0)
    with pytest.raises(ValueError, match=r"n is 'a blue heart'; .* \(several captions are given as a list\)"):
        numbers_of("a blue heart", 0, 0)


def test_generating_is_for_evaluation_and_leaves_the_global_generator_alone() -> None:
    parts = tiny.parts()
    for part in (parts["clip"], parts["prior"], parts["decoder"], *parts["upsamplers"]):
        part.train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    pipe = UnCLIP(**parts)
    made = pipe.generate("two dogs", size=16)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for part in pipe.components.values() for module in part.modules())
    assert not made.images.requires_grad and not made.latent.image_embed.requires_grad


def test_another_prior_in_the_same_pipeline(tmp_path: Path) -> None:
    pipe = tiny.pipeline()
    own = pipe.generate(tiny.CAPTIONS[:1], size=16)
    other = pipe.with_prior(tiny.ForeignPrior(), candidates=3)
    assert other.candidates == 3 and other.decoder is pipe.decoder and other.upsamplers == pipe.upsamplers
    assert not torch.equal(other.generate(tiny.CAPTIONS[:1], size=16).images, own.images)
    assert torch.equal(pipe.generate(tiny.CAPTIONS[:1], size=16).images, own.images)  # as it was

    pipe.save_pretrained(tmp_path / "same")
    again = other.with_prior(tmp_path / "same")
    assert again.candidates == 2
    assert torch.equal(again.generate(tiny.CAPTIONS[:1], size=16).images, own.images)
    with pytest.raises(ValueError, match="no component 'ar_prior'"):
        pipe.with_prior(tmp_path / "same", part="ar_prior")

    tiny.pipeline(clip=tiny.clip(seed=9)).save_pretrained(tmp_path / "stranger")
    with pytest.raises(ValueError, match="CLIP"):
        pipe.with_prior(tmp_path / "stranger")

"""What a decoder and an upsampler can be conditioned on: caption, label, embedding, known pixels, alone and together."""

from __future__ import annotations

import msgspec
import pytest
import torch
from tiny_decoder import EMBED, TOKENS, UNET, conditions, disturb, embeds, pictures, random, texts

from decoder import Decoder, DecoderConfig, DecoderTask
from unclip.conditions import Caption, ConditionEncoder, Conditions, ImageEmbedding, Known, Label, Share
from unclip.nn.transformer import TransformerConfig
from unclip.nn.unet import UNetConfig
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.types import Batch, Cond, Text
from upsamplers import CorruptionConfig, Upsampler, UpsamplerConfig

SMALL = TransformerConfig(width=16, layers=1, heads=2)
GLIDE = Caption(kind="tokens", context=9, transformer=SMALL, states="direct", tokenizer="clip")
NAMES = ("cat", "dog", "tree")
TRY = {
    "caption": (Conditions(text=GLIDE), ("text",)),
    "label": (Conditions(label=Label(classes=3, names=NAMES)), ("label",)),
    "label and caption": (Conditions(label=Label(classes=3), text=GLIDE), ("text", "label")),
    "known": (Conditions(known=Known()), ("known",)),
    "embedding and known": (conditions().replace(known=Known()), ("image_embed", "known")),
    "nothing": (Conditions(), ()),
}
NOISE = Noise.of(3, range(2))
LABELS = torch.tensor([0, 2])


def given(takes: tuple[str, ...], size: int = 8) -> Cond:
    keep = torch.zeros(2, 1, size, size, dtype=torch.bool)
    keep[..., : size // 2] = True
    every = Cond(embeds(2), Text.of(["a cat", "two dogs"]), LABELS, (0.5 * random(2, 3, size, size).tanh(), keep))
    return Cond(**{name: getattr(every, name) for name in takes})


def decoder(conditions: Conditions, **changes) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sampling = Sampling(sampler="ddim", steps=3, guidance=2.0, threshold="static")
        model = Decoder(DecoderConfig(image_size=8, unet=UNET, conditions=conditions, sampling=sampling, **changes)).eval()
        disturb(model, 0.3)
    return model


@pytest.mark.parametrize("name", TRY)
def test_decoder_of_any_conditions_trains_samples_and_comes_back_from_disk(name, tmp_path):
    config, takes = TRY[name]
    model, cond = decoder(config), given(takes)
    assert model.takes == takes and DecoderConfig.from_json(model.config.to_json()) == model.config
    losses = model.train().loss(pictures(2), cond, noise=NOISE)
    losses.total.sum().backward()
    assert losses.total.shape == (2,) and losses.total.isfinite().all()
    out = model.eval().sample(cond, noise=NOISE)
    assert out.shape == (2, 3, 8, 8) and out.isfinite().all()
    model.save_pretrained(tmp_path / "decoder")
    assert torch.equal(Decoder.from_pretrained(tmp_path / "decoder").sample(cond, noise=NOISE), out)
    for field in takes:  # each counts, and its absence is the null
        assert not torch.allclose(model.sample(cond._replace(**{field: None}), noise=NOISE), out, atol=1e-3), field


def test_gradient_reaches_every_weight_of_every_condition():
    config = Conditions(
        image_embed=ImageEmbedding(embed_dim=EMBED, drop=0.5), text=GLIDE, label=Label(classes=3, drop=0.5), known=Known()
    )
    model, n = decoder(config), 12
    keep = torch.ones(n, 1, 8, 8, dtype=torch.bool)
    cond = Cond(embeds(n), Text.of(["a cat on a red mat by the old house", ""] * 6), torch.arange(n) % 3, (pictures(n), keep))
    model.loss(pictures(n), cond, noise=Noise.of(1, range(n))).total.mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_guidance_leads_from_the_null_towards_the_condition_and_negative_takes_its_place():
    model, cond = decoder(TRY["label"][0]), given(("label",))
    guided = model.config.sampling
    null = model.sample(Cond(), noise=NOISE, sampling=guided.replace(guidance=1.0))
    assert torch.allclose(model.sample(cond, noise=NOISE, sampling=guided.replace(guidance=0.0)), null, atol=1e-6)
    assert torch.equal(model.sample(cond, noise=NOISE, negative=Cond()), model.sample(cond, noise=NOISE))
    away = model.sample(cond, noise=NOISE, negative=Cond(label=torch.tensor([1, 1])))
    assert not torch.allclose(away, model.sample(cond, noise=NOISE), atol=1e-3)
    unguided = model.sample(cond, noise=NOISE, sampling=guided.replace(guidance=1.0))
    assert torch.allclose(model.sample(cond, noise=NOISE, negative=cond), unguided, atol=1e-4)  # from itself to itself


@torch.no_grad()
def test_known_pixels_are_known_to_both_sides_of_guidance():
    model = decoder(TRY["embedding and known"][0])
    cond = given(("image_embed", "known"))
    encoded: list[Cond] = []
    encode = model.network.encode
    model.network.encode = lambda cond, count, drops=None: encoded.append(cond) or encode(cond, count, drops)  # type: ignore[method-assign]
    model.sample(cond, noise=NOISE)
    assert encoded[1].image_embed is None and encoded[1].known is cond.known
    channels = model.network.encode(cond, 2).channels
    images, keep = cond.known
    assert torch.equal(channels, torch.cat([images * keep, keep.float()], 1))  # GLIDE's order: picture, then mask


@torch.no_grad()
def test_wrap_is_applied_to_the_finished_denoiser():
    model, cond, seen = decoder(TRY["label"][0]), given(("label",)), []

    def wrap(denoise):
        return lambda x, t: seen.append(int(t[0])) or denoise(x, t)

    assert torch.equal(model.sample(cond, noise=NOISE, wrap=wrap), model.sample(cond, noise=NOISE))
    assert seen == list(model.resolve().steps[:-1]) and len(seen) == 3  # once a step, guided or not
    model.invert(pictures(2), cond, wrap=wrap)
    assert len(seen) > 3


def test_upsampler_with_text_attention_and_learned_variance(tmp_path):
    config = UpsamplerConfig(
        unet=UNetConfig(channels=32, depth=1, multiple=(1, 1), attention=(1,), head_channels=16),
        conditions=Conditions(text=GLIDE, known=Known()),
        variance="learned",
        resize="bilinear",
        corruption=CorruptionConfig(kind="none"),
        crop=1.0,
        crops_per_image=2,
        sampling=Sampling(sampler="ddpm", steps=3, variance="learned", guidance=2.0, threshold="static"),
    )
    assert (config.in_channels, config.out_channels) == (10, 6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Upsampler(config).eval()
        disturb(model, 0.3)
    cond, low = given(("text",)), pictures(2)
    losses = model.train().loss(0.5 * random(2, 3, 32, 32).tanh(), cond, noise=NOISE)
    assert losses.total.shape == (4,) and set(losses.terms) == {"mse", "vlb"}
    losses.total.sum().backward()
    known = given(("text", "known"), size=32)
    out = model.eval().sample(low, known, noise=NOISE)
    assert out.shape == (2, 3, 32, 32) and not torch.allclose(out, model.sample(low, cond, noise=NOISE), atol=1e-3)
    assert not torch.allclose(out, model.sample(low, known._replace(text=Text.of(["a tree", "a hat"])), noise=NOISE), atol=1e-3)
    model.save_pretrained(tmp_path / "upsampler")
    assert torch.equal(Upsampler.from_pretrained(tmp_path / "upsampler").sample(low, known, noise=NOISE), out)
    with pytest.raises(ValueError, match="loss_pairs"):
        model.loss(0.5 * random(2, 3, 32, 32).tanh(), known, noise=NOISE)
    with pytest.raises(ValueError, match="'small' or 'large' or 'learned'|small or large or learned"):
        model.sample(low, cond, noise=NOISE, sampling=Sampling(sampler="ddpm", variance="analytic"))


def test_decoder_task_reads_labels_and_captions_where_the_decoder_takes_them():
    images = pictures(2)
    task = DecoderTask(decoder(TRY["label and caption"][0]))
    batch = Batch(keys=["a", "b"], images=images, captions=["a cat", "two dogs"], labels=LABELS)
    rows = task.validate(batch, NOISE)
    assert {"change_label", "change_text", "error", "error/other"} <= set(rows)
    assert task(batch, NOISE).total.isfinite().all()
    for lacking in ({"labels": None}, {"captions": None}):
        with pytest.raises(ValueError, match=next(iter(lacking))):
            task(batch._replace(**lacking), NOISE)


@torch.no_grad()
def test_own_tokenizer_reads_the_strings_whatever_came_with_them():
    model, cond = decoder(TRY["caption"][0]), given(("text",))
    read = texts((3, 5), strings=cond.text.strings)
    assert torch.equal(model.sample(cond, noise=NOISE), model.sample(Cond(text=read), noise=NOISE))
    other = Cond(text=Text.of(["a cat", "two cats"]))
    assert not torch.allclose(model.sample(cond, noise=NOISE)[1], model.sample(other, noise=NOISE)[1], atol=1e-3)
    without = decoder(Conditions(text=TOKENS, width=24))
    with pytest.raises(ValueError, match="these captions have no tokens"):
        without.sample(cond, noise=NOISE)


@torch.no_grad()
def test_direct_states_reach_attention_unprojected():
    model = decoder(TRY["caption"][0])
    caption = model.network.conditions.text
    assert model.network.unet.context_width == 16 and isinstance(caption.to_states, torch.nn.Identity)
    assert not any("to_states" in name for name, _ in model.named_parameters())


@torch.no_grad()
def test_given_null_of_an_embedding_is_asked_for_and_kept(tmp_path):
    model = decoder(conditions(null="given", norm=True))
    with pytest.raises(ValueError, match="set_null_image"):
        model.sample(Cond(), noise=NOISE)
    model.set_null_image(embeds(1, seed=8))
    assert torch.allclose(
        model.sample(Cond(), noise=NOISE), model.sample(Cond(embeds(1, seed=8).expand(2, -1)), noise=NOISE), atol=1e-5
    )
    model.save_pretrained(tmp_path / "decoder")
    again = Decoder.from_pretrained(tmp_path / "decoder")
    assert torch.equal(again.sample(Cond(), noise=NOISE), model.sample(Cond(), noise=NOISE))


def test_shares_are_summed_and_joined():
    a = Share(torch.ones(1, 2), torch.ones(1, 3, 4), torch.ones(1, 3, dtype=torch.bool), None)
    b = Share(torch.ones(1, 2), None, None, torch.zeros(1, 4, 2, 2))
    both = a.join(b).join(Share(tokens=torch.zeros(1, 2, 4), mask=torch.zeros(1, 2, dtype=torch.bool)))
    assert torch.equal(both.emb, 2 * torch.ones(1, 2)) and both.channels.shape == (1, 4, 2, 2)
    assert both.tokens.shape == (1, 5, 4) and both.mask.tolist() == [[True] * 3 + [False] * 2]
    assert Share().join(Share()) == Share()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Conditions(text=TOKENS), "width is missing"),
        (lambda: Conditions(text=GLIDE, width=24), "text states are read directly and are 16 wide"),
        (lambda: Conditions(label=Label(classes=2), width=24), "neither an embedding nor a text gives tokens"),
        (lambda: Conditions(image_embed=ImageEmbedding(embed_dim=4), width=0), "width is 0"),
        (lambda: ImageEmbedding(embed_dim=0), "image_embed: embed_dim is 0"),
        (lambda: ImageEmbedding(embed_dim=4, drop=1.5), "image_embed.drop is a probability, not 1.5"),
        (lambda: Label(classes=2, names=("a",)), "2 classes but 1 names"),
        (lambda: Label(classes=2, names=("a", "a")), "two classes have the same name"),
        (lambda: Caption(kind="clip_states", states_width=4, embed_dim=4, tokenizer="clip"), "tokenizer is 'clip'"),
        (lambda: Caption(kind="tokens", transformer=TOKENS.transformer, context=0), "context is 0"),
        (lambda: Known(drop=-0.1), "known.drop is a probability"),
    ],
)
def test_conditions_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_condition_of_another_shape_or_kind_is_refused():
    encoder = ConditionEncoder(Conditions(label=Label(classes=3, drop=0.0), known=Known()), 8, "decoder")
    size = (8, 8)
    for cond, message in (
        (Cond(label=torch.tensor([0, 3])), r"labels \[3\] were given; the classes are 0 to 2"),
        (Cond(label=torch.tensor([0.0, 1.0])), "whole numbers as labels"),
        (Cond(label=torch.tensor([0])), "2 pictures need as many"),
        (Cond(), "have no null"),
        (Cond(label=LABELS, known=(torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 4, 4).bool())), r"shapes \(2, 3, 8, 8\)"),
        (Cond(image_embed=embeds(2)), "not built for the condition 'image_embed'; it takes label, known"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder(cond, 2, size)


def test_configs_are_strict_json():
    with pytest.raises(ValueError, match=r"`classes`.*\$\.conditions\.label|conditions"):
        DecoderConfig.from_json(b'{"unet": {"channels": 32}, "conditions": {"label": {"classes": "many"}}}')
    tree = msgspec.to_builtins(TRY["caption"][0])
    assert msgspec.convert(tree, Conditions) == TRY["caption"][0]

"""The AR prior: caching, sampling and training, against uncached sampling and data whose distribution is known."""

import math
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

import unclip
from experiments.recipes import emoji, paper
from prior import ARNetworkConfig, ARPrior, ARPriorConfig, ARSampling, DiffusionPrior, PriorTask, QuantizerConfig
from prior.ar_prior import draw
from unclip.checkpoint import load_component
from unclip.nn.transformer import TransformerConfig
from unclip.pipelines.unclip import UnCLIP
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.types import Batch, Prior, Text

SMALL = TransformerConfig(width=32, layers=2, heads=4)
CONFIG = ARPriorConfig(
    network=ARNetworkConfig(transformer=SMALL, embed_dim=8, context=6, states_width=12),
    quantizer=QuantizerConfig(dims=5, buckets=16),
)
OWN_TEXT = CONFIG.network.replace(
    text="tokens", vocab=20, states_width=None, text_transformer=TransformerConfig(width=16, layers=1, heads=2)
)


def make(fit=True, **changes):
    """A prior of which no weight is zero, so that every input has its effect."""
    torch.manual_seed(0)
    prior = ARPrior(CONFIG.replace(**changes)).eval()
    with torch.no_grad():
        for p in prior.parameters():
            p.add_(0.1 * torch.randn_like(p))
    if fit:
        prior.fit(embeds(200), make_text(200).embed)
    return prior


def embeds(n, seed=0):
    return 3 * torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)) + 1


def make_text(b, strings=None):
    generator = torch.Generator().manual_seed(1)
    return Text(
        strings or [f"caption {i}" for i in range(b)],
        torch.randint(20, (b, 6), generator=generator),
        torch.randn(b, 8, generator=generator),
        torch.randn(b, 6, 12, generator=generator),
        torch.arange(6) < 2 + torch.arange(b)[:, None] % 4,
    )


def count_passes(prior):
    """(rows, symbols) of every call of the network from here on."""
    calls = []
    prior.network.register_forward_hook(lambda module, args, output: calls.append(tuple(args[0].shape)))
    return calls


def train(prior, image_embed, text, steps, lr=3e-3):
    """Loss before and after."""
    task, b = PriorTask(prior.train()), len(image_embed)
    optimizer = torch.optim.Adam(prior.parameters(), lr=lr)
    history = []
    for step in range(steps):
        batch = Batch(keys=[str(i) for i in range(b)], image_embed=image_embed, text=text)
        loss = task(batch, Noise.of(step, range(b))).total.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    prior.eval()
    return history[0], sum(history[-10:]) / 10


def test_keeps_the_contract():
    assert isinstance(make(), Prior)


# The network


@torch.no_grad()
@pytest.mark.parametrize("network", [CONFIG.network, OWN_TEXT], ids=["clip_states", "tokens"])
def test_cached_equals_uncached(network):
    prior, text = make(network=network), make_text(3)
    symbols = torch.randint(16, (6, 6), generator=torch.Generator().manual_seed(2))
    prompt = prior._prompt(text)
    whole, _ = prior.network(symbols[:, :-1], prior._prompt(text.repeat(2)))
    assert whole.shape == (6, 6, 16)
    logits, prefix = prior.network(torch.zeros(3, 0, dtype=torch.int64), prompt)
    pieces, drawn = [logits.repeat_interleave(2, 0)], None
    for part in (symbols[:, :1], symbols[:, 1:2], symbols[:, 2:4], symbols[:, 4:5]):
        logits, drawn = prior.network(part, prefix, drawn)
        pieces.append(logits)
    assert (torch.cat(pieces, dim=1) - whole).abs().max() < 1e-5
    assert drawn.layers[0].k.shape[2] == 5
    # Nobody sees what comes after.
    other = symbols.clone()
    other[:, 3] = (other[:, 3] + 1) % 16
    changed, _ = prior.network(other[:, :-1], prior._prompt(text.repeat(2)))
    assert torch.equal(changed[:, :4], whole[:, :4]) and not torch.allclose(changed[:, 4:], whole[:, 4:])


@torch.no_grad()
@pytest.mark.parametrize("network", [CONFIG.network, OWN_TEXT], ids=["clip_states", "tokens"])
def test_padding_is_invisible_and_the_caption_is_not(network):
    prior, text = make(network=network), make_text(4)
    symbols = torch.zeros(4, 2, dtype=torch.int64)

    def logits(text):
        return prior.network(symbols[: len(text.mask)], prior._prompt(text))[0]

    plain = logits(text)
    junk = text._replace(
        tokens=torch.where(text.mask, text.tokens, 7), states=torch.where(text.mask[..., None], text.states, 9.0)
    )
    assert torch.allclose(plain, logits(junk), atol=1e-5)
    assert torch.allclose(plain[:1], logits(text.rows(slice(0, 1))), atol=1e-5)  # cut after its own longest caption
    for changes in ({"tokens": (text.tokens + 1) % 20, "states": text.states + 0.5}, {"embed": -text.embed}):
        assert not torch.allclose(plain, logits(text._replace(**changes)), atol=1e-3)


# Training


def test_loss_is_the_cross_entropy_of_the_symbols():
    prior, text, raw = make(text_drop=0.0), make_text(4), embeds(4, seed=3)
    symbols = prior.symbols(raw, text.embed)
    assert symbols.shape == (4, 6)
    cosine = torch.cosine_similarity(raw, text.embed)
    assert torch.equal(symbols[:, :1], prior.dot.encode(cosine[:, None]))
    logits, _ = prior.network(symbols[:, :-1], prior._prompt(text))
    log_p = logits.log_softmax(-1).gather(2, symbols[..., None])[..., 0]
    losses = prior.loss(raw, text, noise=Noise.of(0, range(4)))
    assert torch.allclose(losses.total, -log_p.mean(1), atol=1e-5)
    assert torch.allclose(losses.terms["dot"], -log_p[:, 0], atol=1e-5)
    assert torch.allclose(losses.terms["first"], -log_p[:, 1:].mean(1), atol=1e-5)
    assert torch.allclose(losses.terms["accuracy"], (logits.argmax(-1) == symbols).float().mean(1))
    assert losses.t is None
    with torch.no_grad():
        for p in (prior.network.out.weight, prior.network.frequencies):
            p.zero_()
    even = prior.loss(raw, text, noise=Noise.of(0, range(4)))
    assert torch.allclose(even.total, torch.full((4,), math.log(16)))


@pytest.mark.parametrize("network", [CONFIG.network, OWN_TEXT], ids=["clip_states", "tokens"])
def test_every_parameter_learns(network):
    prior = make(network=network, text_drop=0.5)
    prior.loss(embeds(16), make_text(16), noise=Noise.of(0, range(16))).total.sum().backward()
    assert [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_loss_drops_captions_by_the_stream():
    text, raw, noise = make_text(64), embeds(64), Noise.of(3, range(64))
    never, always, some = make(text_drop=0.0), make(text_drop=1.0), make(text_drop=0.1)
    kept, dropped = (p.loss(raw, text, noise=noise).total for p in (never, always))
    mixed = some.loss(raw, text, noise=noise).total
    is_null = torch.isclose(mixed, dropped) & ~torch.isclose(mixed, kept)
    assert 1 <= is_null.sum() <= 16
    assert (torch.isclose(mixed, kept) | is_null).all()
    blank = never.loss(raw, text._replace(strings=[" "] * 64), noise=noise).total
    assert torch.allclose(blank, dropped)  # a blank caption is the null
    # A sample's loss does not depend on its neighbours.
    part = some.loss(raw[10:20], text.rows(slice(10, 20)), noise=noise[10:20])
    assert torch.allclose(part.total, mixed[10:20], atol=1e-5)


def test_a_broken_embedding_is_a_broken_loss():
    raw = embeds(3)
    raw[1, 2] = float("nan")
    total = make().loss(raw, make_text(3), noise=Noise.of(0, range(3))).total
    assert total.isnan().tolist() == [False, True, False]


def test_an_untrained_prior_draws_symbols_as_often_as_they_are_met():
    prior = ARPrior(CONFIG).eval()
    raw, text = embeds(3000), make_text(3000)
    prior.fit(raw, text.embed)
    symbols = prior.symbols(raw, text.embed)
    met = torch.stack([column.bincount(minlength=16) for column in symbols.T]) / 3000
    assert torch.allclose(prior.network.frequencies.exp(), met, atol=2e-3)
    with torch.no_grad():
        prior.network.out.weight.zero_()
    logits, _ = prior.network(symbols[:8, :-1], prior._prompt(text.rows(slice(0, 8))))
    assert torch.allclose(logits.softmax(-1), met.expand(8, 6, 16), atol=2e-3)
    # Many buckets hold little each: what is met counts for its neighbours too, and nothing is impossible.
    fine = ARPrior(CONFIG.replace(quantizer=QuantizerConfig(dims=5, buckets=1024)))
    fine.fit(raw[:200], text.embed[:200])
    frequencies = fine.network.frequencies.exp()
    assert (frequencies > 0).all() and torch.allclose(frequencies.sum(1), torch.ones(6))
    assert (frequencies.diff(dim=1).abs().amax(1) < 0.1 * frequencies.amax(1)).all()


def test_symbols_start_as_places_in_a_range():
    network = ARPrior(CONFIG.replace(quantizer=QuantizerConfig(dims=5, buckets=256))).network
    for table in (network.symbols.weight, network.out.weight):
        alike = torch.cosine_similarity(table[:, None], table, dim=-1)
        assert (alike.diagonal(1)[:236] > alike.diagonal(20)).all() and (alike.diagonal(1) > 0.5).all()


def test_draws_have_the_distribution_that_was_learnt():
    """Two embeddings for each of two captions, three times as often the one as the other."""
    torch.manual_seed(0)
    prior = ARPrior(CONFIG.replace(text_drop=0.0, quantizer=QuantizerConfig(dims=3, buckets=64)))
    points, text = embeds(4, seed=7), make_text(2)
    often = torch.tensor([0, 0, 0, 1, 2, 2, 2, 3])
    raw, captions = points[often].repeat(4, 1), text.repeat(4)
    captions = Text(captions.strings * 4, *(x.repeat(4, *[1] * (x.ndim - 1)) for x in captions[1:]))
    prior.fit(raw, captions.embed)
    before, after = train(prior, raw, captions, 150)
    # What is left is the entropy of the choice, which one symbol settles; 3 components and the dot product are predicted.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / 4
    assert before > 2 and after == pytest.approx(entropy, abs=0.05)
    drawn = prior.sample(text, noise=Noise.of(0, range(2)), n=400, sampling=ARSampling(percentile=0.0))
    assert torch.allclose(drawn.norm(dim=-1), raw.norm(dim=-1).mean().expand(2, 400), rtol=1e-4)
    cosine = torch.cosine_similarity(drawn[:, :, None], points, dim=-1)
    nearest = cosine.argmax(-1)
    assert (cosine.amax(-1) > 0.98).float().mean() > 0.97  # 3 components of 4 points hold all of them, up to buckets
    for row in (0, 1):
        share = [float((nearest[row] == point).float().mean()) for point in range(4)]
        assert share[2 * row] == pytest.approx(0.75, abs=0.09) and share[2 * row + 1] == pytest.approx(0.25, abs=0.09)
    # The upper half of the dot product, and the most probable symbols: the nearer, respectively the more frequent one.
    certain = prior.sample(text, noise=Noise.of(1, range(2)), n=2, sampling=ARSampling(temperature=0.0))
    assert torch.equal(torch.cosine_similarity(certain[:, :, None], points, dim=-1).argmax(-1), torch.tensor([[0, 0], [2, 2]]))
    own = torch.cosine_similarity(points.view(2, 2, 8), text.embed[:, None], dim=-1)
    rows = torch.arange(2)
    upper = prior.sample(text, noise=Noise.of(2, range(2)), n=200, sampling=ARSampling(percentile=80.0))
    nearest = torch.cosine_similarity(upper[:, :, None], points, dim=-1).argmax(-1)
    assert ((nearest == (own.argmax(1) + 2 * rows)[:, None]).float().mean(1) > 0.95).all()


# Sampling


def uncached(prior, text, noise, sampling):
    """One draw per caption, by the whole sequence every time, captions and nulls apart."""
    numbers = noise.repeat(1).at("symbols").uniform((prior.length,))
    numbers[:, 0] = sampling.percentile / 100 + (1 - sampling.percentile / 100) * numbers[:, 0]
    symbols = torch.zeros(len(numbers), 0, dtype=torch.int64)
    drop = torch.ones(len(numbers), dtype=torch.bool)
    for i in range(prior.length):
        given = prior.network(symbols, prior._prompt(text))[0][:, -1]
        null = prior.network(symbols, prior._prompt(text, drop))[0][:, -1]
        logits = null + sampling.guidance * (given - null)
        symbols = torch.cat([symbols, draw(logits, numbers[:, i], sampling.temperature, sampling.top_p)[:, None]], dim=1)
    return prior.scaling.unscale(prior.quantizer.decode(symbols[:, 1:]))


@torch.no_grad()
@pytest.mark.parametrize(
    "sampling", [ARSampling(), ARSampling(guidance=3.0, temperature=0.7, top_p=0.8, percentile=20.0), ARSampling(guidance=0.0)]
)
def test_sampling_equals_uncached_sampling(sampling):
    prior, text, noise = make(), make_text(5), Noise.of(4, range(5))
    drawn = prior.sample(text, noise=noise, sampling=sampling)
    assert drawn.shape == (5, 1, 8)
    assert torch.allclose(drawn[:, 0], uncached(prior, text, noise, sampling), atol=1e-5)


def test_passes():
    """The prompts once, with one null for all captions; then a symbol at a time, captions and nulls together."""
    prior, text, noise = make(), make_text(3), Noise.of(0, range(3))
    calls = count_passes(prior)
    prior.sample(text, noise=noise, n=2)
    assert calls == [(3, 0)] + [(6, 1)] * 5
    calls.clear()
    prior.sample(text, noise=noise, n=2, sampling=ARSampling(guidance=2.0))
    assert calls == [(4, 0)] + [(12, 1)] * 5 and len(calls) == prior.length


def test_guidance_zero_is_the_null_and_more_goes_away_from_it():
    prior, text, noise = make(), make_text(3), Noise.of(0, range(3))
    plain = prior.sample(text, noise=noise, n=4)
    null = prior.sample(text, noise=noise, n=4, sampling=ARSampling(guidance=0.0))
    blank = prior.sample(text._replace(strings=["", " ", ""]), noise=noise, n=4)
    assert torch.allclose(null, blank, atol=1e-5) and not torch.allclose(null, plain, atol=1e-2)
    assert not torch.allclose(plain, prior.sample(text, noise=noise, n=4, sampling=ARSampling(guidance=4.0)), atol=1e-2)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_same_seed_same_sample_whatever_the_batch(guidance):
    prior, text, sampling = make(), make_text(5), ARSampling(guidance=guidance)
    whole = prior.sample(text, noise=Noise.of(7, range(5)), n=3, sampling=sampling)
    assert torch.equal(whole, prior.sample(text, noise=Noise.of(7, range(5)), n=3, sampling=sampling))
    alone = prior.sample(text.rows(slice(2, 3)), noise=Noise.of(7, 2), n=3, sampling=sampling)
    assert torch.allclose(alone, whole[2:3], atol=1e-5)
    fewer = prior.sample(text, noise=Noise.of(7, range(5)), n=1, sampling=sampling)
    assert torch.allclose(fewer, whole[:, :1], atol=1e-5)
    other = prior.sample(text, noise=Noise.of(8, range(5)), n=3, sampling=sampling)
    assert not torch.allclose(other, whole, atol=1e-2)
    assert not torch.allclose(whole[:, 0], whole[:, 1], atol=1e-2)


def test_draw_follows_the_probabilities():
    logits = torch.tensor([0.5, 2.0, -1.0, 0.0, -30.0])
    numbers = (torch.arange(20000) + 0.5) / 20000
    for temperature in (0.5, 1.0, 2.0):
        drawn = draw(logits.expand(20000, 5), numbers, temperature, 1.0).bincount(minlength=5) / 20000
        assert torch.allclose(drawn, (logits / temperature).softmax(0), atol=2e-4)
    assert (draw(logits.expand(9, 5), numbers[::2500][:9].repeat(2)[:9], 0.0, 1.0) == 1).all()
    assert (draw(logits.expand(20000, 5), numbers, 1e-3, 1.0) == 1).all()  # the limit of low temperatures


def test_top_p_keeps_the_most_probable():
    p = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])
    numbers = (torch.arange(4000) + 0.5) / 4000
    for top_p, kept in ((0.3, [1]), (0.4001, [1, 3]), (0.7, [1, 3, 4]), (0.96, [0, 1, 2, 3, 4])):
        drawn = draw(p.log().expand(4000, 5), numbers, 1.0, top_p).bincount(minlength=5) / 4000
        expected = torch.zeros(5)
        expected[kept] = p[kept] / p[kept].sum()
        assert torch.allclose(drawn, expected, atol=1e-3)


def test_the_largest_number_draws_nothing_impossible():
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    logits[:, 900:] = float("-inf")
    below_one = torch.full((64,), 1 - 2.0**-24)
    assert (draw(logits, below_one, 1.0, 1.0) < 900).all()
    nucleus = draw(logits, below_one, 1.0, 0.5)
    assert (logits.gather(1, nucleus[:, None])[:, 0] > logits[:, :900].median(1).values).all()
    assert (draw(logits, torch.zeros(64), 1.0, 1.0) == 0).all()


@torch.no_grad()
def test_the_dot_product_is_drawn_from_above_the_percentile(monkeypatch):
    prior, text = make(), make_text(1)
    prior.network.out.weight.zero_()
    prior.network.frequencies.zero_()
    prior.network.frequencies[0, :8] = torch.tensor([1, 1, 2, 2, 1, 2, 0.5, 0.5]).log()  # of 10 with the rest
    prior.network.frequencies[0, 8:] = float("-inf")
    drawn = []
    decode = prior.quantizer.decode
    inner = prior.network._embed
    monkeypatch.setattr(prior.network, "_embed", lambda s, first: drawn.append((first, s)) or inner(s, first))
    monkeypatch.setattr(prior.quantizer, "decode", lambda s: drawn.append(("rest", s)) or decode(s))

    def shares(percentile):
        drawn.clear()
        prior.sample(text, noise=Noise.of(0), n=4000, sampling=ARSampling(percentile=percentile))
        (dots,) = (s for first, s in drawn if first == 1 and s.shape[1] == 1)
        (rest,) = (s for first, s in drawn if first == "rest")
        assert ((rest.flatten().bincount(minlength=16) / rest.numel() - 1 / 16).abs() < 0.01).all()  # all of theirs
        return dots.flatten().bincount(minlength=8) / 4000

    everything = torch.tensor([1, 1, 2, 2, 1, 2, 0.5, 0.5]) / 10
    assert torch.allclose(shares(0.0), everything, atol=0.025)
    assert torch.allclose(shares(50.0), torch.tensor([0, 0, 0, 1, 1, 2, 0.5, 0.5]) / 5, atol=0.03)
    assert torch.allclose(shares(95.0), torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 1]), atol=0)


def test_settings():
    prior, text, noise = make(sampling=ARSampling(temperature=0.5)), make_text(2), Noise.of(0, range(2))

    def sample(sampling):
        return prior.sample(text, noise=noise, n=4, sampling=sampling)

    own = sample(None)
    assert torch.equal(own, sample(ARSampling(temperature=0.5))) and not torch.equal(own, sample(ARSampling()))
    # Settings for diffusion may ask for guidance; whatever else they ask for is not there.
    assert torch.equal(sample(Sampling(guidance=3.0)), sample(ARSampling(temperature=0.5, guidance=3.0)))
    with pytest.raises(ValueError, match=r"no sampler, steps: .*ARSampling\(guidance, temperature"):
        sample(Sampling(sampler="ddpm", steps=3, guidance=3.0))
    for wrong in ({"guidance": -1.0}, {"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}, {"percentile": 100.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ARSampling(**wrong)


def test_half_precision_autocast():
    prior, text, noise = make(), make_text(4), Noise.of(0, range(4))
    exact = prior.loss(embeds(4), text, noise=noise).total
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(prior.loss(embeds(4), text, noise=noise).total, exact, atol=0.1)
        drawn = prior.sample(text, noise=noise, sampling=ARSampling(guidance=2.0))
    assert drawn.dtype == torch.float32 and torch.isfinite(drawn).all()


# As a part


@pytest.mark.parametrize("network", [CONFIG.network, OWN_TEXT], ids=["clip_states", "tokens"])
def test_saved_and_loaded(tmp_path, network):
    prior, text, noise = make(network=network), make_text(3), Noise.of(0, range(3))
    prior.save_pretrained(tmp_path / "prior")
    again = ARPrior.from_pretrained(tmp_path / "prior")
    assert again.config == prior.config
    assert all(torch.equal(a, b) for a, b in zip(prior.state_dict().values(), again.state_dict().values(), strict=True))
    assert torch.equal(prior.sample(text, noise=noise, n=2), again.sample(text, noise=noise, n=2))
    prior.save_pretrained(tmp_path / "half", torch.float16)
    half = load_component(tmp_path / "half", ARPrior, torch.bfloat16)
    drawn = half.sample(text, noise=noise, sampling=ARSampling(guidance=2.0))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and drawn.dtype == torch.float32
    assert torch.equal(half.symbols(embeds(9), make_text(9).embed), prior.symbols(embeds(9), make_text(9).embed))


def test_in_a_pipeline(tmp_path):
    clip = tiny.clip()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        prior = ARPrior(
            ARPriorConfig(
                network=ARNetworkConfig(
                    transformer=TransformerConfig(width=16, layers=1, heads=2),
                    embed_dim=tiny.EMBED,
                    context=tiny.CONTEXT,
                    states_width=tiny.WIDTH,
                ),
                quantizer=QuantizerConfig(dims=4, buckets=8),
            )
        ).eval()
    text = clip.encode_text(tiny.CAPTIONS)
    prior.fit(torch.randn(20, tiny.EMBED, generator=torch.Generator().manual_seed(0)), text.embed.repeat(7, 1)[:20])
    pipe = tiny.pipeline(clip=clip, prior=prior, candidates=1)
    drawn = pipe.generate(tiny.CAPTIONS[:2], seed=3, size=16)
    pipe.save_pretrained(tmp_path / "pipe")
    again = UnCLIP.from_pretrained(tmp_path / "pipe")
    assert isinstance(again.prior, ARPrior)
    assert torch.equal(again.generate(tiny.CAPTIONS[:2], seed=3, size=16).images, drawn.images)


def test_components_by_share_of_the_variance():
    raw = embeds(300) * torch.tensor([4.0, 2, 1, 1, 0.1, 0.1, 0.1, 0.1])
    config = CONFIG.replace(embedding="raw", quantizer=QuantizerConfig(dims=0.99, buckets=16))
    resolved = config.resolve(raw)
    assert resolved == config.replace(quantizer=QuantizerConfig(dims=4, buckets=16))
    assert resolved.resolve(embeds(300)) is resolved  # a number is a number
    assert config.replace(embedding="unit").resolve(raw).quantizer.dims <= 8
    assert ARPriorConfig.from_json(config.to_json()) == config
    prior = ARPrior(resolved)
    prior.fit(raw, make_text(300).embed)
    assert prior.quantizer.explained()[3] > 0.99 > prior.quantizer.explained()[2]
    with pytest.raises(ValueError, match="resolve"):
        ARPrior(config)


@pytest.mark.parametrize("embedding", ["unit", "raw"])
def test_symbols_say_where_the_embedding_is(embedding):
    prior = make(fit=False, embedding=embedding, quantizer=QuantizerConfig(dims=8, buckets=1024))
    raw, text = embeds(200), make_text(200)
    prior.fit(raw, text.embed)
    back = prior.scaling.unscale(prior.quantizer.decode(prior.symbols(raw, text.embed)[:, 1:]))
    assert (torch.cosine_similarity(back, raw) > 0.9999).all()
    if embedding == "raw":
        assert torch.allclose(back, raw, atol=0.05)
    else:
        assert torch.allclose(back.norm(dim=1), raw.norm(dim=1).mean().expand(200), rtol=1e-4)


def test_what_cannot_be_done_is_refused():
    prior, text, noise = make(), make_text(3), Noise.of(0, range(3))
    with pytest.raises(ValueError, match="another CLIP"):
        prior.loss(torch.randn(3, 7), text, noise=noise)
    with pytest.raises(ValueError, match="3 captions need a noise stream each, got 2"):
        prior.sample(text, noise=noise[:2])
    with pytest.raises(ValueError, match="n is 0; it must be a whole number of at least 1"):
        prior.sample(text, noise=noise, n=0)
    with pytest.raises(ValueError, match="as many of their captions"):
        prior.fit(embeds(20), make_text(19).embed)
    with pytest.raises(ValueError, match="fit"):
        make(fit=False).loss(embeds(3), text, noise=noise)
    with pytest.raises(ValueError, match="fit"):
        make(fit=False).sample(text, noise=noise)
    for changes in ({"states": torch.randn(3, 6, 11)}, {"states": torch.randn(3, 7, 12)}, {"embed": torch.randn(3, 9)}):
        with pytest.raises(ValueError, match="positions|wide|dimensions"):
            prior.network.prompt(text._replace(**changes))
    with pytest.raises(ValueError, match="token 20"):
        make(network=OWN_TEXT).network.prompt(text._replace(tokens=text.tokens + (20 - text.tokens.max())))
    for wrong in ({"states_width": None}, {"text": "tokens"}, {"context": 0}):
        with pytest.raises(ValueError):
            CONFIG.network.replace(**wrong)
    with pytest.raises(ValueError, match="text_drop"):
        CONFIG.replace(text_drop=1.5)


# The recipes


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_emoji_recipes_of_both_priors_are_alike():
    recipe, network, other = emoji.ar_prior(), emoji.ar_prior().model.network, emoji.prior().model.network
    assert network.transformer == other.transformer.replace(layers=4)
    assert (network.text, network.context, network.states_width) == (other.text, other.context, other.states_width)
    equal = recipe.model.replace(
        network=network.replace(transformer=other.transformer), quantizer=recipe.model.quantizer.replace(dims=36)
    )
    with torch.device("meta"):
        ar, diffusion = ARPrior(equal), DiffusionPrior(emoji.prior().model)
    assert abs(count(ar) / count(diffusion) - 1) < 0.1  # as compare_priors.py trains them for its curves
    assert type(recipe).from_json(recipe.to_json()) == recipe


def test_the_shipped_weights_take_no_more_than_90_megabytes():
    folder = Path(unclip.__file__).parent / "assets" / "emoji"
    assert (folder / "ar_prior" / "model.safetensors").is_file()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 90e6


def test_the_paper_recipe_is_table_3():
    recipe = paper.ar_prior()
    model, train = recipe.model, recipe.train
    assert (train.weight_decay, train.batch, train.steps, train.lr) == (4.0e-2, 4096, 1_000_000, 1.6e-4)
    assert (train.betas, train.eps, train.ema) == ((0.9, 0.91), 1e-10, 0.999)
    text, latent = model.network.text_transformer, model.network.transformer
    assert (model.network.context, text.width, text.layers, text.heads) == (256, 2048, 24, 32)
    assert (latent.width, latent.layers, latent.heads) == (1664, 24, 26)
    assert (model.quantizer.dims, model.quantizer.buckets, model.sampling.percentile) == (319, 1024, 50.0)
    with torch.device("meta"):
        prior = ARPrior(model)
    blocks = {1664: prior.network.transformer, 2048: prior.network.text_transformer}
    for width, transformer in blocks.items():
        assert count(transformer) == 24 * (12 * width**2 + 13 * width) + 2 * width
    tables = 49408 * 2048 + 256 * 2048 + 2 * 1024 * 1664 + 320 * 1664
    between = (2048 + 1) * 1664 + (1024 + 1) * 1664 + 2 * 1664
    assert count(prior) == sum(map(count, blocks.values())) + tables + between
    assert prior.length + 1 <= 384  # z_t and the symbols, within the latent decoder's context

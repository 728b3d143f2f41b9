"""The prior's network: cached equals uncached, every field counts, nulls, the paper's size."""

import pytest
import torch

from prior.network import PriorNetwork, PriorNetworkConfig, Prompt
from unclip.nn.transformer import TransformerConfig
from unclip.trees import tree_map
from unclip.types import Text

CONFIG = PriorNetworkConfig(
    transformer=TransformerConfig(width=64, layers=4, heads=4), embed_dim=16, context=12, vocab=50, states_width=24
)


def make(**changes):
    torch.manual_seed(0)
    return PriorNetwork(CONFIG.replace(**changes)).eval()


def make_text(lengths=(5, 9, 3), context=12, strings=None):
    b, generator = len(lengths), torch.Generator().manual_seed(1)
    return Text(
        strings or [f"caption {i}" for i in range(b)],
        torch.randint(0, 50, (b, context), generator=generator),
        torch.randn(b, 16, generator=generator),
        torch.randn(b, context, 24, generator=generator),
        torch.arange(context) < torch.tensor(lengths)[:, None],
    )


@torch.no_grad()
@pytest.mark.parametrize("text", ["tokens", "clip_states"])
def test_cached_equals_uncached(text):
    network = make(text=text)
    prompt = network.prompt(make_text())
    cache = network.encode(prompt)
    for t in ([1, 500, 1000], [7, 7, 7]):
        x_t, t = torch.randn(3, 16), torch.tensor(t)
        whole, step = network(x_t, t, prompt), network(x_t, t, cache)
        assert (whole - step).abs().max() < 1e-5 * whole.square().mean().sqrt()


@torch.no_grad()
def test_candidates_share_the_prefix():
    network = make()
    prompt = network.prompt(make_text())
    x_t, t = torch.randn(6, 16), torch.tensor([3, 900, 5, 6, 7, 8])
    many = network(x_t, t, network.encode(prompt))
    single = network(x_t, t, tree_map(lambda x: x.repeat_interleave(2, 0), prompt))
    assert torch.allclose(many, single, atol=1e-5)


@torch.no_grad()
def test_padding_does_not_count():
    network, text = make(), make_text()
    x_t, t = torch.randn(3, 16), torch.tensor([10, 20, 30])
    expected = network(x_t, t, network.prompt(text))
    rubbish = text._replace(states=torch.where(text.mask[..., None], text.states, torch.full_like(text.states, 9.0)))
    assert torch.allclose(network(x_t, t, network.prompt(rubbish)), expected, atol=1e-6)
    alone = network(x_t[2:], t[2:], network.prompt(text.rows(slice(2, 3))))  # cut after 3 tokens instead of 9
    assert torch.allclose(alone, expected[2:], atol=1e-5)
    short = text._replace(states=text.states[:, :10], mask=text.mask[:, :10])
    assert torch.allclose(network(x_t, t, network.prompt(short)), expected, atol=1e-6)


@torch.no_grad()
def test_every_field_changes_the_output():
    network, text = make(), make_text()
    x_t, t = torch.randn(3, 16), torch.tensor([10, 20, 30])
    expected = network(x_t, t, network.prompt(text))

    def differs(x_t=x_t, t=t, **fields):
        return (network(x_t, t, network.prompt(text._replace(**fields))) - expected).abs().amax(1).min() > 1e-3

    assert differs(states=torch.randn_like(text.states))
    assert differs(states=text.states.flip(1).roll(1, 1))  # the order of tokens
    assert differs(embed=torch.randn_like(text.embed))
    assert differs(t=t + 100)
    assert differs(x_t=torch.randn(3, 16))
    assert differs(mask=torch.arange(12) < torch.tensor([[2], [2], [2]]))
    for parameter in (network.query, network.positions):
        kept = parameter.clone()
        parameter.copy_(torch.randn_like(parameter))
        assert differs()
        parameter.copy_(kept)
    network.positions.copy_(network.positions[[*range(12), 12, 14, 13, 15]])  # timestep and embedding swapped
    assert differs()


@torch.no_grad()
def test_dropped_and_blank_captions_are_the_null():
    network = make()
    text = make_text(strings=["a cat", " ", "a dog"])
    prompt = network.prompt(text, drop=torch.tensor([False, False, True]))
    null = network.null(prompt.mask.shape[1])
    assert isinstance(prompt, Prompt)
    for kept, absent in zip(prompt, null):
        assert torch.equal(kept[1:2], absent) and torch.equal(kept[2:], absent) and not torch.equal(kept[:1], absent)
    assert null.mask.sum() == 1
    x_t, t = torch.randn(3, 16), torch.tensor([5, 5, 5])
    assert torch.isfinite(network(x_t, t, prompt)).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["tokens", "clip_states"])
def test_null_can_be_the_empty_caption(kind):
    network, empty = make(null="empty", text=kind), make_text((4,), strings=[""])
    text = make_text((2, 3))
    with pytest.raises(ValueError, match="set_null"):
        network.prompt(text)
    network.set_null(empty)
    prompt = network.prompt(text, drop=torch.tensor([True, False]))
    as_caption = network.prompt(empty._replace(strings=["not blank"]))
    assert prompt.mask.shape[1] == 4  # long enough for the null
    for dropped, given in zip(prompt, as_caption):
        assert torch.equal(dropped[:1], given)
    with pytest.raises(ValueError, match="set_null takes"):
        make().set_null(empty)


def test_foreign_captions_are_refused():
    network, text = make(), make_text()
    for wrong, message in (
        (make_text(context=13), "13 positions"),
        (text._replace(states=torch.randn(3, 12, 25)), "25 wide"),
        (text._replace(embed=torch.randn(3, 17)), "17 dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            network.prompt(wrong)
    with pytest.raises(ValueError, match="vocabulary"):
        make(text="tokens", vocab=20).prompt(text)
    with pytest.raises(ValueError, match="states_width"):
        CONFIG.replace(states_width=None)


def test_first_timestep():
    one, zero = make(), make(first_timestep=0)
    prompt, x_t = one.prompt(make_text()), torch.randn(3, 16)
    t = torch.tensor([1, 50, 900])
    assert torch.equal(one(x_t, t, prompt), zero(x_t, t + 1, prompt))


def test_paper_size():
    """24 x 2048 is 1.21B in its blocks, which Table 3 calls 1B; byte pairs and projections come on top."""
    config = PriorNetworkConfig(
        transformer=TransformerConfig(width=2048, layers=24, heads=32), embed_dim=1024, text="tokens", context=256
    )
    with torch.device("meta"):
        network = PriorNetwork(config)
    blocks = sum(p.numel() for p in network.transformer.parameters())
    total = sum(p.numel() for p in network.parameters())
    assert blocks == 24 * (12 * 2048**2 + 13 * 2048) + 2 * 2048
    assert abs(blocks / 1e9 - 1.21) < 0.005
    assert total - blocks == 49408 * 2048 + 2 * (2048**2 + 2048) + 2 * 1025 * 2048 + 2049 * 1024 + 260 * 2048 + 3 * 2048
    assert abs(total / 1e9 - 1.33) < 0.005

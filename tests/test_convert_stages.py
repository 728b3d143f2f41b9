"""What public weights need of the stages: CLIP's empty caption as the decoder's null, another network in the last step."""

from __future__ import annotations

import pytest
import tiny
import torch

from decoder import Decoder
from unclip.conditions import Caption
from unclip.randomness import Noise
from unclip.types import Cond, Text
from upsamplers import Upsampler

EMPTY = Caption(kind="clip_states", context=tiny.CONTEXT, states_width=tiny.WIDTH, embed_dim=tiny.EMBED, null="empty")


def empty_decoder(text_drop: float = 0.5, image_drop: float = 0.1) -> Decoder:
    config = tiny.decoder().config
    image = config.conditions.image_embed.replace(drop=image_drop)
    conditions = config.conditions.replace(text=EMPTY.replace(drop=text_drop), image_embed=image)
    made: Decoder = tiny._build(Decoder, config.replace(conditions=conditions), 2)
    return made


def caption(string: str) -> Text:
    with torch.no_grad():
        return tiny.clip().encode_text([string])


@torch.no_grad()
def test_no_caption_is_the_empty_caption() -> None:
    decoder, noise = empty_decoder(), Noise.of(0, 0)
    embed = torch.randn(1, tiny.EMBED, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="which it was not given: set_null"):
        decoder.sample(Cond(embed), noise=noise)
    decoder.set_null(caption(""))
    absent = decoder.sample(Cond(embed), noise=noise)
    said = caption("a red heart")
    assert torch.allclose(absent, decoder.sample(Cond(embed, caption("")), noise=noise), atol=1e-6)
    assert torch.allclose(absent, decoder.sample(Cond(embed, said._replace(strings=[" "])), noise=noise), atol=1e-6)
    assert (absent - decoder.sample(Cond(embed, said), noise=noise)).abs().max() > 1e-3
    short = said._replace(states=said.states[:, :6], mask=said.mask[:, :6])  # what follows the caption is padding
    assert torch.allclose(
        decoder.sample(Cond(embed, short), noise=noise), decoder.sample(Cond(embed, said), noise=noise), atol=1e-6
    )


def test_every_parameter_of_such_a_decoder_learns() -> None:
    decoder = empty_decoder(text_drop=0.5, image_drop=0.5)
    decoder.set_null(caption(""))
    text = caption("a red heart").repeat(8)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    embed = torch.randn(8, tiny.EMBED, generator=torch.Generator().manual_seed(1))
    decoder.loss(images, Cond(embed, text), noise=Noise.of(0, range(8))).total.sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="null 'empty' is CLIP's empty caption"):
        Caption(kind="tokens", transformer=tiny.prior().config.network.transformer, null="empty")
    with pytest.raises(ValueError, match="reads no captions"):
        tiny.decoder(text=False).set_null(caption(""))
    with pytest.raises(ValueError, match="set_null takes one empty caption, for null 'empty'; got 1 and 'learned'"):
        tiny.decoder().set_null(caption(""))
    with pytest.raises(ValueError, match="got 2 and 'empty'"):
        empty_decoder().set_null(caption("").repeat(2))


def test_the_last_step_has_its_own_network() -> None:
    config = tiny.upsampler().config.replace(last_step="own", first_timestep=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        upsampler = Upsampler(config).eval()
    seen: list[str] = []
    upsampler.network.unet.register_forward_hook(lambda *_: seen.append("first"))
    upsampler.network.last_unet.register_forward_hook(lambda *_: seen.append("last"))  # type: ignore[union-attr]
    low = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    upsampler.sample(low, noise=Noise.of(0, 0), sampling=config.sampling.replace(steps=7))
    assert seen == ["first"] * 6 + ["last"]
    seen.clear()
    upsampler.sample(low, noise=Noise.of(0, 0), sampling=config.sampling.replace(steps=(900, 20, 0)))
    assert seen == ["first"] * 2  # it was trained for what is left at t = 1


def test_both_networks_learn_from_a_batch_of_mixed_timesteps() -> None:
    config = tiny.upsampler().config.replace(last_step="own")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Upsampler(config).network
        x, low = torch.randn(3, 3, 32, 32), torch.randn(3, 3, 8, 8)
    for parameter in network.parameters():
        parameter.data += 0.05
    t, encoded = torch.tensor([1, 500, 1]), network.encode(low)
    out = network(x, t, encoded)
    for row in range(3):
        alone = network(x[row : row + 1], t[row : row + 1], network.encode(low[row : row + 1]))
        assert torch.allclose(out[row : row + 1], alone, atol=1e-5)
    out.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []

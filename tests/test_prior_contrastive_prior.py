"""One-shot regression with contrast: the loss by hand, learning, saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn.functional import normalize

from prior import ContrastivePrior, ContrastivePriorConfig, PriorNetworkConfig, PriorTask
from prior.scaling import STD
from unclip.data.embeddings import Embeddings
from unclip.data.reader import Embedded
from unclip.nn.transformer import TransformerConfig
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.training import TrainConfig, train
from unclip.types import Text

CONFIG = ContrastivePriorConfig(
    network=PriorNetworkConfig(
        transformer=TransformerConfig(width=32, layers=2, heads=2),
        embed_dim=tiny.EMBED,
        context=tiny.CONTEXT,
        states_width=tiny.WIDTH,
    )
)


def images(n: int) -> Tensor:
    return torch.randn(n, tiny.EMBED, generator=torch.Generator().manual_seed(1)) + 0.3


@torch.no_grad()
def captions() -> Text:
    return tiny.clip().encode_text([*tiny.CAPTIONS, "a dog"])


def made(config: ContrastivePriorConfig = CONFIG) -> ContrastivePrior:
    prior = tiny._build(ContrastivePrior, config, 4)
    prior.fit(images(20))
    return prior


def test_the_loss_is_error_plus_contrast() -> None:
    text, z_i, noise = captions(), images(4), Noise.of(0, range(4))
    prior = made(CONFIG.replace(text_drop=0.0))
    losses = prior.loss(z_i, text, noise=noise)
    drawn = prior.sample(text, noise=noise)[:, 0]  # directions; the loss sees the network's own lengths
    scores = normalize(drawn, dim=-1) @ normalize(text.embed, dim=-1).T / CONFIG.temperature
    nats = -scores.log_softmax(1).diagonal()
    torch.testing.assert_close(losses.terms["contrast"], nats, atol=1e-4, rtol=1e-4)
    raw = prior._predict(text)
    error = (raw - prior.scaling.scale(z_i)).square().mean(1) / STD**2
    torch.testing.assert_close(losses.total, error + 0.2 * nats, atol=1e-4, rtol=1e-4)


def test_a_dropped_caption_has_no_contrast_and_no_influence() -> None:
    text, z_i, noise = captions(), images(4), Noise.of(0, range(4))
    losses = made(CONFIG.replace(text_drop=1.0)).loss(z_i, text, noise=noise)
    assert torch.equal(losses.terms["contrast"], torch.zeros(4))
    blank = tiny.clip().encode_text(["", " "])
    drawn = made().sample(blank, noise=Noise.of(0, range(2)))
    torch.testing.assert_close(drawn[0], drawn[1])
    mixed = made().loss(z_i[:2], tiny.clip().encode_text(["", "two dogs"]), noise=noise[:2])
    assert mixed.terms["contrast"][0] == 0 and mixed.terms["contrast"][1] > 0


def test_one_batch_is_learnt() -> None:
    text, z_i = captions(), images(4)
    prior = made(CONFIG.replace(text_drop=0.0)).train()
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3)
    for step in range(120):
        loss = prior.loss(z_i, text, noise=Noise.of(step, range(4))).terms["error"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = prior.eval().sample(text, noise=Noise.of(0, range(4)), n=3)
    assert drawn.shape == (4, 3, tiny.EMBED) and torch.equal(drawn[:, 0], drawn[:, 2])
    assert torch.cosine_similarity(drawn[:, 0], z_i, dim=-1).min() > 0.98
    torch.testing.assert_close(drawn.norm(dim=-1), images(20).norm(dim=1).mean().expand(4, 3), rtol=1e-4, atol=1e-4)


def test_saved_loaded_and_in_a_pipeline(tmp_path: Path) -> None:
    prior, text = made(), captions()
    prior.save_pretrained(tmp_path / "prior")
    again = ContrastivePrior.from_pretrained(tmp_path / "prior")
    assert again.config == prior.config
    assert torch.equal(*(p.sample(text, noise=Noise.of(0, range(4))) for p in (prior, again)))
    pipe = tiny.pipeline(prior=again)
    assert pipe.candidates == 1
    assert pipe.generate("two dogs", size=16).images.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("changes", [{"contrast": -1.0}, {"temperature": 0.0}, {"text_drop": 1.5}])
def test_bad_settings(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        CONFIG.replace(**changes)


def test_sampling_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="draws nothing"):
        made().sample(captions(), noise=Noise.of(0, range(4)), sampling=Sampling(guidance=3.0))


def test_a_batch_is_not_trained_in_pieces(tmp_path: Path) -> None:
    text, z_i = captions(), images(4)
    data = Embeddings([str(i) for i in range(4)], z_i, text)
    config = TrainConfig(steps=1, batch=4, lr=1e-3, micro_batch=2)
    with pytest.raises(ValueError, match="micro_batch is 2, but the loss of a ContrastivePrior"):
        train(PriorTask(made()), Embedded(data, "x"), config, tmp_path / "run")
    train(PriorTask(made()), Embedded(data, "x"), config.replace(micro_batch=None), tmp_path / "run")

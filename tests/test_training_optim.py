"""Learning rates, what is decayed, and the fused guarded update against plain torch."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from unclip.training import TrainConfig, optim
from unclip.training.optim import Stepper, gradient_norm, learning_rate, trainable

CONFIG = TrainConfig(steps=100, batch=8, lr=2.0, warmup=10, floor=0.1)
CPU = torch.device("cpu")


def test_learning_rates() -> None:
    cosine = [learning_rate(CONFIG, k) for k in range(100)]
    assert cosine[:10] == pytest.approx([0.2 * (k + 1) for k in range(10)])
    assert cosine[10] == 2.0 and cosine[99] == pytest.approx(0.2)
    assert cosine[55] == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi * 45 / 89)) / 2)
    assert all(a >= b for a, b in zip(cosine[10:], cosine[11:]))
    line = [learning_rate(CONFIG.replace(decay="linear"), k) for k in range(100)]
    assert line[99] == pytest.approx(0.2) and line[30] - line[31] == pytest.approx(line[80] - line[81])
    assert learning_rate(CONFIG.replace(decay="constant"), 99) == 2.0
    assert learning_rate(CONFIG.replace(warmup=0, steps=1), 0) == 2.0


def test_only_matrices_are_decayed() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "norm": nn.LayerNorm(4), "linear": nn.Linear(4, 4)})
    model["conv"] = nn.Conv2d(2, 3, 3)
    model.register_parameter("null", nn.Parameter(torch.zeros(1, 4)))
    decayed, free = Stepper(trainable(model), CONFIG, CPU).optimizer.param_groups
    assert {id(p) for p in decayed["params"]} == {id(model["linear"].weight), id(model["conv"].weight)}
    assert decayed["weight_decay"] == 0.01 and free["weight_decay"] == 0.0 and len(free["params"]) == 6
    with pytest.raises(ValueError, match="no trainable parameters"):
        trainable(model.requires_grad_(False))


@pytest.fixture(params=["cpu", "mps"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's fused kernel, and one that is as MPS's: it does not heed grad_scale and found_inf."""
    if request.param == "mps":
        step = torch.optim.AdamW.step

        def heedless(optimizer: torch.optim.AdamW) -> None:
            optimizer.grad_scale = optimizer.found_inf = None  # type: ignore[attr-defined]
            step(optimizer)

        monkeypatch.setattr(torch.optim.AdamW, "step", heedless)
        monkeypatch.setattr(optim, "GUARDED", ("cuda",), raising=False)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("float16", [False, True])
@pytest.mark.usefixtures("kernel")
def test_updates_equal_plain_torch(clip: float | None, float16: bool) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    theirs = copy.deepcopy(ours)
    config = CONFIG.replace(lr=0.1, clip=clip, precision="float16" if float16 else "float32")
    stepper = Stepper(trainable(ours), config, CPU)
    groups = [{"params": [m.weight for m in theirs], "weight_decay": 0.01}, {"params": [m.bias for m in theirs]}]
    reference = torch.optim.AdamW(groups, weight_decay=0.0, betas=config.betas, eps=config.eps, fused=False)
    for k in range(5):
        x = torch.randn(16, 6)
        (ours(x).square().mean() * stepper.scale).backward()
        norm = gradient_norm(stepper.weights) / stepper.scale
        stepper.step(norm, ~norm.isfinite(), lr=0.1 / (k + 1))
        theirs(x).square().mean().backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), clip or 1e9)
        torch.testing.assert_close(norm, expected)
        for group in reference.param_groups:
            group["lr"] = 0.1 / (k + 1)
        reference.step()
        reference.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("kernel")
def test_a_bad_gradient_moves_neither_weights_nor_moments_and_halves_the_scale() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    stepper = Stepper(trainable(model), CONFIG.replace(precision="float16"), CPU)
    model(torch.randn(4, 3)).sum().backward()
    stepper.step(torch.tensor(1.0), torch.tensor(False), lr=0.1)
    weights = copy.deepcopy(model.state_dict())
    moments = copy.deepcopy(stepper.optimizer.state_dict()["state"])
    model(torch.full((4, 3), math.inf)).sum().backward()
    norm = gradient_norm(stepper.weights)
    assert not norm.isfinite()
    stepper.step(norm, ~norm.isfinite(), lr=0.1)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    for index, state in stepper.optimizer.state_dict()["state"].items():
        assert all(torch.equal(tensor, moments[index][key]) for key, tensor in state.items())
    assert stepper.scale == 2.0**15 and stepper.good == 0
    with pytest.raises(ValueError, match="reached no parameter"):
        gradient_norm(stepper.weights)

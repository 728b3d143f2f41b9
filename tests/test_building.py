"""Modules and the tensors that belong in them: sketched, built without weights, compared and filled."""

from __future__ import annotations

import pytest
import tiny
import torch
from tensors import random
from torch import Tensor, nn

from decoder import Decoder
from unclip.building import build, compare, fill, sketch
from unclip.weights import Lazy


def test_a_sketch_has_the_tensors_of_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (tiny.clip(), tiny.prior(), tiny.decoder(), tiny.upsampler()):
        before = torch.get_rng_state()
        made = sketch(type(part), part.record(), torch.bfloat16)
        assert torch.equal(torch.get_rng_state(), before) and all(x.is_meta for x in made.state_dict().values())
        assert {n: x.shape for n, x in made.state_dict().items()} == {n: x.shape for n, x in part.state_dict().items()}
        built = {name: x.dtype for name, x in build(type(part), part.record(), torch.bfloat16).state_dict().items()}
        assert built == {name: x.dtype for name, x in made.state_dict().items()}


def test_a_sketch_takes_no_memory_whatever_the_sizes() -> None:
    config = tiny.decoder().config
    wide = config.unet.replace(channels=2**26)
    made = sketch(Decoder, config.replace(unet=wide))
    assert sum(x.numel() for x in made.state_dict().values()) > 1e16
    with pytest.raises(ValueError, match="the config describes no Decoder that can be built: "):
        sketch(Decoder, config.replace(unet=config.unet.replace(channels=2**60)))


def test_files_are_compared_before_they_are_read() -> None:
    def unread(dtype: torch.dtype) -> Tensor:
        raise AssertionError

    expected = {"a": random(2), "b": random(3), "n": torch.tensor([1])}
    compare(expected, {n: Lazy(tuple(x.shape), x.dtype, unread) for n, x in expected.items()}, "x")
    given = {"a": ((3,), torch.float16), "n": ((1,), torch.float32), "c\x1b": ((), torch.int8)}
    with pytest.raises(ValueError) as error:
        compare(expected, {name: Lazy(*one, unread) for name, one in given.items()}, "x")
    assert str(error.value) == (
        "x does not fit its config: 1 missing: b; 1 unexpected: c\\x1b; 1 of another shape: a (file (3,), config (2,)); "
        "1 of another type: n (file torch.float32, config torch.int64)"
    )


class Measured(nn.Module):
    """A weight, statistics that are NaN until they are measured, and one that is zero until then."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("later", torch.full((2,), float("nan")))
        self.register_buffer("mean", torch.zeros(2))


def test_statistics_may_be_nan_where_they_were_not_measured() -> None:
    nan, inf = float("nan"), float("inf")
    good = {"weight": torch.ones(2), "later": torch.tensor([1.0, nan]), "mean": torch.ones(2)}
    module = Measured()
    fill(module, good, "x")
    assert module.weight.equal(torch.ones(2)) and module.later[1].isnan()  # type: ignore[operator, index]
    for name, value in (("weight", nan), ("weight", inf), ("later", inf), ("later", -inf), ("mean", nan), ("mean", inf)):
        with pytest.raises(ValueError, match=f"^x holds NaN or infinite weights in {name}: "):
            fill(Measured(), {**good, name: torch.tensor([1.0, value])}, "x")

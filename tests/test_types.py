"""The values between the parts: captions, settings, trees."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unclip.checks import check_int, device_of, dtype_of
from unclip.contracts import accepts, keep_contract
from unclip.randomness import Noise, check_noise
from unclip.sampling import Inversion, Sampling
from unclip.training.task import Task, require
from unclip.trees import move, tree_map
from unclip.types import Batch, Cond, Prior, Step, Text, best_of, rows_of


def text(*strings: str) -> Text:
    rows = torch.arange(len(strings))
    return Text(
        list(strings),
        rows[:, None].expand(-1, 4),
        rows[:, None] + torch.rand(len(rows), 3),
        rows[:, None, None] + torch.rand(len(rows), 4, 2),
        torch.arange(4) <= rows[:, None],
    )


def test_texts_are_repeated_and_cut_by_caption() -> None:
    given = text("a", "b", "c")
    twice = given.repeat(2)
    assert twice.strings == ["a", "a", "b", "b", "c", "c"]
    some = twice.rows(slice(2, 5))
    assert some.strings == ["b", "b", "c"]
    for one, whole in zip(some[1:], given[1:]):
        assert torch.equal(one, whole[[1, 1, 2]])
    assert all(torch.equal(a, b) for a, b in zip(given.repeat(1)[1:], given[1:]))


def test_blank_captions() -> None:
    assert text("", "a", " \t\n", "0").blank.tolist() == [True, False, True, False]


def test_captions_that_no_clip_has_read_have_neither_embeddings_nor_states() -> None:
    bare = Text.of(["a", ""]).repeat(2).rows(slice(1, 3))
    assert bare.strings == ["a", ""] and bare.blank.tolist() == [False, True]
    assert bare.embed is None and bare.states is None and not bare.mask.any()
    for read in (lambda: bare.z_t, lambda: bare.token_states):
        with pytest.raises(ValueError, match="no CLIP has read these captions.*clip.encode_text"):
            read()
    assert torch.equal((read := text("a")).z_t, read.embed) and torch.equal(read.token_states, read.states)


def test_keep_contract_takes_parts_of_yesterday_which_know_neither_negative_nor_wrap() -> None:
    class Yesterday:
        def loss(self, image_embed, text, *, noise): ...
        def sample(self, text, *, noise, n=1, sampling=None): ...

    keep_contract(Yesterday(), Prior)
    assert not accepts(Yesterday().sample, "wrap") and accepts(Yesterday().sample, "sampling")
    Yesterday.sample = lambda self, text, *, noise, n=1: None
    with pytest.raises(ValueError, match="does not keep the contract Prior"):
        keep_contract(Yesterday(), Prior)


def test_best_of_takes_the_nearest_direction() -> None:
    wanted = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    embeds = torch.tensor([[[9.0, 9.0], [0.5, 0.1]], [[1.0, 0.1], [0.1, 0.2]]])  # long ones point elsewhere
    assert torch.equal(best_of(embeds, wanted), torch.stack([embeds[0, 1], embeds[1, 1]]))
    assert torch.equal(best_of(embeds[:, :1], wanted), embeds[:, 0])
    assert best_of(embeds.bfloat16(), wanted).dtype == torch.bfloat16
    close = torch.nn.functional.normalize(torch.randn(200, 2, 64) * 0.01 + torch.randn(200, 1, 64), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):  # in which most of these would be equally near
        kept = best_of(close, close[:, 0] + close[:, 1] * 1.1)
    assert torch.equal(kept, close[:, 1])


def test_step_shows_pictures_but_no_embeddings() -> None:
    step = Step("decoder", 1, 4, 900, torch.full((2, 3, 4, 4), 3.0, dtype=torch.bfloat16), slice(0, 2), 2)
    shown = step.images()
    assert shown is not None and shown.dtype == torch.float32 and shown.max() == 1
    assert step._replace(stage="prior", x0=torch.ones(2, 8)).images() is None


def test_trees_keep_their_kind() -> None:
    x = torch.ones(2)
    tree = {"cond": Cond(x, text=text("a")), "list": [x, None], "tuple": (x, "word")}
    doubled = tree_map(lambda a, b: a + b, tree, tree)
    assert isinstance(doubled["cond"], Cond) and isinstance(doubled["cond"].text, Text)
    assert doubled["cond"].text.strings == ["a"] and doubled["cond"].label is None
    assert torch.equal(doubled["list"][0], 2 * x) and doubled["list"][1] is None
    assert torch.equal(doubled["tuple"][0], 2 * x) and doubled["tuple"][1] == "word"


def test_moving_changes_floats_only() -> None:
    moved = move(text("a", "b"), None, torch.float64)
    assert (moved.tokens.dtype, moved.embed.dtype, moved.mask.dtype) == (torch.int64, torch.float64, torch.bool)
    assert move(text("a"), "meta").states.is_meta and move(moved, "cpu").embed.dtype == torch.float64


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"steps": -3},
        {"steps": 2.5},
        {"steps": True},
        {"steps": None},
        {"steps": "abc"},
        {"steps": "fast28"},
        {"steps": ""},
        {"steps": "10,,3"},
        {"steps": "10,0"},
        {"steps": ()},
        {"steps": (5,)},
        {"steps": (5, 10)},
        {"steps": (10, 10)},
        {"steps": (10, -1)},
        {"steps": [10, 5.5]},
        {"steps": ("10", "5")},
        {"sampler": "ddmi"},
        {"sampler": None},
        {"guidance": "3"},
        {"guidance": None},
        {"guidance": True},
        {"eta": "x"},
        {"eta": None},
        {"interval": ("a", "b")},
        {"variance": "larg"},
        {"guidance": -1.0},
        {"guidance": math.nan},
        {"guidance": math.inf},
        {"eta": -0.1},
        {"eta": 1.0, "sampler": "ddpm"},
        {"threshold": 0.0},
        {"threshold": 5},
        {"threshold": "dynamic"},
        {"threshold": True},
        {"interval": (5, 5)},
        {"interval": (-1, 5)},
        {"interval": (1, 2, 3)},
        {"interval": 5},
    ],
)
def test_samplings_that_cannot_work_are_refused_by_name(changes: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(changes))} is ") as error:
        Sampling(**changes)
    assert len(str(error.value)) > 25  # says what to do
    with pytest.raises(ValueError):
        Sampling().replace(**changes)


def test_samplings_that_work() -> None:
    assert Sampling(steps=[9, 3]).steps == (9, 3)
    for changes in (
        {"steps": (9, 3, 0)},
        {"steps": "fast27"},
        {"steps": "10,5"},
        {"threshold": 1.0},
        {"eta": 1.0},
        {"guidance": 0.0},
        {"interval": (0, 3)},
    ):
        assert Sampling(**changes) == Sampling().replace(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"steps": "abc"}, {"steps": 1}, {"steps": (5,)}, {"refine": -1}, {"refine": True}, {"refine": "x"}, {"lowest": "a"}],
)
def test_inversions_that_cannot_work_are_refused_by_name(changes: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(changes))} is "):
        Inversion(**changes)


def test_whole_numbers_of_every_library() -> None:
    for number in (3, np.int64(3), torch.tensor(3)):
        assert check_int("seed", number) == 3 and type(check_int("seed", number)) is int
    for other in (1.7, 2.0, True, "3", None, torch.tensor(1.5)):
        with pytest.raises(ValueError, match="seed is .*; it must be a whole number"):
            check_int("seed", other)
    with pytest.raises(ValueError, match=r"^n is 1; it must be a whole number of at least 2: how many$"):
        check_int("n", 1, 2, "how many")


def test_types_and_devices_by_their_names() -> None:
    assert dtype_of("float16") == dtype_of("torch.float16") == dtype_of(torch.float16) == torch.float16
    assert dtype_of(torch.float64) == torch.float64
    assert device_of("cpu") == device_of(torch.device("cpu")) == torch.device("cpu")
    for other in ("int8", torch.int8, 16, "meta", None):
        with pytest.raises(ValueError, match="no dtype .*; there are float32, bfloat16, float16"):
            dtype_of(other)
    for other in ("gpu", "cuda:77", "meta", None):
        with pytest.raises(ValueError, match="device .* cannot be used here: "):
            device_of(other)


def test_what_is_no_condition_no_text_and_no_noise_is_told_what_to_be() -> None:
    assert rows_of(Cond()) is None
    for three in (Cond(torch.zeros(3, 2)), Cond(text=Text.of(["a", "b", "c"])), Cond(label=torch.arange(3))):
        assert rows_of(three) == 3
    assert rows_of(Cond(torch.zeros(3, 2), Text.of(["a"]))) is None
    for wrong, message in (
        (torch.zeros(3, 2), "the conditions came as Tensor; a Cond is expected"),
        (None, "the conditions came as NoneType"),
        (Cond(text=["a"]), r"captions came as list; a Text is expected: clip.encode_text"),
    ):
        with pytest.raises(ValueError, match=message):
            rows_of(wrong)
    for wrong in (5, None, torch.zeros(2)):
        with pytest.raises(ValueError, match=r"a stream for each picture is expected: Noise.of\(seed, range\(2\)\)"):
            check_noise(wrong, 2, "pictures")


def test_a_batch_that_lacks_something_is_refused() -> None:
    batch = Batch(keys=["a"], captions=["b"])
    require(batch, ["captions"], "T")
    with pytest.raises(ValueError, match="T needs batches with images, captions; this one has only keys, captions"):
        require(batch, ["images", "captions"], "T")


def test_a_task_says_what_it_must_define() -> None:
    class Mine(Task):
        pass

    with pytest.raises(TypeError, match="Mine must define forward"):
        Mine()(Batch(keys=[]), Noise.of(0))
    assert Mine().sample_images(Batch(keys=[]), Noise.of(0)) is None

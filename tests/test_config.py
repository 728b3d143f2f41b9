"""Configs: strict on the way in, the same on the way out, and errors that name the place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pytest

from unclip.clip.encoder import VisionTower
from unclip.config import Config
from unclip.sampling import Sampling
from upsamplers import UpsamplerConfig


class Inner(Config, frozen=True, kw_only=True):
    width: int = 8
    levels: tuple[int, ...] = (1, 2)
    rate: float = 0.5
    word: str = "x"


class Plain(Config, frozen=True, kw_only=True):
    inner: Inner
    colour: Literal["red", "blue"] = "red"


class Outer(Config, frozen=True, kw_only=True):
    inner: Inner
    spare: Inner | None = None
    steps: int | str | tuple[int, ...] = 10

    def __post_init__(self) -> None:
        if self.steps == 0:
            raise ValueError("steps is 0; it must be positive")


CONFIG = Outer(inner=Inner(rate=0.1 + 0.2, levels=(3,)), spare=Inner(), steps=(9, 4, 0))


def test_json_holds_the_whole_value() -> None:
    assert Outer.from_json(CONFIG.to_json()) == CONFIG
    assert '"rate": 0.30000000000000004' in CONFIG.to_json() and '"word": "x"' in CONFIG.to_json()  # defaults too
    sampling = Sampling(steps="fast27", interval=(1, 500), threshold=0.995)
    assert Sampling.from_json(sampling.to_json()) == sampling and hash(sampling) == hash(sampling.replace())


def test_values_are_frozen() -> None:
    with pytest.raises(AttributeError):
        CONFIG.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"inner": {"widht": 4}}', r"a.json is no Outer: .*`widht`.*\$\.inner.*Inner has width, levels, rate, word"),
        ('{"inner": {}, "spare": {"a": 1}}', r"`a`.*\$\.spare.*Inner has width"),
        ('{"inner": {}, "extra": 1}', r"`extra`.*Outer has inner, spare, steps"),
        ('{"inner": {"width": "8"}}', r"int.*str.*\$\.inner\.width"),
        ('{"inner": {"levels": [1, 2.5]}}', r"\$\.inner\.levels\[1\]"),
        ('{"inner": {"rate": NaN}}', "malformed"),
        ('{"inner": {}, "steps": 0}', "steps is 0; it must be positive"),
        ("{}", "missing required field `inner`"),
        ('{"inner": {}', "truncated"),
        ("", "truncated"),
        ("[]", "Expected `object`"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Outer.from_json(text, source="a.json")


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(CONFIG.to_json())
    assert Outer.load(tmp_path / "a.json") == CONFIG
    with pytest.raises(ValueError, match="b.json cannot be read: No such file"):
        Outer.load(tmp_path / "b.json")
    (tmp_path / "c.json").write_bytes(b'{"inner": {"word": "\xff"}}')
    with pytest.raises(ValueError, match="c.json is no Outer"):
        Outer.load(tmp_path / "c.json")


def test_replace_checks_like_a_reader() -> None:
    assert CONFIG.replace(steps="10,5").steps == "10,5"
    assert CONFIG.replace(inner=CONFIG.inner.replace(rate=1)).inner.rate == 1.0
    with pytest.raises(ValueError, match="Outer has no field step; it has inner, spare, steps"):
        CONFIG.replace(step=3)
    with pytest.raises(ValueError, match="steps is 0"):
        CONFIG.replace(steps=0)
    with pytest.raises(ValueError, match="width is 'wide'; it must be a whole number"):
        CONFIG.inner.replace(width="wide")
    with pytest.raises(ValueError, match="steps"):
        CONFIG.replace(steps=math.pi)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": "wide"}, "width is 'wide'; it must be a whole number$"),
        ({"width": 2.0}, "width is 2.0; it must be a whole number$"),
        ({"width": True}, "width is True; it must be a whole number$"),
        ({"rate": "0.1"}, "rate is '0.1'; it must be a number$"),
        ({"rate": None}, "rate is None; it must be a number$"),
        ({"word": 5}, "word is 5; it must be text$"),
        ({"levels": 3}, "levels is 3; it must be a list$"),
        ({"levels": [1, "2"]}, r"levels is \[1, '2'\]; at \[1\] it must be a whole number$"),
    ],
)
def test_constructor_checks_types_as_a_reader_does(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Inner(**{"width": 3} | fields)


def test_constructor_makes_tuples_of_lists_and_configs_of_dicts() -> None:
    inner = Inner(width=3, levels=[1, 2], rate=1)
    assert inner.levels == (1, 2) and hash(inner) and type(inner.rate) is float
    assert Plain(inner={"width": 3, "levels": [1]}).inner.levels == (1,)
    with pytest.raises(ValueError, match=r"inner is 5; it must be a config or a dict"):
        Plain(inner=5)
    with pytest.raises(ValueError, match=r"inner is \{.*\}; at \.width it must be a whole number$"):
        Plain(inner={"width": "x"})
    with pytest.raises(ValueError, match=r"^colour is 'green'; it must be one of red, blue$"):
        Plain(inner=inner, colour="green")


def test_overrides_are_json_or_bare_words() -> None:
    changed = CONFIG.override(
        "inner.width=4", "inner.levels=[1,2,3]", "inner.word=blue", "spare=null", "steps=fast27", "inner.rate=1e-3"
    )
    assert changed == Outer(inner=Inner(width=4, levels=(1, 2, 3), word="blue", rate=1e-3), spare=None, steps="fast27")
    assert CONFIG.override("inner.word=a=b").inner.word == "a=b"
    for setting, message in {
        "inner.widht=3": r"no setting 'inner.widht' \(is inner.width or spare.width meant\?\): in place of 'widht' it has width,",
        "width=3": r"no setting 'width' \(is inner.width or spare.width meant\?\): in place of 'width' it has inner, spare",
        "--width": "there is no option --width: settings are written as name=value, for instance inner.width=500",
        "--rate=0.1": "there is no option --rate: settings are written as name=value, for instance inner.rate=0.1",
        "iner.width=3": "in place of 'iner' it has inner, spare, steps",
        "inner.width.more=3": "in place of 'more' it has no fields",
        "inner.width": "settings are written as name=value, for instance inner.width=500",
        "inner.width=wide": r"Outer with inner.width=wide is no Outer: .*\$\.inner\.width",
        "steps=0": "steps is 0",
    }.items():
        with pytest.raises(ValueError, match=message):
            CONFIG.override(setting)
    assert CONFIG.inner.width == 8


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"unet": {"depth": 1000000000}}', "unet.depth"),
        ('{"unet": {"patch": 1000000000}}', "unet.patch"),
        ('{"unet": {"multiple": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]}}', "unet.multiple"),
        ('{"scale": 1000000000}', "scale"),
        ('{"schedule": {"steps": 1000000000}}', "schedule.steps"),
        ('{"sampling": {"steps": 1000000000}}', "sampling.steps"),
        ('{"crops_per_image": 1000000000}', "crops_per_image"),
    ],
)
def test_counts_and_sizes_that_no_tensor_bears_out_are_bounded(text: str, path: str) -> None:
    with pytest.raises(ValueError, match=rf"Expected .* <= \d+ - at `\$.{path}`"):
        UpsamplerConfig.from_json(text)


@pytest.mark.parametrize(
    "change", [{"patch_size": 0}, {"head_width": 0}, {"layers": 0}, {"width": -16}, {"image_size": 0}, {"layers": 10**9}]
)
def test_sizes_of_a_tower_that_cannot_be(change: dict[str, int]) -> None:
    tower = VisionTower(image_size=16, patch_size=8, width=16, layers=1, head_width=8)
    with pytest.raises(ValueError, match="at least 1|<= 1000"):
        tower.replace(**change)

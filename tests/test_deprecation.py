"""Former public names work for one version, and say what they are called now."""

from __future__ import annotations

import pytest
import tiny

import unclip
from unclip import checkpoint
from unclip.deprecation import renamed_arguments


@renamed_arguments(colour="color")
def paint(color: str, *, size: int = 1) -> tuple[str, int]:
    return color, size


def test_renamed_argument_warns_and_counts_as_the_new_one() -> None:
    assert paint("red") == paint(color="red") == ("red", 1)
    with pytest.warns(DeprecationWarning, match="argument colour of paint is now called color"):
        assert paint(colour="red", size=2) == ("red", 2)
    with pytest.raises(TypeError, match="colour, the former name of color"):
        paint(colour="red", color="blue")
    with pytest.raises(TypeError):
        paint(couleur="red")


def test_former_names_are_the_same_objects() -> None:
    with pytest.warns(DeprecationWarning, match="unclip.checkpoint.Part is now called Component"):
        assert checkpoint.Part is checkpoint.Component
    with pytest.warns(DeprecationWarning, match="load_component"):
        assert checkpoint.load_part is checkpoint.load_component
    with pytest.warns(DeprecationWarning, match="unclip.TextEncoderConfig is now called Caption"):
        assert unclip.TextEncoderConfig is unclip.Caption  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no attribute 'Parts'"):
        checkpoint.Parts  # noqa: B018


def test_pipelines_answer_to_former_names() -> None:
    pipe = tiny.pipeline()
    for made in (pipe, pipe.cascade):
        with pytest.warns(DeprecationWarning, match="pipe.components"):
            assert made.parts == made.components
    with pytest.warns(DeprecationWarning, match="argument components of UnCLIP.__init__ is now called pca"):
        assert tiny.pipeline(components=None).pca is None

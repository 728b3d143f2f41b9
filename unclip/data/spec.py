"""Data as a value: what a training's file says about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from unclip.config import Config

from .order import Data

S = TypeVar("S", bound="DataSpec")


class DataSpec(Config, frozen=True, kw_only=True):
    """The base of configs that name data: `DataConfig`, and other kinds from outside the package.

    Subclasses have a field `size`, the side of the pictures in pixels; None = what the training needs, if it needs any.
    """

    size: int | None = None

    @property
    def embedded(self) -> bool:
        """Whether a CLIP's image embeddings come with the samples."""
        return False

    def open(self, classes: Sequence[str] | None = None) -> Data:
        """classes: names by number of the training's data, for what is held out from it."""
        raise NotImplementedError(f"{type(self).__name__} must define open(classes) -> Data")

    def placed(self: S, place: Callable[[str], str]) -> S:
        """With `place` applied to the names of files and folders."""
        return self

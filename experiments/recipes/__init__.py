"""Recipes by name: `emoji.decoder` is the function `decoder` of `experiments/recipes/emoji.py`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from unclip.config import Config
from unclip.data.order import Data
from unclip.training import TrainConfig
from unclip.training.task import Task

M = TypeVar("M")


class Recipe(Config, frozen=True, kw_only=True):
    """All settings of one training, as a value that JSON can hold.

    Subclasses add what they need, mostly `model: <the part's config>` and something about the data, and define `build`;
    settings on the command line go by the same names (`train.steps=500 model.unet.channels=96`).
    """

    train: TrainConfig

    def build(self) -> tuple[Task, Data]:
        """The task, with freshly made weights and its frozen teachers, and its data."""
        raise NotImplementedError(f"{type(self).__name__} must define build() -> (task, data)")

    def fresh(self, build: Callable[[], M]) -> M:
        """New weights from the recipe's own seed, without touching torch's global generator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.train.seed)
            return build()

    def finish(self, model: nn.Module, run_dir: Path) -> None:
        """What to do with the trained model, averaged weights loaded, in evaluation mode; by default nothing."""


def find(name: str) -> Recipe:
    """The recipe `module.function`; ValueError lists what there is."""
    module, _, function = name.partition(".")
    if module in _modules():
        functions = _functions(module)
        if function in functions:
            return functions[function]()
    raise ValueError(f"no recipe {name!r}; there are {', '.join(names())}")


def names() -> list[str]:
    return [f"{module}.{function}" for module in _modules() for function in _functions(module)]


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def _functions(module: str) -> dict[str, Callable[[], Recipe]]:
    """The public functions without required arguments that a module of recipes defines itself."""
    loaded = importlib.import_module(f"{__name__}.{module}")
    own = {n: f for n, f in vars(loaded).items() if inspect.isfunction(f) and f.__module__ == loaded.__name__}
    return {name: function for name, function in own.items() if _makes_recipe(name, function)}


def _makes_recipe(name: str, function: Callable[..., object]) -> bool:
    returns = str(inspect.signature(function).return_annotation).strip("'\"")
    return not name.startswith("_") and returns.endswith("Recipe")

"""Recipes: functions that return a `Training`, found by name in the package `experiments.recipes`.

`emoji.decoder` is the function `decoder` of `experiments/recipes/emoji.py`, below the current folder or, where there is none,
in the checkout that this package lies in.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from unclip.checks import path_of

from .names import UnknownName
from .training import Training

PACKAGE = "experiments.recipes"


def find(name: str) -> Training:
    """The training that the recipe `module.function` returns.  ValueError: there is none; it lists those there are."""
    recipe = functions().get(name)
    if recipe is None:
        known = ", ".join(functions()) or f"none: a recipe is a function of a module in {PACKAGE.replace('.', '/')}, here"
        raise ValueError(f"no recipe {name!r}; there are {known}")
    return recipe()


def load(source: str) -> Training:
    """A training by its JSON file or by the name of a recipe."""
    place = path_of(source)
    if place.is_dir():
        problem = f"{source} is a folder, and what to train stands in a configuration"
        raise ValueError(f"{problem}: unclip config prior {source} -o prior.json writes one for the stage prior")
    if not place.is_file():
        near = difflib.get_close_matches(place.name, [path.name for path in place.parent.glob("*.json")], 3, 0.8)
        if source not in functions() and (near or place.suffix == ".json" or place.name != source):
            raise ValueError(f"there is no file {source}" + (f"; there is {', '.join(near)}" if near else ""))
        return find(source)
    try:
        return Training.load(source)
    except UnknownName:  # perhaps of a class that belongs to the recipes
        functions()
        return Training.load(source)


def functions() -> dict[str, Callable[[], Training]]:
    """The public functions of all recipe modules that return a `Training` and have no required arguments."""
    package = _package()
    if package is None:
        return {}
    recipes = {}
    for module in sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")):
        loaded = importlib.import_module(f"{PACKAGE}.{module}")
        for name, function in vars(loaded).items():
            defined_here = inspect.isfunction(function) and function.__module__ == loaded.__name__
            if defined_here and not name.startswith("_") and _makes_training(function):
                recipes[f"{module}.{name}"] = function
    return recipes


def _package() -> ModuleType | None:
    for place in (Path.cwd(), Path(__file__).parents[2]):
        if PACKAGE in sys.modules:
            break
        if (place / PACKAGE.replace(".", "/")).is_dir():
            sys.path.insert(0, str(place))
            break
    try:
        return importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        if error.name is None or not PACKAGE.startswith(error.name):
            raise
        return None


def _makes_training(function: Callable[..., object]) -> bool:
    signature = inspect.signature(function)
    required = [p for p in signature.parameters.values() if p.default is p.empty]
    returns = signature.return_annotation
    return not required and (returns is Training or str(returns).strip("'\"").rpartition(".")[2] == Training.__name__)

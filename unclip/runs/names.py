"""Classes by the names that a training's file gives them: public ones of the package, and what imported modules define."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from unclip.checkpoint import Component, class_of
from unclip.config import Config
from unclip.data.spec import DataSpec
from unclip.training.task import Task

T = TypeVar("T")


KINDS: dict[type, str] = {Component: "component", Task: "task", DataSpec: "kind of data"}


class UnknownName(ValueError):
    """No class of that name: the module that defines it may not have been imported yet."""


def class_named(name: str, base: type[T]) -> type[T]:
    """The class of that name: one of the package's, or one of the kind that some module outside of it has defined."""
    try:
        return class_of(name, base)
    except ValueError:
        classes = [cls for cls in _below(base) if cls.__name__ == name]
        if not classes:
            problem = "unclip has none of that name, nor has a module of recipes that is found from here"
            raise UnknownName(f"no {KINDS.get(base, base.__name__)} {name!r}: {problem}") from None
        return classes[-1]  # the newest, of a module that was run twice


def component_class(config: Config) -> type[Component[Any]]:
    """The class of components that this config builds."""
    return _built_from(config, Component)


def task_class(config: Config | None, component: type[Component[Any]]) -> type[Task]:
    """The class of tasks that these settings are of; None = the component's own."""
    if config is not None:
        return _built_from(config, Task)
    if component.task_class is None:
        raise ValueError(f"a {component.__name__} is not trained step by step, so there is no task for it")
    return class_named(component.task_class, Task)


def _built_from(config: Config, base: type[T]) -> type[T]:
    for cls in _below(base):
        if vars(cls).get("config_class") is type(config):
            return cls
    raise ValueError(f"no {KINDS.get(base, base.__name__)} is built from a {type(config).__name__}")


def _below(base: type[T]) -> Iterator[type[T]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _below(cls)

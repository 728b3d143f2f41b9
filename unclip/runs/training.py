"""The configuration of a training: model, data, task and optimisation, as one value.

What a recipe returns and `unclip train` takes; its JSON names classes as `config.json` of a component does:

    {"model": {"class": "DiffusionPrior", ...}, "clip": "emoji", "data": {"source": "pictures"}, "train": {"steps": 5000, ...}}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from unclip.checkpoint import Component
from unclip.config import Config
from unclip.data.open import DataConfig
from unclip.data.spec import DataSpec
from unclip.training import TrainConfig
from unclip.training.task import Task

from .legacy import upgraded
from .names import class_named, component_class, task_class

# msgspec reads these as they come; `Training` itself makes configs of them, by the classes that they name.
if TYPE_CHECKING:
    Model: TypeAlias = Config
    Settings: TypeAlias = Config
    Spec: TypeAlias = DataSpec
else:
    Model = Settings = Spec = Any

KINDS: dict[str, type] = {
    "model": Component,
    "task": Task,
    "data": DataSpec,
    "held_out": DataSpec,
}  # what their classes are below


class Training(Config, frozen=True, kw_only=True):
    """Everything that a training depends on.  New weights come from `model`, those of `start` are trained on."""

    # The config of a component; None = that of `start`.
    model: Model | None = None
    # A component's folder, a run folder, or a pipeline's component, as "emoji:upsampler_256".  With `model` it must fit that.
    start: str | None = None
    # The frozen teacher: a pipeline's, a component's folder, a run folder, or "open_clip:ViT-B-32:laion2b_s34b_b79k", also
    # "open_clip:ViT-B-32:/path/w.pt", "open_clip:hf-hub:OWNER/NAME" and "open_clip:local-dir:FOLDER".
    # None where the data bring what it would say.
    clip: str | None = None
    # Settings of the task; None = the component's own task, with its defaults.
    task: Settings | None = None
    data: Spec
    held_out: Spec | None = None  # for validation, never trained on
    train: TrainConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        reads = {"model": _model, "task": _task, "data": _data, "held_out": _data}
        for name, read in reads.items():
            if isinstance(value := getattr(self, name), dict):
                msgspec.structs.force_setattr(self, name, read(value, name))
        if self.model is None and self.start is None:
            raise ValueError("give either model, the config of new weights, or start, what to train on, or both")

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "training") -> Training:
        """UnknownName, a ValueError, for a class that nobody has defined yet."""
        text = upgraded(text)
        try:
            tree = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            tree = None  # which is told next
        for name, base in KINDS.items() if isinstance(tree, dict) else ():
            if isinstance(tree.get(name), dict) and isinstance(label := tree[name].get("class"), str):
                class_named(label, base)
        return super().from_json(text, source)

    def tree(self) -> dict[str, Any]:
        tree = super().tree()
        for name in KINDS:
            if (label := self._label(name)) is not None:
                tree[name] = {"class": label} | tree[name]
        return tree

    def _label(self, name: str) -> str | None:
        """How the file names the class; None where there is nothing, or what goes without saying."""
        value = getattr(self, name)
        if value is None or type(value) is DataConfig:
            return None
        if name == "model":
            return component_class(value).__name__
        return task_class(value, Component).__name__ if name == "task" else type(value).__name__

    @property
    def name(self) -> str:
        """What is trained, in a word."""
        return self._label("model") or str(self.start)


def _model(tree: dict[str, Any], field: str) -> Config:
    return _config(tree, field, class_named(_class(tree, field, "Decoder"), Component).config_class)


def _task(tree: dict[str, Any], field: str) -> Config:
    cls = class_named(_class(tree, field, "CLIPTask"), Task)
    if cls.config_class is None:
        raise ValueError(f"{field}: a {cls.__name__} has no settings, so leave {field} out")
    return _config(tree, field, cls.config_class)


def _data(tree: dict[str, Any], field: str) -> Config:
    return _config(tree, field, class_named(tree["class"], DataSpec) if "class" in tree else DataConfig)


def _class(tree: dict[str, Any], field: str, example: str) -> str:
    if not isinstance(name := tree.get("class"), str):
        raise ValueError(f'{field} must name its class, as {{"class": "{example}", ...}}')
    return name


def _config(tree: dict[str, Any], field: str, kind: type[Config]) -> Config:
    settings = {name: value for name, value in tree.items() if name != "class"}
    return kind.from_json(msgspec.json.encode(settings), source=field)

"""Load components by their source: a pipeline, a folder, a run, or an open_clip model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from unclip import checkpoint
from unclip.checkpoint import Component
from unclip.checks import path_of
from unclip.clip import CLIP
from unclip.clip.named import OPEN_CLIP, named_clip
from unclip.files import read_json
from unclip.training import load_ema
from unclip.training.state import newest

from .names import class_named, component_class
from .training import Training

MODEL, IDENTITY, RECORD = "model", "clip_identity.json", "training.json"  # in the run folder


def load_clip(source: str, variant: str | None = None) -> CLIP:
    """A CLIP by what `Training.clip` may say.  variant: which of several weights in a folder, as in `open_component`."""
    if source.startswith(OPEN_CLIP):
        return CLIP(named_clip(source)).eval()
    component = open_component(source, "clip", variant)
    if not isinstance(component, CLIP):
        raise ValueError(f"{source} holds a {type(component).__name__}, not a CLIP")
    return component


def open_component(source: str, name: str | None = None, variant: str | None = None) -> Component[Any]:
    """A component, which knows its CLIP where that is on record.

    source: a component's folder, a run folder (one that has not ended gives the averaged weights of its newest state), or a
    pipeline's component, as "emoji:prior"; `name` is the one to take where the source names none.
    variant: which weights, where a folder holds several.
    """
    source, name = split_name(source, name)
    folder = path_of(source)
    if (folder / MODEL / checkpoint.CONFIG).is_file() or (folder / RECORD).is_file():
        component = _load(folder / MODEL) if (folder / MODEL).is_dir() else averaged(folder)
        if (folder / IDENTITY).is_file():
            component.clip_identity = read_json(folder / IDENTITY)
        return component
    if (folder / checkpoint.CONFIG).is_file() and not (folder / checkpoint.INDEX).is_file():
        return _load(folder, variant)
    stored = checkpoint.open_pipeline(source, variant=variant)
    if name not in stored.components:
        wrong = f"has no component {name!r}" if name else "is a pipeline"
        raise ValueError(f"{source} {wrong}; it has {', '.join(stored.components)}: name one as {source}:COMPONENT")
    component = stored.components[name]()
    component.clip_identity = stored.clip_identity
    return component


def describe(source: str, name: str | None = None) -> tuple[str, str | None]:
    """The source with the name of a pipeline's component, and the component's class by name, without reading weights.

    None: the class is not on record, as in pipelines of other packages.
    """
    place, component = split_name(source, name)
    folder = path_of(place)
    for config in (folder / MODEL / checkpoint.CONFIG, folder / checkpoint.CONFIG):
        if config.is_file() and not (folder / checkpoint.INDEX).is_file():
            return source, checkpoint.Record.load(config).kind
    if (folder / RECORD).is_file():
        return source, Training.load(folder / RECORD).name
    stored = checkpoint.open_pipeline(place)
    if component not in stored.components:
        raise ValueError(
            f"{place} has no component {component!r}; it has {', '.join(stored.components)}: name one as {place}:COMPONENT"
        )
    config = stored.folder / component / checkpoint.CONFIG
    ours = (stored.folder / checkpoint.INDEX).is_file()
    return f"{place}:{component}", checkpoint.Record.load(config).kind if ours else None


def split_name(source: str, name: str | None = None) -> tuple[str, str | None]:
    """ "emoji:upsampler_256" -> its two halves; the second is `name` where the source names none."""
    place, colon, last = source.rpartition(":")
    if colon and re.fullmatch(r"\w*", last) and not path_of(source).exists():  # not C:\models
        return place, last
    return source, name


def averaged(run: str | Path) -> Component[Any]:
    """The component of a run with the averaged weights of its newest state, in evaluation mode.

    What is measured after training, as a prior's analytic variance, it does not have yet.
    """
    run = path_of(run)
    training, state = Training.load(run / RECORD), newest(run, only=())
    if state is None:
        raise ValueError(f"{run} holds no complete training state: nothing was saved yet")
    config = training.model if training.model is not None else open_component(str(training.start)).config
    kind = component_class(config)
    # The state's config has what was counted on the data; an older version of unclip may have written both.
    stored = checkpoint.upgrade_config(kind.__name__, json.loads(state.values["model"]))
    component = checkpoint.build(kind, type(config).from_json(json.dumps(stored), source=f"the model in the state of {run}"))
    ema = load_ema(run)
    today = {checkpoint.older_name(kind.__name__, name): name for name in component.state_dict() if name not in ema}
    checkpoint.fill(component, {today.get(name, name): tensor for name, tensor in ema.items()}, source=str(run))
    return component.eval()


def _load(folder: Path, variant: str | None = None) -> Component[Any]:
    kind = class_named(checkpoint.Record.load(folder / checkpoint.CONFIG).kind, Component)
    return checkpoint.load_component(folder, kind, variant=variant)

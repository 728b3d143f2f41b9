"""Save and load pipelines: a folder for each component, and an index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unclip import checkpoint
from unclip.checkpoint import PRIORS, Component, Index, Stored, fingerprint
from unclip.checks import dtype_of
from unclip.editing.pca import FILE as PCA_FILE
from unclip.editing.pca import PCA
from unclip.files import write_folder
from unclip.index import PIPELINE_FILES
from unclip.offload import Offload
from unclip.progress import Bars
from unclip.weights import reading


def save(
    folder: str | Path,
    components: Mapping[str, Any],
    index: Callable[[dict[str, str]], Index],
    provenance: Mapping[str, Any],
    dtype: torch.dtype | str | None,
    pca: PCA | None = None,
    overwrite: bool = False,
) -> None:
    """Write every component, the index that `index` makes of their classes, and where they come from, all or nothing.

    overwrite: in place of a pipeline that is there already.
    """
    dtype = None if dtype is None else dtype_of(dtype)

    def write(aside: Path) -> None:
        for name, component in components.items():
            if not isinstance(component, Component):
                raise ValueError(
                    f"the {name}, a {type(component).__name__}, cannot be saved: it is no unclip.checkpoint.Component"
                )
            component.write(aside / name, dtype, name)
        made = index({name: type(component).__name__ for name, component in components.items()})
        (aside / checkpoint.INDEX).write_bytes(made.to_json().encode())
        if pca is not None:
            pca.save(aside / PCA_FILE)
        (aside / checkpoint.PROVENANCE).write_bytes(json.dumps(dict(provenance), indent=2).encode() + b"\n")

    write_folder(folder, write, overwrite, PIPELINE_FILES)


def load(
    stored: Stored, loads: Mapping[str, Callable[[], Component[Any]]], offload: bool, progress: bool | None = None
) -> dict[str, Any]:
    """The components, of which with `offload` at most one has its weights in memory; a guide, used within the decoder, stays.

    progress: a bar over the bytes read; None = where somebody watches.
    """
    keeper = Offload() if offload else None
    weights = [file for name in loads for file in (stored.folder / name).glob("*.safetensors")]
    total = sum(file.stat().st_size for file in weights) or None  # not known of other packages' files
    with Bars(progress) as bars, reading(bars.counter(f"loading {stored.name}", total, unit="B", unit_scale=True)):
        components = {name: keeper.add(load) if keeper and name != "guide" else load() for name, load in loads.items()}
        bars.finish()
        return components


def prior_of(stored: Stored, component: str, source: str | Path) -> Callable[[], Component[Any]]:
    """What loads the prior that is asked for; ValueError where there is none of that name."""
    priors = [name for name in PRIORS if name in stored.components]
    if component not in priors:
        raise ValueError(f"{source} has no component {component!r}; its priors: {', '.join(priors) or 'none'}")
    return stored.components[component]


def with_prior(stored: Stored, prior: str, source: str | Path) -> dict[str, Callable[[], Component[Any]]]:
    """What loads an UnCLIP's components with one of its priors; some layouts come without any."""
    has_prior = prior != PRIORS[0] or any(name in stored.components for name in PRIORS)
    loads = {prior: prior_of(stored, prior, source)} if has_prior else {}
    loads |= {name: load for name, load in stored.components.items() if name not in (*PRIORS, "clip")}
    return loads | {"clip": stored.components["clip"]}  # last, because it is asked at once which one it is


def refuse_kind(stored: Stored, kind: str, source: str | Path) -> None:
    if stored.kind != kind:
        raise ValueError(f"{source} holds a pipeline of the kind {stored.kind}, not {kind}: load it with unclip.{stored.kind}")


def pca_of(stored: Stored) -> PCA | None:
    """Principal components, where the folder has some."""
    path = stored.folder / PCA_FILE
    return PCA.load(path) if path.exists() else None


def clip_fingerprint(clip: object, identity: Mapping[str, Any]) -> str:
    """A short name for a CLIP, of its weights if it has some: answers differ in the last digits from machine to machine."""
    if isinstance(clip, nn.Module):
        return fingerprint(clip)
    return hashlib.blake2b(json.dumps(dict(identity), sort_keys=True).encode(), digest_size=8).hexdigest()

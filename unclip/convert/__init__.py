"""Public weights of other unCLIP families, read strictly and without running anything in them.

One or two files per family: how it is recognised, our configs for its components, and the tables that name its tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from unclip.checkpoint import CONFIG, INDEX, PROVENANCE, Index, Stored, open_pipeline
from unclip.checks import dtype_of
from unclip.clip.encoder import CLIP
from unclip.clip.identity import identity
from unclip.files import check_folder, read_json, visible, write_folder
from unclip.index import PIPELINE_FILES, Kind

from . import adm, glide, karlo_diffusers, karlo_original

RUN = "training.json"  # in the folder of a training run


class Open(Protocol):
    def __call__(self, folder: Path, source: str, dtype: torch.dtype | None = None, variant: str | None = None) -> Stored: ...


class Family(NamedTuple):
    """A way in which public weights are laid out."""

    layout: str  # for people
    recognise: Callable[[Path], bool]
    open: Open
    kind: Kind = "UnCLIP"  # of the pipelines in it


FAMILIES = (
    Family("Karlo as diffusers stores it (model_index.json)", karlo_diffusers.recognise, karlo_diffusers.open_karlo),
    Family("Karlo's original files (prior-ckpt*.ckpt, ...)", karlo_original.recognise, karlo_original.open_karlo),
    Family("ADM's files (64x64_diffusion.pt, 64x64_classifier.pt, ...)", adm.recognise, adm.open_adm, "Cascade"),
    Family("GLIDE's files (base.pt, upsample.pt, ..., with GPT-2's vocab.bpe)", glide.recognise, glide.open_glide, "Cascade"),
)


def open_foreign(folder: Path, source: str, dtype: torch.dtype | None = None, variant: str | None = None) -> Stored:
    """A pipeline of another format; ValueError that says what was looked for when it is none that is known."""
    for family in FAMILIES:
        if family.recognise(folder):
            return family.open(folder, source, dtype, variant)
    if (folder / CONFIG).is_file() or (folder / RUN).is_file():
        what = "a training run" if (folder / RUN).is_file() else "one component of a pipeline"
        raise ValueError(f"{source} is {what}: put components together with `unclip assemble`, and take the folder that it makes")
    index = folder / "model_index.json"
    described = f" and model_index.json describes a {visible(read_json(index).get('_class_name'))}" if index.is_file() else ""
    known = "; ".join(family.layout for family in FAMILIES)
    raise ValueError(f"{source} holds no pipeline: {INDEX} is missing{described}; other formats that can be read: {known}")


def foreign_kind(folder: Path) -> Kind:
    """Which kind of pipeline a folder of another format holds; "UnCLIP" where the format is not known."""
    return next((family.kind for family in FAMILIES if family.recognise(folder)), "UnCLIP")


def convert(
    source: str | Path,
    folder: str | Path,
    dtype: torch.dtype | str = "float32",
    variant: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write public weights (a folder, a hub id) into a new `folder` in this package's format, one component in memory at a time.

    dtype: of the stored parameters.  variant, revision: as in `open_pipeline`.  overwrite: in place of a pipeline that is there.
    """
    kind = dtype_of(dtype)
    check_folder(folder, overwrite, PIPELINE_FILES, [source])
    stored = open_pipeline(source, variant=variant, revision=revision)
    if stored.clip_identity is not None:
        raise ValueError(
            f"{source} has this package's format already; unclip.from_pretrained reads it and save_pretrained stores it"
        )

    def write(aside: Path) -> None:
        kinds, record = {}, {}
        for name, load in stored.components.items():
            component = load()
            if isinstance(component, CLIP):
                record = identity(component)
            kinds[name] = type(component).__name__
            component.write(aside / name, kind, name)
            del component
        settings: dict[str, Any] = {"candidates": stored.candidates, "clip_identity": record} if stored.kind == "UnCLIP" else {}
        index = Index(kind=stored.kind, name=stored.name, components=kinds, **settings)
        (aside / INDEX).write_bytes(index.to_json().encode())
        (aside / PROVENANCE).write_bytes(json.dumps(stored.provenance, indent=2).encode() + b"\n")

    write_folder(folder, write, overwrite, PIPELINE_FILES)

"""Checkpoints: a component is a folder with `config.json` and `model.safetensors`, a pipeline an index of components.

Reading is strict: every tensor is used once and has the shape that the config asks for.  Writing goes aside first and is
renamed, so that a folder is there whole or not at all.  No pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import msgspec
import torch
from torch import nn

from unclip.weights import find_weights, lazily, read_tensors, sha256_of, write_tensors
from unclip.weights.folder import files_of, renamed

from .building import build, compare, fill, refuse_broken, sketch
from .checks import dtype_of
from .config import Config, visible
from .deprecation import renamed_attributes
from .files import read_json, write_files, write_folder
from .hub import CONFIG, INDEX, locate
from .index import COMPONENT_FILES, PRIORS, Index, Kind

__getattr__ = renamed_attributes(__name__, {"Part": "Component", "load_part": "load_component"})

C = TypeVar("C", bound=Config)
P = TypeVar("P", bound="Component[Any]")
T = TypeVar("T")

WEIGHTS, PROVENANCE = "model.safetensors", "provenance.json"
FORMAT = 2  # of config.json and the names of tensors
PACKAGES = ("unclip", "prior", "decoder", "upsamplers")  # packages


class Record(Config, frozen=True, kw_only=True, rename={"kind": "class"}):
    """A component's `config.json`: the public name of its class, and the config that builds it."""

    kind: str
    config: msgspec.Raw
    format: int = 1  # absent in what unclip 0.1.0 wrote
    component: str | None = None  # what it is in the pipeline that it was saved with: "upsampler_256"
    sha256: dict[str, str] = {}  # of its files of weights; what is not listed is not checked


class Component(nn.Module, Generic[C]):
    """A module built from one config, which makes it savable: `Stage(config)`."""

    config_class: ClassVar[type[Config]]
    task_class: ClassVar[str | None] = None  # public name of the `Task` that trains it; None = it is not trained step by step
    config: C
    clip_identity: Mapping[str, Any] | None = None  # of the CLIP it was trained with, when it comes from a pipeline
    offload: Any = None  # the unclip.offload.Offload that reads its weights when it is used; None = they are here
    kept_fingerprint: str | None = None  # of weights that are not here
    offload_groups: tuple[str, ...] = ()  # names of submodules of which a sampling step runs one

    @property
    def device(self) -> torch.device:
        where: torch.device = next(self.parameters()).device if self.offload is None else self.offload.device
        return where

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | str | None = None, overwrite: bool = False) -> None:
        """Write `config.json` and `model.safetensors` (parameters in `dtype`) into a new `folder`; `overwrite` an older one."""
        stored = None if dtype is None else dtype_of(dtype)
        write_folder(folder, lambda aside: self.write(aside, stored), overwrite, COMPONENT_FILES)

    def write(self, folder: Path, dtype: torch.dtype | None = None, component: str | None = None) -> None:
        """The two files, into a folder that may be there.  `component`: what it is in a pipeline, to be checked again."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        if dtype is not None:  # buffers are statistics: small, and worth their precision
            tensors.update((name, tensors[name].to(dtype)) for name, _ in self.named_parameters())
        refuse_broken(self, tensors, f"{type(self).__name__} cannot be saved{f' in {dtype}' if dtype else ''}: it")
        self.check()
        kind = type(self).__name__
        digest = write_tensors(folder / WEIGHTS, tensors, metadata={"format": "pt", "class": kind})
        record = {"class": kind, "format": FORMAT, "component": component, "sha256": {WEIGHTS: digest}}
        record["config"] = msgspec.to_builtins(self.record())
        (folder / CONFIG).write_bytes(json.dumps(record, indent=2).encode() + b"\n")

    def check(self) -> None:
        """ValueError where the statistics are none that data have; called after reading and before writing."""

    def record(self) -> Config:
        """The config to store: it must build the same component without looking anything up."""
        return self.config

    @classmethod
    def from_pretrained(
        cls: type[P], folder: str | Path, dtype: torch.dtype | str | None = None, variant: str | None = None
    ) -> P:
        """Read a component's folder; parameters arrive in `dtype`, float32 when not given.  variant: see `open_pipeline`."""
        component = load_component(Path(folder).expanduser(), cls, None if dtype is None else dtype_of(dtype), variant)
        assert isinstance(component, cls)
        return component


class Stored(NamedTuple):
    """A pipeline on disk, of which nothing is loaded yet: calling an entry of `components` loads that component."""

    folder: Path
    name: str
    components: dict[str, Callable[[], Component[Any]]]  # clip, prior, ar_prior, decoder, guide, upsampler_<size> ascending
    candidates: int
    provenance: dict[str, Any]
    clip_identity: dict[str, Any] | None  # None: not recorded, the CLIP of these components is taken at its word
    kind: Kind = "UnCLIP"


def open_pipeline(
    source: str | Path,
    classes: Mapping[str, type[Component[Any]]] | None = None,
    dtype: torch.dtype | str | None = None,
    variant: str | None = None,
    revision: str | None = None,
) -> Stored:
    """A pipeline by shipped name, folder or hub id, in this package's format or one that `unclip.convert` reads.

    classes: what class names of the checkpoint mean that are not unclip's own.  Parameters arrive in `dtype` (None =
    float32), buffers in their own types.
    variant: which weights, where a folder holds several: "fp16" of model.fp16.safetensors, "plain" of model.safetensors, or
    the name of the file.  revision: of a hub's repository, a branch, tag or commit, also as "owner/name@revision".
    """
    dtype = None if dtype is None else dtype_of(dtype)
    folder = locate(source, revision)
    if not (folder / INDEX).is_file():
        return _public().open_foreign(folder, str(source), dtype, variant)
    index, known = Index.load(folder / INDEX), dict(classes or {})
    names = [name for name in ("clip", *PRIORS, "decoder", "guide") if name in index.components] + index.upsamplers
    kinds = {name: known.get(index.components[name], index.components[name]) for name in names}
    types = {name: None if name == "guide" else dtype for name in names}  # gradients in half precision would be noise
    return Stored(
        folder=folder,
        name=index.name,
        components={n: partial(load_component, folder / n, kind, types[n], variant, n) for n, kind in kinds.items()},
        candidates=index.candidates,
        provenance=read_provenance(folder / PROVENANCE),
        clip_identity=dict(index.clip_identity),
        kind=index.kind,
    )


def kind_of(source: str | Path, revision: str | None = None) -> str:
    """Which kind of pipeline a shipped name, folder or hub id holds."""
    folder = locate(source, revision)
    return Index.load(folder / INDEX).kind if (folder / INDEX).is_file() else str(_public().foreign_kind(folder))


def load_component(
    folder: Path,
    kind: str | type[Component[Any]],
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    role: str | None = None,
) -> Component[Any]:
    """Build the component that `folder` describes and fill it, strictly.  `kind`: a public name of unclip, or the class itself.

    Nothing is built before the headers of its weights were found to hold just the tensors that its config asks for.
    role: what it stands for in a pipeline, refused if it was saved as another.
    """
    cls = class_of(kind, Component) if isinstance(kind, str) else kind
    record = _record(folder, cls, role)
    config = cls.config_class.from_json(_upgraded(record), source=str(folder / CONFIG))
    weights = find_weights(folder, variant, ("model",), ("safetensors",))
    files = files_of(weights)
    lazies = {name: lazy for file in files for name, lazy in lazily(file).items()}

    def today(component: nn.Module) -> dict[str, str]:
        """What the tensors in the files are called -> what the component calls them; ValueError unless they fit."""
        expected = component.state_dict()
        names = _names(record, expected, lazies, str(weights))
        compare(expected, {names[name]: lazy for name, lazy in lazies.items()}, str(weights))
        return names

    if cls.__module__.partition(".")[0] in PACKAGES:  # on the meta device a class from outside may not get along
        today(sketch(cls, config, source=str(folder / CONFIG)))
    component = build(cls, config, dtype)
    names = today(component)
    types = {name: tensor.dtype for name, tensor in component.state_dict().items()}
    stored = {name: types[new] for name, new in names.items()}
    tensors = {name: x for file in files for name, x in read_tensors(file, stored, record.sha256.get(file.name)).items()}
    fill(component, {names[name]: tensor for name, tensor in tensors.items()}, source=str(weights))
    try:
        component.check()
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from None
    return component.eval()


def _record(folder: Path, cls: type[Component[Any]], role: str | None) -> Record:
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no component: {CONFIG} is missing (a component is a folder with {CONFIG} and {WEIGHTS})"
        )
    record = Record.load(path)
    if record.kind != cls.__name__:
        raise ValueError(f"{path} describes the class {visible(record.kind)!r}; expected {cls.__name__!r}")
    if record.format > FORMAT:
        raise ValueError(f"{path} has format {record.format}, and this unclip reads up to {FORMAT}: it was made by a newer one")
    if role and record.component not in (None, role):
        problem = f"{path} was saved as the {visible(record.component)} of its pipeline, and stands here as the {role}"
        raise ValueError(f"{problem}: have folders been exchanged?  (What is meant so goes through UnCLIP(...).save_pretrained.)")
    return record


def _upgraded(record: Record) -> bytes:
    if record.format >= FORMAT:
        return bytes(record.config)
    return msgspec.json.encode(upgrade_config(record.kind, msgspec.json.decode(record.config)))


def upgrade_config(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a component of the class `kind` as today's class reads it; an older version of unclip may have stored it."""
    upgraded: dict[str, Any] = _public().upgrade_config(kind, config)
    return upgraded


def older_name(kind: str, name: str) -> str:
    """What a tensor of a component was called by older versions of unclip."""
    return str(_public().older_name(kind, name))


def _names(record: Record, expected: Collection[str], stored: Mapping[str, Any], source: str) -> dict[str, str]:
    """What the tensors in the files are called -> what they are called here today."""
    older = {older_name(record.kind, name): name for name in expected} if record.format < FORMAT else {}
    names = {name: older.get(name, name) for name in stored}
    if set(names.values()) != set(expected):  # saved from a module that was compiled, or trained in parallel
        names = {name: older.get(new, new) for name, new in renamed(stored, source).items()}
    return names


def seal(folder: str | Path, component: str | None = None) -> None:
    """Write the SHA-256 of a component's weights into its `config.json`: for folders that other tools have made or changed."""
    folder = Path(folder)
    record = read_json(folder / CONFIG)
    config = record.pop("config", None)
    files = files_of(find_weights(folder, None, ("model",), ("safetensors",)))
    record["component"] = component or record.get("component")
    record |= {"sha256": {file.name: sha256_of(file) for file in files}, "config": config}
    write_files([(folder / CONFIG, (json.dumps(record, indent=2) + "\n").encode())])


def find(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a pipeline: a shipped name, a local folder, or a hub id, which is downloaded once."""
    folder = locate(source, revision)
    if not (folder / INDEX).is_file():
        _public().open_foreign(folder, str(source))  # says what is wrong, unless it is a format that unclip.convert reads
    return folder


def _public() -> Any:
    """The table of public names, through which stages and converters, which stand above this file, are reached."""
    import unclip

    return unclip


def class_of(name: str, base: type[T]) -> type[T]:
    """What a class name in a file means: a public name of the package, of a kind of `base`; nothing else.  ValueError."""
    unclip = _public()
    cls = getattr(unclip, name) if name in unclip.PUBLIC else None
    if not (isinstance(cls, type) and issubclass(cls, base)):
        shown = repr(visible(name, 60))
        problem = f"unclip {unclip.__version__} knows no {base.__name__.lower()} {shown}"
        raise ValueError(f"{problem}: was it made by a newer one, or is it a class to pass as classes={{{shown}: ...}}?")
    return cls


def read_provenance(path: Path) -> dict[str, Any]:
    """Where a pipeline's weights come from, as its maker wrote it down; empty when nobody did."""
    return read_json(path) if path.is_file() else {}


def fingerprint(component: object) -> str:
    """A short name for a component's class, settings and weights.

    Of each tensor the ends are read, in half precision: any training changes them, storing them in float16 does not.
    """
    if isinstance(component, Component) and component.kept_fingerprint is not None:
        return component.kept_fingerprint
    digest = hashlib.blake2b(type(component).__name__.encode(), digest_size=8)
    config = component.record() if isinstance(component, Component) else getattr(component, "config", None)
    if isinstance(config, Config):
        settings = msgspec.to_builtins(config)
        for name in ("sampling", "inversion"):  # how it is used by default, not what it is
            settings.pop(name, None)
        digest.update(json.dumps(settings, sort_keys=True).encode())
    if isinstance(component, nn.Module):
        for name, tensor in component.state_dict().items():
            flat = tensor.detach().flatten()
            ends = torch.cat([flat[:16], flat[-16:]]).cpu().to(torch.float16)
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + ends.numpy().tobytes())
    return digest.hexdigest()

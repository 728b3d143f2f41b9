"""Parts on disk: a folder with `config.json` and `model.safetensors`, and an index for a pipeline of them.

Reading is strict: every tensor is used once and has the shape that the config asks for.  Writing goes aside first and is
renamed, so that a folder is there whole or not at all.  No pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import Config

C = TypeVar("C", bound=Config)
P = TypeVar("P", bound="Part[Any]")

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX, PROVENANCE = "unclip.json", "provenance.json"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_UPSAMPLER = re.compile(r"upsampler_[1-9]\d{0,9}")
SHIPPED = Path(__file__).parent / "assets"


class Index(Config, frozen=True, kw_only=True):
    """What a pipeline's folder holds: `parts` maps the name of a subfolder to the class in it."""

    name: str
    parts: dict[str, str]
    candidates: int
    clip_identity: dict[str, int | list[list[float]]]

    def __post_init__(self) -> None:
        missing = [name for name in ("clip", "prior", "decoder") if name not in self.parts]
        others = [name for name in self.parts if name not in ("clip", "prior", "decoder") and not _UPSAMPLER.fullmatch(name)]
        if missing or others:
            wrong = ", ".join([*(f"no {name}" for name in missing), *(f"an unknown part {name!r}" for name in others)])
            raise ValueError(f"a pipeline has the parts clip, prior, decoder and upsampler_<size>; this one has {wrong}")

    @property
    def upsamplers(self) -> list[str]:
        """The upsamplers' names in the order of use, whatever order a tool has left the file in."""
        return sorted((name for name in self.parts if _UPSAMPLER.fullmatch(name)), key=lambda name: int(name[10:]))


class Record(Config, frozen=True, kw_only=True, rename={"kind": "class"}):
    """A part's `config.json`: the public name of its class, and the config that builds it."""

    kind: str
    config: msgspec.Raw


class Part(nn.Module, Generic[C]):
    """A module built from one config, which makes it savable: `Stage(config)`."""

    config_class: ClassVar[type[Config]]
    config: C
    clip_identity: Mapping[str, Any] | None = None  # of the CLIP it was trained with, when it comes from a pipeline

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors` (parameters in `dtype`, when given) into a new `folder`."""
        write_folder(folder, lambda aside: self.write(aside, dtype))

    def write(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        record = {"class": type(self).__name__, "config": msgspec.to_builtins(self.record())}
        (folder / CONFIG).write_text(json.dumps(record, indent=2) + "\n")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        if dtype is not None:  # buffers are statistics: small, and worth their precision
            tensors.update((name, tensors[name].to(dtype)) for name, _ in self.named_parameters())
        _refuse_broken(self, tensors, f"{type(self).__name__} cannot be saved{f' in {dtype}' if dtype else ''}: it")
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", "class": type(self).__name__})

    def record(self) -> Config:
        """The config to store: it must build the same part without looking anything up."""
        return self.config

    @classmethod
    def from_pretrained(cls: type[P], folder: str | Path) -> P:
        """Read a part from its folder; weights arrive in float32."""
        part = load_part(Path(folder), cls)
        assert isinstance(part, cls)
        return part


def load_part(folder: Path, kind: str | type[Part[Any]]) -> Part[Any]:
    """Build the part that `folder` describes and fill it, strictly.  `kind`: a public name of unclip, or the class itself."""
    part_class = _class(kind) if isinstance(kind, str) else kind
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no part: {CONFIG} is missing (a part is a folder with {CONFIG} and {WEIGHTS})")
    record = Record.load(path)
    if record.kind != part_class.__name__:
        raise ValueError(f"{path} describes the class {record.kind!r}; expected {part_class.__name__!r}")
    config = part_class.config_class.from_json(bytes(record.config), source=str(path))
    # On the meta device nothing is allocated or drawn at random; the file's tensors are put in place.
    with torch.device("meta"):
        part = part_class(config)
    stored = part.state_dict()
    if any(name not in stored for name, _ in part.named_buffers()):  # computed by the constructor, in no file
        with torch.random.fork_rng(devices=[]):
            part = part_class(config)
    fill(part, read_tensors(folder / WEIGHTS), source=str(folder / WEIGHTS))
    return part.eval()


def find(source: str | Path) -> Path:
    """The folder of a pipeline: a shipped name, a local folder, or a hub id, which is downloaded once."""
    shipped = sorted(path.parent.name for path in SHIPPED.glob(f"*/{INDEX}"))
    if str(source) in shipped:
        return SHIPPED / str(source)
    folder = Path(source)
    if not folder.is_dir():
        if not _HUB_ID.fullmatch(str(source)):
            known = ", ".join(shipped) or "none"
            raise ValueError(f"no model {str(source)!r}: shipped are {known}; otherwise give a folder or a hub id owner/name")
        folder = _download(str(source))
    if not (folder / INDEX).is_file():
        raise ValueError(f"{source} holds no pipeline: {INDEX} is missing")
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # of the hub's, the HTTP library's and the system's own kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} is no folder here, and the Hugging Face hub did not give it: {reason}") from None


def _class(name: str) -> type[Part[Any]]:
    """What a class name in a checkpoint means: the public names of the package, nothing else."""
    import unclip

    found = getattr(unclip, name) if name in unclip.PUBLIC else None
    if not (isinstance(found, type) and issubclass(found, Part)):
        told = f"unclip {unclip.__version__} knows no part {name!r}"
        raise ValueError(f"{told}: was it made by a newer one, or is it a class to pass as classes={{{name!r}: ...}}?")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, floating ones in float32.

    Copied out of the file's mapped pages: these are not aligned as torch aligns its own, and the last bit of a product depends on
    that; and the file may be replaced while the model lives.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): is it whole?") from None
    types = {name: torch.float32 if tensor.is_floating_point() else tensor.dtype for name, tensor in tensors.items()}
    return {name: tensor.to(types[name], copy=True) for name, tensor in tensors.items()}


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Assign tensors to a module's parameters and buffers: all of them, no others, in the right shapes, finite."""
    expected = module.state_dict()
    both = sorted(set(expected) & set(tensors))
    problems = {
        "missing": sorted(set(expected) - set(tensors)),
        "unexpected": sorted(set(tensors) - set(expected)),
        "of another shape": [
            f"{name} (file {tuple(tensors[name].shape)}, config {tuple(expected[name].shape)})"
            for name in both
            if tensors[name].shape != expected[name].shape
        ],
        "of another type": [
            f"{name} (file {tensors[name].dtype}, config {expected[name].dtype})"
            for name in both
            if not _fits(tensors[name].dtype, expected[name].dtype)
        ],
    }
    if any(problems.values()):
        told = [f"{len(names)} {title}: {_some(names)}" for title, names in problems.items() if names]
        raise ValueError(f"{source} does not fit its config: {'; '.join(told)}")
    _refuse_broken(module, tensors, source)
    module.load_state_dict({name: tensors[name].to(expected[name].dtype) for name in both}, strict=True, assign=True)


def _fits(given: torch.dtype, wanted: torch.dtype) -> bool:
    return given == wanted or (given.is_floating_point and wanted.is_floating_point)


def _refuse_broken(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Weights must be finite.  (Buffers need not: statistics that were never measured are NaN, and their part knows.)"""
    broken = [name for name, _ in module.named_parameters() if not torch.isfinite(tensors[name]).all()]
    if broken:
        reason = "the file, its type or its training is broken"
        raise ValueError(f"{source} holds NaN or infinite weights in {_some(broken)}: {reason}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def read_provenance(path: Path) -> dict[str, Any]:
    """Where a pipeline's weights come from, as its maker wrote it down; empty when nobody did."""
    if not path.is_file():
        return {}
    try:
        provenance = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(provenance, dict):
        raise ValueError(f"{path} must hold an object, not a {type(provenance).__name__}")
    return provenance


def fingerprint(part: object) -> str:
    """A short name for a part's class, settings and weights.

    Of each tensor the ends are read, in half precision: any training changes them, storing them in float16 does not.
    """
    digest = hashlib.blake2b(type(part).__name__.encode(), digest_size=8)
    config = part.record() if isinstance(part, Part) else getattr(part, "config", None)
    if isinstance(config, Config):
        settings = msgspec.to_builtins(config)
        settings.pop("sampling", None)  # how it is used by default, not what it is
        digest.update(json.dumps(settings, sort_keys=True).encode())
    if isinstance(part, nn.Module):
        for name, tensor in part.state_dict().items():
            flat = tensor.detach().flatten()
            ends = torch.cat([flat[:16], flat[-16:]]).cpu().to(torch.float16)
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + ends.numpy().tobytes())
    return digest.hexdigest()


def write_folder(folder: str | Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a folder beside the target, then rename: the target appears whole or not at all."""
    folder = Path(folder).absolute()
    try:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(f"{folder} exists already and is not an empty folder: choose a new one, nothing is overwritten")
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror or error}") from None
    try:
        write(aside)
        for path in aside.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors writes for its owner alone
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        aside.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    except (OSError, SafetensorError) as error:  # a full disk reaches us as either
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"could not write {folder}: {reason}; nothing was left there") from None
    finally:
        with suppress(OSError):
            shutil.rmtree(aside)

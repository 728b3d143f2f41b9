"""Parts on disk: a folder with `config.json` and `model.safetensors`, and an index for a pipeline of them.

Reading is strict: every tensor is used once and has the shape that the config asks for.  Writing goes aside first and is
renamed, so that a folder is there whole or not at all.  No pickle.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unclip.config import Config

C = TypeVar("C", bound=Config)
P = TypeVar("P", bound="Part[Any]")

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX, PROVENANCE = "unclip.json", "provenance.json"
SHIPPED = Path(__file__).parent / "assets"


class Index(Config, frozen=True, kw_only=True):
    """What a pipeline's folder holds: `parts` maps the name of a subfolder to the class in it, in the order of use."""

    name: str
    parts: dict[str, str]
    candidates: int
    clip_identity: dict[str, Any]


class Part(nn.Module, Generic[C]):
    """A module built from one config, which makes it savable: `Stage(config)`."""

    config_class: ClassVar[type[Config]]
    config: C

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
    try:
        record = json.loads(path.read_text())
        name, config = record["class"], json.dumps(record["config"])
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no part's config (an object with 'class' and 'config'): {error!r}") from None
    if name != part_class.__name__:
        raise ValueError(f"{path} describes the class {name!r}; expected {part_class.__name__!r}")
    config = part_class.config_class.from_json(config, source=str(path))
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
    if folder.is_dir():
        if not (folder / INDEX).is_file():
            raise ValueError(f"{folder} holds no pipeline: {INDEX} is missing")
        return folder
    if len(folder.parts) != 2 or folder.is_absolute():
        raise ValueError(
            f"no model {str(source)!r}: shipped are {', '.join(shipped) or 'none'}; "
            "otherwise give a folder or a hub id owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{source} is no folder here and could not be had from the hub: {error}") from None


def _class(name: str) -> type[Part[Any]]:
    """What a class name in a checkpoint means: the public names of the package, nothing else."""
    import unclip

    found = getattr(unclip, name) if name in unclip.PUBLIC else None
    if not (isinstance(found, type) and issubclass(found, Part)):
        raise ValueError(f"this unclip ({unclip.__version__}) knows no part {name!r}; was the checkpoint made by a newer one?")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, floating ones in float32."""
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): is it whole?") from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Assign tensors to a module's parameters and buffers: all of them, no others, in the right shapes, finite."""
    expected = module.state_dict()
    missing = sorted(set(expected) - set(tensors))
    extra = sorted(set(tensors) - set(expected))
    shapes = [
        f"{name}: file {tuple(tensors[name].shape)}, config {tuple(expected[name].shape)}"
        for name in sorted(set(expected) & set(tensors))
        if tensors[name].shape != expected[name].shape
    ]
    if missing or extra or shapes:
        lines = [f"{source} does not fit its config:"]
        for title, names in (("missing", missing), ("unexpected", extra), ("of another shape", shapes)):
            if names:
                more = f" and {len(names) - 12} more" if len(names) > 12 else ""
                lines.append(f"  {len(names)} {title}: {', '.join(names[:12])}{more}")
        raise ValueError("\n".join(lines))
    parameters = dict(module.named_parameters())
    broken = [name for name in parameters if not torch.isfinite(tensors[name]).all()]
    if broken:
        raise ValueError(f"{source} holds NaN or infinite weights in {', '.join(broken[:6])}: the file or its training is broken")
    module.load_state_dict(dict(tensors), strict=True, assign=True)


def write_folder(folder: str | Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a folder beside the target, then rename: the target appears whole or not at all."""
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} exists already and is not empty: choose a new folder, nothing is overwritten")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ValueError(f"cannot write to {folder.parent}: {error.strerror}") from None
    try:
        write(aside)
        for path in aside.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        aside.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    except OSError as error:
        raise ValueError(f"could not write {folder}: {error.strerror or error}; nothing was left there") from None
    finally:
        with suppress(OSError):
            shutil.rmtree(aside)


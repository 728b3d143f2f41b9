"""Parts on disk: a folder with `config.json` and `model.safetensors`, and an index for a pipeline of them.

Reading is strict: every tensor is used once and has the shape that the config asks for.  Writing goes aside first and is
renamed, so that a folder is there whole or not at all.  No pickle.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import Config
from .files import read_json, write_folder

C = TypeVar("C", bound=Config)
P = TypeVar("P", bound="Part[Any]")

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 2  # of config.json and the names of tensors
INDEX, PROVENANCE = "unclip.json", "provenance.json"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
PRIORS = ("prior", "ar_prior")  # beside the prior there may be an autoregressive one, to be asked for
# Of pipelines: the parts that each kind must have, and all but upsamplers that it may have.
KINDS = {"UnCLIP": (("clip", "decoder"), ("clip", *PRIORS, "decoder")), "Cascade": (("decoder",), ("decoder", "guide"))}
_UPSAMPLER = re.compile(r"upsampler_[1-9]\d{0,9}")
SHIPPED = Path(__file__).parent / "assets"
MAPPED_AT_ONCE = 64 * 2**20  # bytes of a file


class Index(Config, frozen=True, kw_only=True):
    """What a pipeline's folder holds: `parts` maps the name of a subfolder to the class in it."""

    kind: Literal["UnCLIP", "Cascade"] = "UnCLIP"
    name: str
    parts: dict[str, str]
    candidates: int = 1
    clip_identity: dict[str, int | list[list[float]]] = {}

    def __post_init__(self) -> None:
        needed, known = KINDS[self.kind]
        missing = [name for name in needed if name not in self.parts]
        others = [name for name in self.parts if name not in known and not _UPSAMPLER.fullmatch(name)]
        if self.kind == "UnCLIP" and not self.clip_identity:
            raise ValueError("clip_identity is missing: which CLIP these parts were trained with")
        if missing or others:
            wrong = ", ".join([*(f"no {name}" for name in missing), *(f"an unknown part {name!r}" for name in others)])
            rest = ", ".join(["upsampler_<size>", *(name for name in known if name not in needed)])
            told = f"a pipeline of the kind {self.kind} has the parts {' and '.join(needed)}, and may have {rest}"
            raise ValueError(f"{told}; this one has {wrong}")

    @property
    def upsamplers(self) -> list[str]:
        """The upsamplers' names in the order of use, whatever order a tool has left the file in."""
        return sorted((name for name in self.parts if _UPSAMPLER.fullmatch(name)), key=lambda name: int(name[10:]))


class Record(Config, frozen=True, kw_only=True, rename={"kind": "class"}):
    """A part's `config.json`: the public name of its class, and the config that builds it."""

    kind: str
    config: msgspec.Raw
    format: int = 1  # absent in what unclip 0.1.0 wrote


class Part(nn.Module, Generic[C]):
    """A module built from one config, which makes it savable: `Stage(config)`."""

    config_class: ClassVar[type[Config]]
    config: C
    clip_identity: Mapping[str, Any] | None = None  # of the CLIP it was trained with, when it comes from a pipeline
    offload: Any = None  # the unclip.offload.Offload that reads its weights when it is used; None = they are here
    kept_fingerprint: str | None = None  # of weights that are not here
    offload_groups: tuple[str, ...] = ()  # names of submodules of which a sampling step runs one

    @property
    def device(self) -> torch.device:
        where: torch.device = next(self.parameters()).device if self.offload is None else self.offload.device
        return where

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors` (parameters in `dtype`, when given) into a new `folder`."""
        write_folder(folder, lambda aside: self.write(aside, dtype))

    def write(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        record = {"class": type(self).__name__, "format": FORMAT, "config": msgspec.to_builtins(self.record())}
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
    def from_pretrained(cls: type[P], folder: str | Path, dtype: torch.dtype | None = None) -> P:
        """Read a part from its folder; parameters arrive in `dtype`, float32 when not given."""
        part = load_part(Path(folder), cls, dtype)
        assert isinstance(part, cls)
        return part


class Stored(NamedTuple):
    """A pipeline on disk, of which nothing is loaded yet: calling an entry of `parts` loads that part."""

    folder: Path
    name: str
    parts: dict[str, Callable[[], Part[Any]]]  # clip, prior, perhaps ar_prior, decoder, upsampler_<size> ascending
    candidates: int
    provenance: dict[str, Any]
    clip_identity: dict[str, Any] | None  # None: not recorded, the CLIP of these parts is taken at its word
    kind: str = "UnCLIP"


def open_pipeline(
    source: str | Path, classes: Mapping[str, type[Part[Any]]] | None = None, dtype: torch.dtype | None = None
) -> Stored:
    """A pipeline by shipped name, folder or hub id, in this package's format or one that `unclip.convert` reads.

    classes: what class names of the checkpoint mean that are not unclip's own.  Parameters arrive in `dtype` (None =
    float32), buffers in their own types.
    """
    folder = _locate(source)
    if not (folder / INDEX).is_file():
        return _public().open_foreign(folder, str(source), dtype)
    index, known = Index.load(folder / INDEX), dict(classes or {})
    names = [name for name in ("clip", *PRIORS, "decoder", "guide") if name in index.parts] + index.upsamplers
    kinds = {name: known.get(index.parts[name], index.parts[name]) for name in names}
    return Stored(
        folder=folder,
        name=index.name,
        parts={name: partial(load_part, folder / name, kind, dtype) for name, kind in kinds.items()},
        candidates=index.candidates,
        provenance=read_provenance(folder / PROVENANCE),
        clip_identity=dict(index.clip_identity),
        kind=index.kind,
    )


def kind_of(source: str | Path) -> str:
    """Which kind of pipeline a shipped name, folder or hub id holds; other formats hold UnCLIPs."""
    path = _locate(source) / INDEX
    return Index.load(path).kind if path.is_file() else "UnCLIP"


def load_part(folder: Path, kind: str | type[Part[Any]], dtype: torch.dtype | None = None) -> Part[Any]:
    """Build the part that `folder` describes and fill it, strictly.  `kind`: a public name of unclip, or the class itself."""
    part_class = _class(kind) if isinstance(kind, str) else kind
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no part: {CONFIG} is missing (a part is a folder with {CONFIG} and {WEIGHTS})")
    record = Record.load(path)
    if record.kind != part_class.__name__:
        raise ValueError(f"{path} describes the class {record.kind!r}; expected {part_class.__name__!r}")
    if record.format > FORMAT:
        raise ValueError(f"{path} has format {record.format}, and this unclip reads up to {FORMAT}: it was made by a newer one")
    raw = bytes(record.config)
    if record.format < FORMAT:
        raw = msgspec.json.encode(_public().upgrade_config(record.kind, msgspec.json.decode(raw)))
    config = part_class.config_class.from_json(raw, source=str(path))
    part = build(part_class, config, dtype)
    types = {name: tensor.dtype for name, tensor in part.state_dict().items()}
    # Today's name -> the one in the file.
    names = {name: _public().older_name(record.kind, name) if record.format < FORMAT else name for name in types}
    tensors = read_tensors(folder / WEIGHTS, {names[name]: dtype for name, dtype in types.items()})
    today = {old: name for name, old in names.items()}
    fill(part, {today.get(name, name): tensor for name, tensor in tensors.items()}, source=str(folder / WEIGHTS))
    return part.eval()


def build(part_class: type[P], config: Config, dtype: torch.dtype | None = None) -> P:
    """A part whose parameters, in `dtype`, wait on the meta device to be filled; its buffers are real."""
    dtype = dtype or torch.float32
    with torch.random.fork_rng(devices=[]):
        try:
            with _parameters_on_meta(dtype):
                return part_class(config)
        except NotImplementedError:  # open_clip moves the models that it knows by name, and nothing moves off meta
            part = part_class(config)
    for parameter in part.parameters():
        parameter.data = parameter.data.to(dtype)
    return part


@contextmanager
def _parameters_on_meta(dtype: torch.dtype) -> Iterator[None]:
    """Parameters are dropped as soon as a module registers them, so that at most one exists and none is initialised."""

    def drop(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None:
            return None
        return nn.Parameter(torch.empty_like(parameter, dtype=dtype, device="meta"), parameter.requires_grad)

    hook = nn.modules.module.register_module_parameter_registration_hook(drop)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def find(source: str | Path) -> Path:
    """The folder of a pipeline: a shipped name, a local folder, or a hub id, which is downloaded once."""
    folder = _locate(source)
    if not (folder / INDEX).is_file():
        _public().open_foreign(folder, str(source))  # says what is wrong, unless it is a format that unclip.convert reads
    return folder


def _locate(source: str | Path) -> Path:
    shipped = sorted(path.parent.name for path in SHIPPED.glob(f"*/{INDEX}"))
    if str(source) in shipped:
        return SHIPPED / str(source)
    folder = Path(source)
    if not folder.is_dir():
        if not _HUB_ID.fullmatch(str(source)):
            known = ", ".join(shipped) or "none"
            raise ValueError(f"no model {str(source)!r}: shipped are {known}; otherwise give a folder or a hub id owner/name")
        folder = download(str(source), ["*.json", "*.safetensors"])
        # Old repositories hold pickles only; unclip.convert reads their tensors without running anything in them.
        bare = [part.name for part in folder.iterdir() if (part / CONFIG).is_file() and not any(part.glob("*.safetensors"))]
        if bare:
            folder = download(str(source), [f"{name}/*.bin" for name in sorted(bare)])
    return folder


def download(name: str, patterns: list[str]) -> Path:
    """The folder of a hub repository's files that match, from the cache where they are there."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # of the hub's, the HTTP library's and the system's own kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        told = f"{name} is no folder here, and the Hugging Face hub did not give it: {reason}"
        raise ValueError(f"{told} (without a network, give the path of a folder that holds its files)") from None


def _public() -> Any:
    """The table of public names, through which stages and converters, which stand above this file, are reached."""
    import unclip

    return unclip


def _class(name: str) -> type[Part[Any]]:
    """What a class name in a checkpoint means: the public names of the package, nothing else."""
    unclip = _public()
    found = getattr(unclip, name) if name in unclip.PUBLIC else None
    if not (isinstance(found, type) and issubclass(found, Part)):
        told = f"unclip {unclip.__version__} knows no part {name!r}"
        raise ValueError(f"{told}: was it made by a newer one, or is it a class to pass as classes={{{name!r}: ...}}?")
    return found


def read_tensors(path: Path, types: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """All tensors of a safetensors file, floating ones in the type that `types` gives their name (else float32).

    Copied out of the file's mapped pages: these are not aligned as torch aligns its own, and the last bit of a product depends on
    that; and the file may be replaced while the model lives.  Mapped pages stay in memory while the file is open, so it is
    opened again now and then.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        while len(tensors) < len(names):
            mapped = 0
            with safe_open(path, framework="pt") as file:
                for name in names[len(tensors) :]:
                    tensor = file.get_tensor(name)
                    wanted = types.get(name, torch.float32)
                    floating = wanted if wanted.is_floating_point else torch.float32
                    tensors[name] = tensor.to(floating if tensor.is_floating_point() else tensor.dtype, copy=True)
                    mapped += tensor.nbytes
                    if mapped > MAPPED_AT_ONCE:
                        break
                del tensor
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): is it whole?") from None
    return tensors


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Assign tensors to a module's parameters and buffers: all of them, no others, in the right shapes, finite."""
    expected = module.state_dict()
    both = sorted(set(expected) & set(tensors))
    problems: dict[str, Sequence[str]] = {
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
    refuse_problems(source, problems)
    _refuse_broken(module, tensors, source)
    module.load_state_dict({name: tensors[name].to(expected[name].dtype) for name in both}, strict=True, assign=True)


def refuse_problems(source: str, problems: Mapping[str, Sequence[str]]) -> None:
    """ValueError that lists what is wrong with a file's tensors, unless nothing is."""
    if any(problems.values()):
        told = [f"{len(names)} {title}: {_some(names)}" for title, names in problems.items() if names]
        raise ValueError(f"{source} does not fit its config: {'; '.join(told)}")


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
    return read_json(path) if path.is_file() else {}


def fingerprint(part: object) -> str:
    """A short name for a part's class, settings and weights.

    Of each tensor the ends are read, in half precision: any training changes them, storing them in float16 does not.
    """
    if isinstance(part, Part) and part.kept_fingerprint is not None:
        return part.kept_fingerprint
    digest = hashlib.blake2b(type(part).__name__.encode(), digest_size=8)
    config = part.record() if isinstance(part, Part) else getattr(part, "config", None)
    if isinstance(config, Config):
        settings = msgspec.to_builtins(config)
        for name in ("sampling", "inversion"):  # how it is used by default, not what it is
            settings.pop(name, None)
        digest.update(json.dumps(settings, sort_keys=True).encode())
    if isinstance(part, nn.Module):
        for name, tensor in part.state_dict().items():
            flat = tensor.detach().flatten()
            ends = torch.cat([flat[:16], flat[-16:]]).cpu().to(torch.float16)
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + ends.numpy().tobytes())
    return digest.hexdigest()

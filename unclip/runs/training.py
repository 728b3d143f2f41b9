"""A training as one JSON file: which stage, from what weights, on what data, with what settings.

What `unclip train` and `unclip plan` read, and `unclip config` writes:

    {"stage": "prior", "model": {...}, "clip": "emoji", "data": {"source": "pictures"}, "train": {"steps": 5000, ...}}
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from decoder import Decoder, DecoderTask
from prior import ARPrior, ContrastivePrior, DiffusionPrior, PriorTask
from unclip import checkpoint
from unclip.clip import CLIP, CLIPConfig, CLIPTask
from unclip.clip.identity import identity, same_identity
from unclip.clip.task import CLIPTaskConfig
from unclip.config import Config
from unclip.data.open import DataConfig
from unclip.data.order import Data
from unclip.files import read_json, write_files
from unclip.training import TrainConfig
from unclip.training.task import Task
from unclip.types import Text
from upsamplers import Upsampler, UpsamplerTask

from . import record
from .complete import SAMPLES, complete, embeddings_of, measure, resolved
from .teacher import check_embeddings

Stage = Literal["clip", "prior", "ar_prior", "contrastive_prior", "decoder", "upsampler"]
CLASSES: dict[str, type[checkpoint.Part[Any]]] = {
    "clip": CLIP,
    "prior": DiffusionPrior,
    "ar_prior": ARPrior,
    "contrastive_prior": ContrastivePrior,
    "decoder": Decoder,
    "upsampler": Upsampler,
}
TAUGHT = ("prior", "ar_prior", "contrastive_prior", "decoder")  # by a frozen CLIP
MODEL, IDENTITY = "model", "clip_identity.json"  # in the run folder
OPEN_CLIP = "open_clip:"


class Training(Config, frozen=True, kw_only=True):
    """Everything that a training depends on.  Either `model`, a part's config, for new weights, or `start`, to train on."""

    stage: Stage
    data: DataConfig
    train: TrainConfig
    model: dict[str, Any] | None = None
    # What to train on: a pipeline (its part of this stage, or another as "emoji:upsampler_256"), a part's folder, a run folder.
    start: str | None = None
    # The frozen teacher: a pipeline's, a part's folder, a run folder, or "open_clip:ViT-B-32:laion2b_s34b_b79k", also
    # "open_clip:hf-hub:ORGANISATION/NAME" and "open_clip:local-dir:FOLDER".
    clip: str | None = None
    held_out: DataConfig | None = None  # examined on, never trained on
    task: dict[str, Any] = {}  # settings of the task: those of a CLIP's training

    def __post_init__(self) -> None:
        if self.stage not in get_args(Stage):
            raise ValueError(f"the stage is {self.stage!r}; it must be one of {', '.join(get_args(Stage))}")
        if (self.model is None) == (self.start is None):
            raise ValueError("give either model, the config of new weights, or start, what to train on; exactly one of them")
        if self.stage in TAUGHT and self.clip is None:
            raise ValueError(f"a {self.stage} learns from the embeddings of a CLIP: name it, for instance clip='emoji'")
        if self.stage not in TAUGHT and self.clip is not None:
            raise ValueError(f"a {self.stage} is trained without another CLIP: leave clip out")
        if self.task and self.stage != "clip":
            raise ValueError(f"task has settings of a CLIP's training; a {self.stage} has none")


class Built(NamedTuple):
    task: Task
    data: Data
    held_out: Data | None
    clip: CLIP | None


def build(training: Training, device: torch.device | str = "cpu", say: Any = print) -> Built:
    """The task with its frozen teacher, and the data.  `say` tells what was missing in a start and has been made."""
    clip = open_clip(training.clip).to(device).requires_grad_(False) if training.clip else None
    config = None if training.start else config_of(training)
    part: Any = _start(training, clip) if config is None else None
    described = part.config if part else config
    data = _open(training, training.data, described, clip)
    held_out = _open(training, training.held_out, described, clip) if training.held_out else None

    @functools.cache
    def known() -> tuple[Tensor, Text]:
        assert clip is not None  # only what is taught asks
        return embeddings_of(data, clip, SAMPLES)

    if config is not None:
        part = _fresh(training, resolved(config, known))
    if training.stage == "clip":
        settings = CLIPTaskConfig.from_json(json.dumps(training.task), source="task")
        return Built(CLIPTask(part, settings), data, held_out, None)
    if training.stage == "upsampler":
        return Built(UpsamplerTask(part), data, held_out, None)
    complete(part, known, clip, fresh=training.start is None, say=say)
    task = DecoderTask(part, clip) if isinstance(part, Decoder) else PriorTask(part, clip)
    return Built(task, data, held_out, clip)


def finish(training: Training, built: Built, ema: dict[str, Tensor], run_dir: Path) -> Path:
    """Measure what sampling needs, and put the averaged weights as a part into the run folder, in place of older ones."""
    made: Any = built.task.model
    part = type(made)(made.config)  # the trained one may be shared out over processes
    part.load_state_dict(ema)
    part.eval()
    if built.clip is not None:
        measure(part.to(built.clip.device), built.data, built.clip)
        write_files([(run_dir / IDENTITY, (json.dumps(identity(built.clip)) + "\n").encode())])
    record.write(training, run_dir)
    aside = run_dir / f".new-{MODEL}"
    shutil.rmtree(aside, ignore_errors=True)
    part.save_pretrained(aside)
    shutil.rmtree(run_dir / MODEL, ignore_errors=True)
    aside.rename(run_dir / MODEL)
    return run_dir / MODEL


def open_clip(source: str) -> CLIP:
    """A CLIP by what `Training.clip` may say."""
    if source.startswith(OPEN_CLIP):
        return CLIP(named_clip(source)).eval()
    part = open_part(source, "clip")
    if not isinstance(part, CLIP):
        raise ValueError(f"{source} holds a {type(part).__name__}, not a CLIP")
    return part


def named_clip(source: str) -> CLIPConfig:
    """What "open_clip:NAME:TAG" means.  Models of a hub or a folder have colons in their names, and one set of weights."""
    name = source.removeprefix(OPEN_CLIP)
    if name.startswith(("hf-hub:", "local-dir:")):
        return CLIPConfig(name=name, pretrained="default")
    name, _, tag = name.partition(":")
    return CLIPConfig(name=name, pretrained=tag or None)


def open_part(source: str, name: str) -> checkpoint.Part[Any]:
    """A part of a pipeline, or the one in a part's or run's folder, which then knows its CLIP."""
    source, part_name = _named(source, name)
    folder = Path(source)
    if (folder / MODEL / checkpoint.CONFIG).is_file():
        part = _load(folder / MODEL)
        if (folder / IDENTITY).is_file():
            part.clip_identity = read_json(folder / IDENTITY)
        return part
    if (folder / checkpoint.CONFIG).is_file() and not (folder / checkpoint.INDEX).is_file():
        return _load(folder)
    stored = checkpoint.open_pipeline(source)
    if part_name not in stored.parts:
        raise ValueError(f"{source} has no part {part_name!r}; it has {', '.join(stored.parts)}: name one as {source}:PART")
    part = stored.parts[part_name]()
    part.clip_identity = stored.clip_identity
    return part


def _named(source: str, name: str) -> tuple[str, str]:
    """ "emoji:upsampler_256" -> its two halves."""
    if not Path(source).exists() and ":" in source:
        source, _, name = source.rpartition(":")
    return source, name


def _load(folder: Path) -> checkpoint.Part[Any]:
    return checkpoint.load_part(folder, checkpoint.Record.load(folder / checkpoint.CONFIG).kind)


def config_of(training: Training) -> Config:
    return CLASSES[training.stage].config_class.from_json(json.dumps(training.model), source="model")


def _fresh(training: Training, config: Config) -> Any:
    """New weights from the training's own seed, without touching torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.train.seed)
        made: Any = CLASSES[training.stage]
        return made(config)


def _start(training: Training, clip: CLIP | None) -> Any:
    assert training.start is not None
    part = open_part(training.start, training.stage)
    kind = CLASSES[training.stage]
    if not isinstance(part, kind):
        raise ValueError(f"{training.start} is a {type(part).__name__}; the stage {training.stage} trains a {kind.__name__}")
    if clip is not None and part.clip_identity is not None:
        same_identity(part.clip_identity, identity(clip))
    return part


def _open(training: Training, data: DataConfig, config: Any, clip: CLIP | None) -> Data:
    likewise = None if holds_embeddings(data) else training.data.size  # held-out pictures are read as the others are
    opened = data.replace(size=data.size or likewise or size_of(training, data, config, clip)).open()
    if clip is not None and training.clip:
        check_embeddings(data, opened, clip, training.clip)
    return opened


def size_of(training: Training, data: DataConfig, config: Any, clip: CLIP | None) -> int | None:
    """The side of the pictures read, in pixels, where the data do not say.  None: embeddings are all that is read."""
    if training.stage == "clip":
        return int(config.architecture.vision.image_size) if config.architecture else _named_size(config.name)
    if training.stage == "upsampler":
        raise ValueError('data.size is missing: the side of the pictures that the upsampler shall make, for instance "size": 256')
    embedded = data.embeddings is not None or holds_embeddings(data)
    if clip is not None and not embedded and not clip.image_size:
        told = f"the CLIP {training.clip} has no image tower, so it cannot embed the pictures to learn from"
        raise ValueError(f"{told}: take weights that have one, or give data.embeddings")
    if training.stage == "decoder":
        return int(config.image_size) if embedded or clip is None else max(int(config.image_size), clip.image_size)
    return None if embedded or clip is None else clip.image_size


def _named_size(name: str) -> int:
    """What a model that open_clip knows by name sees; those of repositories tell only once they are loaded."""
    from open_clip import get_model_config

    known = get_model_config(name)
    if known is None:
        raise ValueError(f'data.size is missing: the side of the pictures that {name} sees, for instance "size": 224')
    size = known["vision_cfg"].get("image_size", 224)
    return int(size if isinstance(size, int) else size[0])


def holds_embeddings(data: DataConfig) -> bool:
    if not isinstance(data.source, str):
        return all(one.embeddings is not None for one in data.source)
    from unclip.data.embedding_shards import INDEX

    return (Path(data.source) / INDEX).is_file() or data.source.endswith(".safetensors")

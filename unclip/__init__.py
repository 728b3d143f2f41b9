# ruff: noqa: F401 (the TYPE_CHECKING block is for tools)
"""unclip: unCLIP (DALL-E 2) for PyTorch, in components that work alone or together.

Everything public is importable from here.  Names are resolved on first use, so that `import unclip` imports neither torch nor
any stage; the same table tells `unclip.checkpoint` which class a name in a checkpoint means.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from decoder import Classifier, ClassifierConfig, ClassifierTask, Decoder, DecoderConfig, DecoderTask
    from prior import (
        ARPrior,
        ARPriorConfig,
        ARSampling,
        ContrastivePrior,
        ContrastivePriorConfig,
        DiffusionPrior,
        PriorConfig,
        PriorTask,
    )
    from unclip.clip import CLIP, CLIPConfig, CLIPTask
    from unclip.clip.rerank import rerank
    from unclip.conditions import Caption, Conditions, ImageEmbedding, Known, Label
    from unclip.convert import foreign_kind, open_foreign
    from unclip.convert.legacy import older_name, upgrade_config
    from unclip.data.open import DataConfig, SourceConfig, open_data
    from unclip.diffusion.schedule import NoiseSchedule, ScheduleConfig
    from unclip.editing.latent import Latent
    from unclip.editing.pca import PCA
    from unclip.editing.result import Edit
    from unclip.editing.slerp import slerp
    from unclip.nn.unet import UNet, UNetConfig
    from unclip.pipelines.cascade import Cascade
    from unclip.pipelines.generation import Generation
    from unclip.pipelines.load import from_pretrained
    from unclip.pipelines.preview import Preview
    from unclip.pipelines.unclip import UnCLIP
    from unclip.randomness import Noise
    from unclip.runs import Training
    from unclip.sampling import Inversion, Sampling
    from unclip.training import TrainConfig, train
    from unclip.training.task import Task
    from unclip.types import Batch, Cancelled, Cond, GuideModel, Losses, Prediction, Step, Text, best_of
    from upsamplers import CorruptionConfig, Upsampler, UpsamplerConfig, UpsamplerTask

PUBLIC = {
    "CLIP": "unclip.clip",
    "CLIPConfig": "unclip.clip",
    "CLIPTask": "unclip.clip",
    "rerank": "unclip.clip.rerank",
    "ARPrior": "prior",
    "ARPriorConfig": "prior",
    "ARSampling": "prior",
    "ContrastivePrior": "prior",
    "ContrastivePriorConfig": "prior",
    "DiffusionPrior": "prior",
    "PriorConfig": "prior",
    "PriorTask": "prior",
    "Decoder": "decoder",
    "DecoderConfig": "decoder",
    "DecoderTask": "decoder",
    "Classifier": "decoder",
    "ClassifierConfig": "decoder",
    "ClassifierTask": "decoder",
    "Upsampler": "upsamplers",
    "UpsamplerConfig": "upsamplers",
    "UpsamplerTask": "upsamplers",
    "CorruptionConfig": "upsamplers",
    "Cascade": "unclip.pipelines.cascade",
    "UnCLIP": "unclip.pipelines.unclip",
    "from_pretrained": "unclip.pipelines.load",
    "Preview": "unclip.pipelines.preview",
    "Caption": "unclip.conditions",
    "Conditions": "unclip.conditions",
    "ImageEmbedding": "unclip.conditions",
    "Known": "unclip.conditions",
    "Label": "unclip.conditions",
    "UNet": "unclip.nn.unet",
    "UNetConfig": "unclip.nn.unet",
    "PCA": "unclip.editing.pca",
    "NoiseSchedule": "unclip.diffusion.schedule",
    "ScheduleConfig": "unclip.diffusion.schedule",
    "DataConfig": "unclip.data.open",
    "SourceConfig": "unclip.data.open",
    "open_data": "unclip.data.open",
    "Noise": "unclip.randomness",
    "Training": "unclip.runs",
    "TrainConfig": "unclip.training",
    "train": "unclip.training",
    "Batch": "unclip.types",
    "Cancelled": "unclip.types",
    "GuideModel": "unclip.types",
    "Step": "unclip.types",
    "Cond": "unclip.types",
    "Edit": "unclip.editing.result",
    "Generation": "unclip.pipelines.generation",
    "Inversion": "unclip.sampling",
    "Latent": "unclip.editing.latent",
    "Losses": "unclip.types",
    "Prediction": "unclip.types",
    "Sampling": "unclip.sampling",
    "Task": "unclip.training.task",
    "Text": "unclip.types",
    "slerp": "unclip.editing.slerp",
    "best_of": "unclip.types",
    "open_foreign": "unclip.convert",
    "foreign_kind": "unclip.convert",
    "older_name": "unclip.convert.legacy",
    "upgrade_config": "unclip.convert.legacy",
}

RENAMED = {"TextEncoderConfig": "Caption"}  # former names, for one version

__all__ = ["__version__", *PUBLIC]  # noqa: PLE0604 (the table is the list)


def __getattr__(name: str) -> Any:
    if name in RENAMED:
        from .deprecation import warn

        warn(f"unclip.{name}", RENAMED[name])
        return __getattr__(RENAMED[name])
    if name not in PUBLIC:
        raise AttributeError(f"module 'unclip' has no attribute {name!r}; it has {', '.join(sorted(PUBLIC))}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])

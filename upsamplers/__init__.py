"""Upsamplers: 64 -> 256 -> 1024 pixels (unCLIP 2.2)."""

from .config import UpsamplerConfig
from .corruption import CorruptionConfig
from .task import UpsamplerTask
from .upsampler import Upsampler

__all__ = ["CorruptionConfig", "Upsampler", "UpsamplerConfig", "UpsamplerTask"]

"""The decoder: CLIP image embedding, caption or label -> 64-pixel image."""

from .config import DecoderConfig
from .decoder import Decoder
from .task import DecoderTask

__all__ = ["Decoder", "DecoderConfig", "DecoderTask"]

"""The decoder: CLIP image embedding (and caption) -> 64-pixel image."""

from .decoder import Decoder, DecoderConfig
from .task import DecoderTask
from .text_encoder import TextEncoderConfig

__all__ = ["Decoder", "DecoderConfig", "DecoderTask", "TextEncoderConfig"]

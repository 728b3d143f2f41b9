"""The decoder: CLIP image embedding, caption or label -> 64-pixel image; and a classifier, by whose gradient it is guided."""

from .classifier import Classifier, ClassifierConfig, ClassifierTask
from .config import DecoderConfig
from .decoder import Decoder
from .task import DecoderTask

__all__ = ["Classifier", "ClassifierConfig", "ClassifierTask", "Decoder", "DecoderConfig", "DecoderTask"]

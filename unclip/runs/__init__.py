"""What a training is, from its configuration to the finished component."""

from .build import Built, build
from .components import load_clip, open_component
from .finish import finish
from .train import train
from .training import Training

__all__ = ["Built", "Training", "build", "finish", "load_clip", "open_component", "train"]

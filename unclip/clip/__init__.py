"""CLIP: any open_clip model behind ImageTextEncoder, its preprocessing, identity and contrastive training."""

from .encoder import CLIP, CLIPConfig
from .task import CLIPTask, CLIPTaskConfig

__all__ = ["CLIP", "CLIPConfig", "CLIPTask", "CLIPTaskConfig"]

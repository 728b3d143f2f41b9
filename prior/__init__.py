"""P(z_i | y): priors, which draw CLIP image embeddings for captions."""

from .ar_network import ARNetwork, ARNetworkConfig
from .ar_prior import ARPrior, ARPriorConfig, ARSampling
from .diffusion_prior import DiffusionPrior, PriorConfig
from .network import PriorNetwork, PriorNetworkConfig
from .quantizer import Quantizer, QuantizerConfig
from .task import PriorTask

__all__ = [
    "ARNetwork",
    "ARNetworkConfig",
    "ARPrior",
    "ARPriorConfig",
    "ARSampling",
    "DiffusionPrior",
    "PriorConfig",
    "PriorNetwork",
    "PriorNetworkConfig",
    "PriorTask",
    "Quantizer",
    "QuantizerConfig",
]

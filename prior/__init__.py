"""P(z_i | y): priors, which draw CLIP image embeddings for captions."""

from .ar_network import ARNetwork, ARNetworkConfig
from .ar_prior import ARPrior, ARPriorConfig, ARSampling
from .contrastive_prior import ContrastivePrior, ContrastivePriorConfig
from .diffusion_prior import DiffusionPrior, PriorConfig
from .linear_prior import LinearPrior, LinearPriorConfig
from .network import PriorNetwork, PriorNetworkConfig
from .quantizer import Quantizer, QuantizerConfig
from .task import PriorTask

__all__ = [
    "ARNetwork",
    "ARNetworkConfig",
    "ARPrior",
    "ARPriorConfig",
    "ARSampling",
    "ContrastivePrior",
    "ContrastivePriorConfig",
    "DiffusionPrior",
    "LinearPrior",
    "LinearPriorConfig",
    "PriorConfig",
    "PriorNetwork",
    "PriorNetworkConfig",
    "PriorTask",
    "Quantizer",
    "QuantizerConfig",
]

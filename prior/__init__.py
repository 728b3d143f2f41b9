"""P(z_i | y): priors, which draw CLIP image embeddings for captions."""

from .diffusion_prior import DiffusionPrior, PriorConfig
from .network import PriorNetwork, PriorNetworkConfig
from .task import PriorTask

__all__ = ["DiffusionPrior", "PriorConfig", "PriorNetwork", "PriorNetworkConfig", "PriorTask"]

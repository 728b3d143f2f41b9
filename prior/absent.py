"""What stands in a pipeline whose weights came without a prior."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from unclip.checkpoint import Part
from unclip.config import Config
from unclip.diffusion.schedule import NoiseSchedule
from unclip.randomness import Noise
from unclip.types import Losses, Sampling, Text


class AbsentPriorConfig(Config, frozen=True, kw_only=True):
    remedy: str  # where a prior for these parts is found
    sampling: Sampling = Sampling()


class AbsentPrior(Part[AbsentPriorConfig]):
    """Keeps the contract and refuses: such a pipeline decodes embeddings of pictures, and draws none for captions."""

    config_class = AbsentPriorConfig

    def __init__(self, config: AbsentPriorConfig):
        super().__init__()
        self.config = config
        self.schedule = NoiseSchedule.cosine()
        self.network = nn.Identity()

    def loss(self, image_embed: Float[Tensor, "b d"], text: Text, *, noise: Noise) -> Losses:
        raise ValueError(f"this pipeline has no prior, so there is nothing to train: {self.config.remedy}")

    def sample(self, text: Text, *, noise: Noise, n: int = 1, sampling: Sampling | None = None) -> Float[Tensor, "b n d"]:
        raise ValueError(f"this pipeline has no prior, so it cannot draw pictures for captions: {self.config.remedy}")

"""z_i in one pass, regressed and held apart from other captions': the contrastive regression prior of ECLIPSE (2312.04655).

The diffusion prior's network with nothing to denoise.  It asks whether drawing is needed at all: a caption has many pictures,
this prior answers with one embedding between theirs, and so without diversity.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from unclip.checkpoint import Component
from unclip.config import Config
from unclip.randomness import Noise, check_noise
from unclip.sampling import Sampling
from unclip.types import Losses, Text, check_text

from .linear_prior import repeated
from .network import PriorNetwork, PriorNetworkConfig
from .scaling import STD, Scaling


class ContrastivePriorConfig(Config, frozen=True, kw_only=True):
    network: PriorNetworkConfig
    contrast: float = 0.2  # weight of the contrastive term (ECLIPSE: 0.2 to 0.4 are good)
    temperature: float = 0.07  # of its softmax (CLIP's start; ECLIPSE does not tell)
    text_drop: float = 0.1
    sampling: Sampling = Sampling()  # nothing is drawn: only this default is taken

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.contrast < float("inf"):
            raise ValueError(f"contrast is {self.contrast}; it is a weight of at least 0 (0 = plain regression)")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be positive")
        if not 0 <= self.text_drop <= 1:
            raise ValueError(f"text_drop is a probability, not {self.text_drop}")
        if self.network.null != "learned":
            raise ValueError(f"the null of a contrastive prior is learned, not {self.network.null!r}")


class ContrastivePrior(Component[ContrastivePriorConfig]):
    """|| f(y) - z_i ||^2 + contrast * cross-entropy of picking the own caption's z_t among the batch's."""

    config_class = ContrastivePriorConfig
    task_class = "PriorTask"
    candidates = 1  # every draw is the same
    couples_samples = True  # by its loss

    def __init__(self, config: ContrastivePriorConfig):
        super().__init__()
        self.config = config
        self.embed_dim = config.network.embed_dim
        self.network = PriorNetwork(config.network)
        self.scaling = Scaling(self.embed_dim, "std", "unit")

    @property
    def fitted(self) -> bool:
        return self.scaling.fitted

    def fit(self, image_embeds: Float[Tensor, "n d"], text_embeds: Tensor | None = None) -> None:
        """Take the mean norm of raw embeddings of the training data; before training."""
        self.scaling.fit(image_embeds)

    def check(self) -> None:
        self.scaling.check()

    def loss(self, image_embed: Float[Tensor, "b d"], text: Text, *, noise: Noise) -> Losses:
        """Per sample; the error is per dimension and in units of the data's variance.  Captions dropped (10 %) have no contrast.

        The contrastive term couples the samples of a process's batch: each is a negative of the others.
        """
        check_noise(noise, len(image_embed), "embeddings")
        check_noise(noise, len(check_text(text).strings), "captions")
        x0 = self.scaling.scale(image_embed)
        dropped = noise.at("drop").uniform() < self.config.text_drop
        made = self._predict(text, dropped)
        error = (made.float() - x0).square().mean(1) / STD**2
        z_t = normalize(text.z_t.to(x0).float(), dim=-1)
        scores = normalize(made.float(), dim=-1) @ z_t.T / self.config.temperature
        nats = cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="none")
        absent = dropped.to(nats.device) | text.blank.to(nats.device)
        nats = nats.masked_fill(absent, 0.0)
        return Losses(error + self.config.contrast * nats, None, {"error": error, "contrast": nats})

    @torch.no_grad()
    def sample(self, text: Text, *, noise: Noise, n: int = 1, sampling: Sampling | None = None) -> Float[Tensor, "b n d"]:
        """n equal raw embeddings for each caption."""
        return repeated(self.scaling.unscale(self._predict(text)), n, sampling)

    def _predict(self, text: Text, drop: Tensor | None = None) -> Float[Tensor, "b d"]:
        prompt = self.network.prompt(text._replace(embed=self.scaling.text(text.z_t)), drop)
        rows = len(prompt.mask)
        # Nothing to denoise: the network sees a zero in its place, always at the same time.
        return self.network(torch.zeros(rows, self.embed_dim, device=self.device), torch.ones(rows, dtype=torch.int64), prompt)

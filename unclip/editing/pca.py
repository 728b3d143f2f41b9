"""Principal components of CLIP image embeddings: what the embedding space says first, and what last (unCLIP 4, Fig. 7)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from unclip.checks import path_of
from unclip.files import write_files
from unclip.metrics import principal
from unclip.weights import header, read_tensors, to_bytes

FORMAT = "unclip-pca-1"
FILE = "pca.safetensors"  # beside the index of a pipeline


@dataclass(frozen=True)
class PCA:
    """Mean, components (columns, orthonormal, by descending variance) and variances of unit embeddings."""

    mean: Float[Tensor, " d"]
    components: Float[Tensor, "d d"]
    variances: Float[Tensor, " d"]

    @classmethod
    def fit(cls, image_embed: Float[Tensor, "n d"]) -> PCA:
        """From raw image embeddings, of which only the directions count."""
        if len(image_embed) <= image_embed.shape[1]:
            n, d = image_embed.shape
            raise ValueError(f"{n} embeddings do not span the {d} dimensions they have; fit to more than {d} pictures")
        mean, variances, components = principal(normalize(image_embed.detach().cpu().double(), dim=-1))
        return cls(mean.float(), components.float(), variances.float())

    @property
    def explained(self) -> Float[Tensor, " d"]:
        """The share of the variance in the first 1, 2, ..., d components."""
        return self.variances.cumsum(0) / self.variances.sum()

    def reduce(self, image_embed: Float[Tensor, "b d"], k: int) -> Float[Tensor, "b d"]:
        """The embeddings of which only the first k components are left, at their own norm."""
        if image_embed.shape[1] != len(self.mean):
            raise ValueError(f"these are components of {len(self.mean)} dimensions, the embeddings have {image_embed.shape[1]}")
        if not 0 <= k <= len(self.mean):
            raise ValueError(f"k is {k}; of these components 0 to {len(self.mean)} can be kept")
        basis = self.components[:, :k].to(image_embed)
        mean = self.mean.to(image_embed)
        kept = mean + (normalize(image_embed, dim=-1) - mean) @ basis @ basis.T
        return normalize(kept, dim=-1) * image_embed.norm(dim=-1, keepdim=True)

    def save(self, path: str | Path, overwrite: bool = True) -> None:
        """One safetensors file, written aside and renamed; ValueError where one is there that may not be replaced."""
        tensors = {"mean": self.mean, "components": self.components, "variances": self.variances}
        write_files([(path_of(path), to_bytes(tensors, {"format": FORMAT}))], overwrite)

    @classmethod
    def load(cls, path: str | Path) -> PCA:
        """ValueError when the file holds no components, or is damaged."""
        try:
            metadata = header(path).metadata
            tensors = read_tensors(path_of(path), {})
        except ValueError as error:
            raise ValueError(f"{path} cannot be read as principal components: {error}") from None
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is a safetensors file but holds no principal components: make it with PCA.fit")
        wrong = f"{path} holds no principal components: expected mean (d), components (d, d), orthonormal, and variances (d)"
        d = len(tensors["mean"]) if "mean" in tensors and tensors["mean"].ndim == 1 else 0
        shapes = {"mean": (d,), "components": (d, d), "variances": (d,)}
        if not d or {name: tuple(x.shape) for name, x in tensors.items()} != shapes:
            raise ValueError(wrong)
        made = cls(**tensors)
        straight = (made.components.T @ made.components - torch.eye(d)).abs().amax() < 1e-2  # False for NaN
        if not straight or not (made.variances >= -1e-4 * made.variances.amax()).all() or not torch.isfinite(made.mean).all():
            raise ValueError(wrong)
        return made

"""The latent pair (z_i, x_T) of pictures, and its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from unclip.checks import path_of
from unclip.config import Config
from unclip.files import visible, write_files
from unclip.sampling import Sampling
from unclip.weights import header, read_tensors, to_bytes

FORMAT = "unclip-latent-3"


class LatentHeader(Config, frozen=True, kw_only=True):
    """What stands in a latent's file beside its tensors."""

    sampling: Sampling
    captions: tuple[str, ...]
    models: dict[str, str]


@dataclass(frozen=True)
class Latent:
    """unCLIP's bipartite latent (section 3): what the picture shows, z_i, and how it shows it, x_T.

    `sampling` draws the picture from here; its steps are a list of timesteps, and `x_t` lives at the first, `t`.
    `models` tells which pipeline, CLIP and decoder the latent belongs to.
    """

    image_embed: Float[Tensor, "b d"]
    x_t: Float[Tensor, "b 3 h w"]
    sampling: Sampling
    captions: tuple[str, ...]  # "" where the picture was not drawn for a caption
    models: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = (len(self.image_embed), len(self.x_t), len(self.captions))
        if len(set(rows)) > 1 or self.image_embed.ndim != 2 or self.x_t.ndim != 4:
            shapes = f"{tuple(self.image_embed.shape)}, {tuple(self.x_t.shape)} and {rows[2]} captions"
            raise ValueError(f"a latent is image_embed (b, d), x_t (b, 3, h, w) and b captions; got {shapes}")
        if not isinstance(self.sampling.steps, tuple) or len(self.sampling.steps) < 2:
            raise ValueError(f"a latent's sampling lists its timesteps, descending from x_t's; got steps {self.sampling.steps!r}")

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The timesteps that lead from x_t to the picture, descending."""
        assert isinstance(self.sampling.steps, tuple)
        return self.sampling.steps

    @property
    def t(self) -> int:
        """Where x_t lives."""
        return self.timesteps[0]

    def rows(self, rows: slice | Sequence[int]) -> Latent:
        """Some of the pictures."""
        captions = self.captions[rows] if isinstance(rows, slice) else tuple(self.captions[i] for i in rows)
        return replace(self, image_embed=self.image_embed[rows], x_t=self.x_t[rows], captions=captions)

    def repeat(self, n: int) -> Latent:
        """Each picture n times, picture-major."""
        embed, x_t = (x.repeat_interleave(n, dim=0) for x in (self.image_embed, self.x_t))
        return replace(self, image_embed=embed, x_t=x_t, captions=tuple(c for c in self.captions for _ in range(n)))

    def __len__(self) -> int:
        return len(self.x_t)

    def save(self, path: str | Path, overwrite: bool = True) -> None:
        """One safetensors file, written aside and renamed; ValueError where one is there that may not be replaced."""
        header = LatentHeader(sampling=self.sampling, captions=self.captions, models=dict(self.models))
        tensors = {"image_embed": self.image_embed.cpu().contiguous(), "x_t": self.x_t.cpu().contiguous()}
        data = to_bytes(tensors, {"format": FORMAT, "about": header.to_json()})
        write_files([(path_of(path), data)], overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Latent:
        """Read a latent; ValueError when the file is none, or damaged."""
        try:
            metadata = header(path).metadata
            tensors = read_tensors(Path(path).expanduser(), {})
        except ValueError as error:
            raise ValueError(f"{path} cannot be read as a latent: {error}") from None
        if (written := metadata.get("format")) != FORMAT:
            if str(written).startswith(FORMAT[:-1]):
                raise ValueError(f"{path} was written by an earlier version ({visible(written)}): invert the picture again")
            raise ValueError(f"{path} is a safetensors file but no latent (format {visible(repr(written))})")
        about = LatentHeader.from_json(metadata.get("about", ""), source=str(path))
        if sorted(tensors) != ["image_embed", "x_t"] or not all(torch.isfinite(x).all() for x in tensors.values()):
            raise ValueError(f"{path} is no latent: it must hold image_embed and x_t, all numbers finite, and nothing else")
        return cls(tensors["image_embed"], tensors["x_t"], about.sampling, about.captions, about.models)

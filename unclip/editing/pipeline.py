"""What an edit needs of a pipeline, and of what a pipeline has drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.types import Callback, Cond, Decoder, ImageTextEncoder, Text

from .latent import Latent
from .pca import PCA


@runtime_checkable
class Drawn(Protocol):
    """Pictures with the latent they came from: what `generate` or an edit returned."""

    @property
    def latent(self) -> Latent | None: ...

    @property
    def stages(self) -> Mapping[int, Tensor]: ...  # pictures (b, 3, s, s) in [-1, 1] by size s


@runtime_checkable
class Painter(Protocol):
    """What draws pictures of every size, for captions and around given pictures: any pipeline."""

    @property
    def name(self) -> str: ...

    @property
    def decoder(self) -> Decoder: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def sizes(self) -> tuple[int, ...]: ...

    def stages(self, size: int | None = None) -> tuple[int, ...]: ...

    def generate(self, *captions: Any, **options: Any) -> Any: ...


@runtime_checkable
class Pipeline(Protocol):
    """A CLIP, a decoder that inverts, and the way from latents to pictures of every size: `UnCLIP`, or one like it."""

    pca: PCA | None

    @property
    def name(self) -> str: ...

    @property
    def clip(self) -> ImageTextEncoder: ...

    @property
    def decoder(self) -> Decoder: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def sizes(self) -> tuple[int, ...]: ...

    def stages(self, size: int | None = None) -> tuple[int, ...]: ...

    def chunks(self, count: int, size: int) -> Iterator[slice]: ...

    def condition(self, image_embed: Tensor, captions: Sequence[str]) -> Cond: ...

    def models(self) -> dict[str, str]: ...

    def embed(self, text: Text, noise: Noise, *, callback: Callback | None = None) -> Tensor: ...

    def draw(
        self, latent: Latent, sampling: Sampling, noise: Noise, size: int | None = None, callback: Callback | None = None
    ) -> dict[int, Tensor]: ...

    def generate(self, captions: Any, n: int = 1, seed: int = 0, *, size: int | None = None, callback: Any = None) -> Any: ...

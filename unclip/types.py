"""The values that travel between the components, and the contracts that the components keep.

Conventions at every public border: images are float (b, 3, h, w) in [-1, 1]; image and text embeddings are CLIP's raw projected
vectors (b, d), not normalised; timesteps are int64 (b) in 1..T on the CPU (t = 0 is clean data and is never fed to a network);
masks are True where there is something real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .randomness import Noise
from .sampling import Inversion, Sampling


class Text(NamedTuple):
    """A batch of captions as a text encoder sees them.  A tuple of fields: `text.rows` takes captions, `text[0]` does not."""

    strings: list[str]
    tokens: Int[Tensor, "b l"]
    embed: Float[Tensor, "b d"] | None  # pooled and projected, CLIP's z_t; None = nothing but the strings has been read
    states: Float[Tensor, "b l w"] | None  # per token, after the final norm
    mask: Bool[Tensor, "b l"]  # True = real token, start and end tokens included

    @classmethod
    def of(cls, captions: Sequence[str]) -> Text:
        """Captions that no encoder has read, for components with a tokenizer of their own: one position each, no token."""
        blank = torch.zeros(len(captions), 1, dtype=torch.int64)
        return cls(list(captions), blank, None, None, blank.bool())

    @property
    def blank(self) -> Bool[Tensor, " b"]:
        """True where there is no caption: every component reads that as its null."""
        return torch.tensor([not string.strip() for string in self.strings], device=self.mask.device)

    @property
    def z_t(self) -> Float[Tensor, "b d"]:
        """The raw CLIP text embeddings; ValueError where no CLIP has read the captions."""
        if self.embed is None:
            raise ValueError("no CLIP has read these captions, and its embeddings are needed: give clip.encode_text(captions)")
        return self.embed

    @property
    def token_states(self) -> Float[Tensor, "b l w"]:
        """The states of CLIP's text transformer; ValueError where no CLIP has read the captions."""
        if self.states is None:
            raise ValueError("no CLIP has read these captions, and its token states are needed: give clip.encode_text(captions)")
        return self.states

    def repeat(self, n: int) -> Text:
        """Each caption n times, caption-major: (b, ...) -> (b*n, ...)."""
        tensors = (None if x is None else x.repeat_interleave(n, dim=0) for x in self[1:])
        return Text([string for string in self.strings for _ in range(n)], *tensors)  # type: ignore[arg-type]

    def rows(self, rows: slice | Sequence[int]) -> Text:
        """Some of the captions."""
        strings = self.strings[rows] if isinstance(rows, slice) else [self.strings[i] for i in rows]
        return Text(strings, *(None if x is None else x[rows] for x in self[1:]))  # type: ignore[arg-type]


def joined(texts: Sequence[Text]) -> Text:
    """Captions one after the other, all read by the same encoder, or by none."""
    strings = [string for text in texts for string in text.strings]
    columns = zip(*(text[1:] for text in texts))
    return Text(strings, *(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


class Cond(NamedTuple):
    """What a decoder or upsampler may be conditioned on.  None = its null; what a component was not built for it refuses."""

    image_embed: Float[Tensor, "b d"] | None = None
    text: Text | None = None
    label: Int[Tensor, " b"] | None = None
    known: tuple[Float[Tensor, "b 3 h w"], Bool[Tensor, "b 1 h w"]] | None = None  # (images, keep), keep True = pixel is kept

    def rows(self, rows: slice) -> Cond:
        """Those of some of the pictures."""
        known = None if self.known is None else (self.known[0][rows], self.known[1][rows])
        embed, label = (None if x is None else x[rows] for x in (self.image_embed, self.label))
        return Cond(embed, None if self.text is None else self.text.rows(rows), label, known)


def check_text(text: Any) -> Text:
    """Captions as encoders give them; ValueError for anything else."""
    if not isinstance(text, Text):
        problem = f"captions came as {type(text).__name__}; a Text is expected"
        raise ValueError(f"{problem}: clip.encode_text([...]), or Text.of([...]) for a component that reads the strings itself")
    return text


def rows_of(cond: Any) -> int | None:
    """For how many pictures the conditions are; None where that differs, or there are none.  ValueError: no conditions."""
    if not isinstance(cond, Cond):
        raise ValueError(f"the conditions came as {type(cond).__name__}; a Cond is expected, as Cond(image_embed=..., text=...)")
    counts = {len(x) for x in (cond.image_embed, cond.label) if x is not None}
    counts |= set() if cond.text is None else {len(check_text(cond.text).strings)}
    return counts.pop() if len(counts) == 1 else None


class Prediction(NamedTuple):
    """What a denoiser says at (x_t, t), in float32: x_t = alpha_t x0 + sigma_t eps."""

    x0: Tensor
    eps: Tensor
    variance_mix: Tensor | None = None  # network output o of the learned variance, v = (o + 1) / 2
    score: Tensor | None = None  # gradient of a guidance function, added by the samplers


Denoise = Callable[[Tensor, Tensor], Prediction]  # (x_t, t (b) int in 1..T) -> Prediction
Wrap = Callable[[Denoise], Denoise]  # applied to the finished denoiser: guided and thresholded
Guide = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> (b) a log probability, by whose gradient sampling is steered


class Step(NamedTuple):
    """Where a pipeline stands after a denoising step.  `step` counts 1..`steps` anew for each chunk of pictures."""

    stage: str  # "prior", "decoder", "upsampler_256", ...; "invert" while the decoder inverts
    step: int
    steps: int
    t: int  # the timestep that was denoised
    x0: Tensor  # the clean data as predicted there: of the prior standardised embeddings, else pictures
    rows: slice  # the pictures of the run that this chunk holds
    total: int  # pictures of the run

    def images(self) -> Float[Tensor, "b 3 h w"] | None:
        """A preview: the predicted pictures in [-1, 1] on the CPU; None where embeddings are drawn."""
        return self.x0.detach().float().clamp(-1, 1).cpu() if self.x0.ndim == 4 else None


Callback = Callable[[Step], None]  # may raise Cancelled; changes no bit of what is drawn


class Cancelled(Exception):
    """Raised by a callback to end a run: the pipeline is left as it was, nothing is written."""


@runtime_checkable
class GuideModel(Protocol):
    """What steers sampling by a gradient and knows conditions: a noised CLIP, a classifier.

    It may also have `scale`, how strongly it steers by default; and, to be checked against the decoder's, `image_size`,
    `schedule` and `label_names`.
    """

    def guide(self, cond: Cond) -> Guide: ...


class Losses(NamedTuple):
    """Per-sample losses.  `total` is minimised; `terms` are logged; `t` lets the loop log by timestep quartile."""

    total: Float[Tensor, " b"]
    t: Int[Tensor, " b"] | None
    terms: dict[str, Float[Tensor, " b"]]


class Batch(NamedTuple):
    """One training batch.  A task reads the fields it needs and refuses a batch that lacks them."""

    keys: list[str]
    images: Float[Tensor, "b 3 h w"] | None = None
    captions: list[str] | None = None
    image_embed: Float[Tensor, "b d"] | None = None
    text: Text | None = None
    labels: Int[Tensor, " b"] | None = None


@runtime_checkable
class ImageTextEncoder(Protocol):
    """A CLIP-like pair of encoders into one space.  Embeddings are raw: projected, not normalised."""

    embed_dim: int
    image_size: int

    def encode_image(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]: ...

    def encode_text(self, captions: list[str]) -> Text: ...


@runtime_checkable
class Prior(Protocol):
    """P(z_i | y): draws CLIP image embeddings for captions.  How is its own business: `Sampling`, or a config like it.

    A component may also have `candidates`, how many embeddings are drawn per picture; the nearest to the caption is kept.
    """

    def loss(self, image_embed: Float[Tensor, "b d"], text: Text, *, noise: Noise) -> Losses: ...

    def sample(
        self,
        text: Text,
        *,
        noise: Noise,
        n: int = 1,
        sampling: Any = None,
        negative: Text | None = None,
        wrap: Wrap | None = None,
    ) -> Float[Tensor, "b n d"]: ...


@runtime_checkable
class Decoder(Protocol):
    """P(x | z_i, y): draws images for embeddings."""

    image_size: int
    takes: tuple[str, ...]  # the fields of Cond that it was built for

    def resolve(self, sampling: Sampling | None = None) -> Sampling: ...  # its own for None; steps as the timesteps visited

    def loss(self, images: Float[Tensor, "b 3 h w"], cond: Cond, *, noise: Noise) -> Losses: ...

    def sample(
        self,
        cond: Cond,
        *,
        noise: Noise,
        x_t: Tensor | None = None,
        t: int | None = None,
        sampling: Sampling | None = None,
        negative: Cond | None = None,
        wrap: Wrap | None = None,
    ) -> Float[Tensor, "b 3 h w"]: ...

    def invert(
        self,
        images: Float[Tensor, "b 3 h w"],
        cond: Cond,
        *,
        inversion: Inversion | None = None,
        wrap: Wrap | None = None,
    ) -> tuple[Float[Tensor, "b 3 h w"], tuple[int, ...]]: ...


@runtime_checkable
class Upsampler(Protocol):
    """P(x_high | x_low): multiplies the resolution by `scale`.  It may also have `takes`, as decoders do; else nothing."""

    scale: int

    def loss(self, images: Float[Tensor, "b 3 h w"], cond: Cond | None = None, *, noise: Noise) -> Losses: ...

    def sample(
        self,
        low_res: Float[Tensor, "b 3 h w"],
        cond: Cond | None = None,
        *,
        noise: Noise,
        sampling: Sampling | None = None,
        negative: Cond | None = None,
        wrap: Wrap | None = None,
    ) -> Tensor: ...


@runtime_checkable
class Adjustable(Protocol):
    """A stage whose way of sampling can be read and changed, as the command does."""

    @property
    def sampling(self) -> Any: ...  # its default: a `Sampling`, or a config like it

    def resolve(self, sampling: Any = None) -> Any: ...  # what it would do, steps as the timesteps visited; ValueError: it cannot

    def describe(self) -> str: ...  # its default, in a few words


@runtime_checkable
class Labelled(Protocol):
    """A decoder, or a guide, that knows its classes by name."""

    @property
    def label_names(self) -> tuple[str, ...]: ...  # by number; () = they have no names


def best_of(embeds: Float[Tensor, "b n d"], text_embed: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Of n drawn image embeddings keep the one with the largest z_i . z_t (unCLIP 2.2), each taken at unit length."""
    unit = nn.functional.normalize(embeds.float(), dim=-1)
    scores = (unit * text_embed.to(unit)[:, None]).sum(-1)  # autocast would round a product of matrices, and draws lie close
    return embeds[torch.arange(len(embeds), device=embeds.device), scores.argmax(1)]

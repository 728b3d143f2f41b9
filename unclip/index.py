"""The index of a pipeline's folder: which components it holds, and what each is."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Literal

import msgspec

from .config import Config, visible

Kind = Literal["UnCLIP", "Cascade"]
PRIORS = ("prior", "ar_prior")  # beside the prior there may be an autoregressive one, to be asked for
# Of pipelines: the components that each kind must have, and all but upsamplers that it may have.
KINDS = {"UnCLIP": (("clip", "decoder"), ("clip", *PRIORS, "decoder")), "Cascade": (("decoder",), ("decoder", "guide"))}
# Patterns of all names in the folder of a pipeline, and of a component: first the one that is always there.
PIPELINE_FILES = (
    r"unclip\.json",
    r"provenance\.json",
    r"pca\.safetensors",
    r"captions\.txt",
    "clip",
    *PRIORS,
    "decoder",
    r"upsampler_\d+",
    "guide",
)
COMPONENT_FILES = (r"config\.json", r"model\.safetensors")
_UPSAMPLER = re.compile(r"upsampler_[1-9]\d{0,9}")


class Index(Config, frozen=True, kw_only=True, rename={"components": "parts"}):
    """What a pipeline's folder holds: `components`, "parts" in the file, maps the name of a subfolder to the class in it."""

    kind: Kind = "UnCLIP"
    name: str
    components: dict[str, str]
    candidates: Annotated[int, msgspec.Meta(le=1_000)] = 1  # drawn per picture
    clip_identity: dict[str, int | list[list[float]]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        needed, known = KINDS[self.kind]
        missing = [name for name in needed if name not in self.components]
        others = [name for name in self.components if name not in known and not _UPSAMPLER.fullmatch(name)]
        if self.kind == "UnCLIP" and not self.clip_identity:
            raise ValueError("clip_identity is missing: which CLIP these components were trained with")
        if missing or others:
            wrong = ", ".join(
                [*(f"no {name}" for name in missing), *(f"an unknown component {visible(name)!r}" for name in others)]
            )
            optional = ", ".join(["upsampler_<size>", *(name for name in known if name not in needed)])
            expected = f"a pipeline of the kind {self.kind} has the components {' and '.join(needed)}, and may have {optional}"
            raise ValueError(f"{expected}; this one has {wrong}")

    @property
    def upsamplers(self) -> list[str]:
        """The upsamplers' names in the order of use, whatever order a tool has left the file in."""
        return sorted((name for name in self.components if _UPSAMPLER.fullmatch(name)), key=lambda name: int(name[10:]))


def same_sizes(stored: Collection[str], made: Collection[str], source: str) -> None:
    """ValueError unless the upsamplers make pictures of the sizes that they are stored under."""
    there, here = ([name for name in names if _UPSAMPLER.fullmatch(name)] for names in (stored, made))
    if there != here:
        problem = f"{source} holds {', '.join(there) or 'no upsampler'}, but its configs make {', '.join(here) or 'none'}"
        raise ValueError(f"{problem}: the decoder's image_size or an upsampler's scale is not what it was saved with")

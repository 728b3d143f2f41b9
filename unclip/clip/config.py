"""What a CLIP is built from: a model that open_clip knows by name, or an architecture of one's own."""

from __future__ import annotations

from unclip.config import Config, Layers, Pixels, Positions

from .pieces import check_pieces
from .preprocess import Interpolation, Resize
from .tokenizer import check_token_ids


class VisionTower(Config, frozen=True, kw_only=True):
    """A vision transformer; the paper's ViT-H/16 is 256, 16, 1280, 32, 80 (unCLIP App. C)."""

    image_size: Pixels
    patch_size: Pixels
    width: int
    layers: Layers
    head_width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.image_size, self.patch_size, self.width, self.layers, self.head_width) < 1:
            raise ValueError(f"sizes, width and layers of a vision tower are at least 1; got {self}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.width % self.head_width:
            raise ValueError(f"vision width {self.width} is no multiple of head_width {self.head_width}")


class TextTower(Config, frozen=True, kw_only=True):
    """A causal text transformer over CLIP's byte pairs: all, or those in `token_ids` (see `compact_token_ids`).

    `pieces` (see `learn_pieces`) is a vocabulary of one's own in their place.
    """

    context_length: Positions = 77
    width: int
    layers: Layers
    heads: int
    token_ids: tuple[int, ...] | None = None
    pieces: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context_length < 3:
            raise ValueError(f"context_length is {self.context_length}; start, one token and end need at least 3")
        if min(self.width, self.layers, self.heads) < 1:
            raise ValueError(f"width {self.width}, layers {self.layers}, heads {self.heads}: a text tower's are at least 1")
        if self.width % self.heads:
            raise ValueError(f"text width {self.width} is no multiple of its {self.heads} heads")
        if self.token_ids is not None and self.pieces is not None:
            raise ValueError("a text tower reads either byte pairs (token_ids) or word pieces (pieces); give one of the two")
        if self.token_ids is not None:
            check_token_ids(self.token_ids)
        if self.pieces is not None:
            check_pieces(self.pieces)


class Architecture(Config, frozen=True, kw_only=True):
    embed_dim: int
    vision: VisionTower | None  # None: captions only, as public text-to-image weights bring it
    text: TextTower


class CLIPConfig(Config, frozen=True, kw_only=True):
    """Either an open_clip model by `name` (also "hf-hub:..." and "local-dir:...") or an own `architecture`.

    `pretrained` is a tag of open_clip, or "default" for the weights of a hub or local repository; None = weights come
    from training or from a state_dict.  None in the fields below it means: as the model or its tag says (own
    architecture: OpenAI's statistics, crop, bicubic, plain GELU).
    """

    name: str | None = None
    architecture: Architecture | None = None
    pretrained: str | None = None
    quick_gelu: bool | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: Resize | None = None
    interpolation: Interpolation | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.name is None) == (self.architecture is None):
            raise ValueError("a CLIP is given either by name (an open_clip model) or by architecture; give exactly one")
        if self.pretrained and self.name is None:
            raise ValueError(f"pretrained is {self.pretrained!r}, but an own architecture has no such weights")
        if self.pretrained and self.name and ":" in self.name and self.pretrained != "default":
            raise ValueError(f"{self.name!r} has one set of weights, 'default'; pretrained is {self.pretrained!r}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; every entry must be positive")

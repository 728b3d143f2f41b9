"""CLIP behind ImageTextEncoder: images and captions to raw embeddings, and states of the tokens."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unclip.checkpoint import Component
from unclip.deprecation import renamed_arguments
from unclip.types import Text

from .config import Architecture as Architecture
from .config import CLIPConfig as CLIPConfig
from .config import TextTower as TextTower
from .config import VisionTower as VisionTower
from .named import open_named
from .pieces import PieceTokenizer
from .preprocess import Interpolation, Resize, check_images, fit_square, stack_images
from .tokenizer import BytePairTokenizer, Tokenizer, Tokens
from .towers import MEAN, STD, QuickGELU, Towers, VisionTransformer

if TYPE_CHECKING:
    from PIL import Image


_READING = threading.RLock()  # one text at a time, of all CLIPs of the process: a module with a lock could not be copied


class CLIP(Component[CLIPConfig]):
    """ImageTextEncoder: one of open_clip's models, or an architecture of one's own.

    Gradients flow; a user of a frozen CLIP says `torch.no_grad()`.
    """

    config_class = CLIPConfig
    task_class = "CLIPTask"
    mean: Tensor
    std: Tensor

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.network: Any  # `Towers`, or one of open_clip's model classes, which share names but no type
        self.tokenizer: Tokenizer
        self.network, self.tokenizer, settings = _from_architecture(config) if config.architecture else open_named(config)
        self.resolved = config.replace(pretrained=None, **settings)
        self._norm = _final_norm(self.network, config)
        self.embed_dim = _embed_dim(self.network)
        self.image_size = _image_size(self.network)  # 0 without an image tower
        self.context_length = self.tokenizer.context_length
        self.text_width = _text_width(self.network)
        for name in ("mean", "std"):
            value = torch.tensor(getattr(self.resolved, name), dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def record(self) -> CLIPConfig:
        """The config to store beside the weights: with what was found, without what would be downloaded again."""
        return self.resolved

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.network.logit_scale

    @renamed_arguments(pictures="images")
    def preprocess(
        self, images: Tensor | Image.Image | str | Path | Sequence[Tensor | Image.Image | str | Path]
    ) -> Float[Tensor, "b 3 s s"]:
        """Pictures of any size and mode to the model's square, still in [-1, 1]; `encode_image` takes that as it is."""
        self._check_tower()
        return stack_images(images, *self._square)

    def encode_image(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Raw embeddings of images in [-1, 1] of any size: short side, crop, the model's mean and std, the tower."""
        self._check_tower()
        check_images(images)
        images = fit_square(images.to(self.device), *self._square).float()
        unit = (images / 2 + 0.5 - self.mean.float()) / self.std.float()
        return self.network.encode_image(unit.to(self.logit_scale.dtype), normalize=False)

    def encode_text(self, captions: list[str]) -> Text:
        """Raw embeddings, states after the final norm, mask.  Too long: truncated, with a warning; empty is allowed."""
        return self.encode_tokens(captions, *self.tokenize(captions))

    def _check_tower(self) -> None:
        if not self.image_size:
            raise ValueError(
                "this CLIP reads captions only: its weights came without an image tower; put the image_encoder folder of "
                "the weights' image-variation repository beside the other folders and load again"
            )

    @property
    def _square(self) -> tuple[int, Resize, Interpolation]:
        return self.image_size, self.resolved.resize or "crop", self.resolved.interpolation or "bicubic"

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Token ids and mask (b l), on the CPU."""
        if isinstance(captions, str) or not isinstance(captions, Sequence) or not all(isinstance(c, str) for c in captions):
            raise ValueError(f"expected a list of captions, given {captions!r}")
        if not captions:
            raise ValueError("no captions were given; give at least one (it may be empty)")
        return self.tokenizer(captions)

    def encode_tokens(self, captions: Sequence[str], ids: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Text:
        """`encode_text` from tokens that somebody else made or changed."""
        ids, mask = ids.to(self.device), mask.to(self.device)
        if isinstance(self.network, Towers):
            return Text(list(captions), ids, *self.network.read(ids), mask)
        seen: list[Any] = []
        # The hook reads the states where open_clip computes them: pooling and projection stay open_clip's own business.  It
        # hangs on a module that other threads use too, which therefore wait.
        with _READING:
            hook = self._norm[0].register_forward_hook(lambda module, args, output: seen.append(output))
            try:
                embed = self.network.encode_text(ids, normalize=False)
            finally:
                hook.remove()
        states = seen[-1]
        states = getattr(states, "last_hidden_state", states)  # Hugging Face towers answer with a record
        return Text(list(captions), ids, embed, states, mask)


def _from_architecture(config: CLIPConfig) -> tuple[nn.Module, BytePairTokenizer | PieceTokenizer, dict[str, Any]]:
    arch = config.architecture
    assert arch is not None
    text, tokenizer = arch.text, _tokenizer(arch.text)
    activation = QuickGELU if config.quick_gelu else nn.GELU
    visual = None
    if (tower := arch.vision) is not None:
        heads = tower.width // tower.head_width
        visual = VisionTransformer(
            tower.image_size, tower.patch_size, tower.width, tower.layers, heads, arch.embed_dim, activation
        )
    network = Towers(
        arch.embed_dim, visual, tokenizer.vocab_size, text.context_length, text.width, text.layers, text.heads, activation
    )
    settings = {
        "mean": config.mean or MEAN,
        "std": config.std or STD,
        "resize": config.resize or "crop",
        "interpolation": config.interpolation or "bicubic",
        "quick_gelu": bool(config.quick_gelu),
    }
    return network, tokenizer, settings


def _tokenizer(text: TextTower) -> BytePairTokenizer | PieceTokenizer:
    if text.pieces is not None:
        return PieceTokenizer(text.context_length, text.pieces)
    return BytePairTokenizer(text.context_length, text.token_ids)


def _text(network: Any) -> Any:
    """The text tower: a submodule in CustomTextCLIP, spread over the model itself in plain CLIP."""
    return getattr(network, "text", network)


def _final_norm(network: Any, config: CLIPConfig) -> tuple[nn.Module]:
    """The module whose output are the text states; in a tuple, so that it is not registered a second time."""
    text = _text(network)
    if getattr(text, "cls_emb", None) is not None:
        raise ValueError(
            f"the CLIP {config.name!r} (CoCa) normalises its pooled text token alone, so it has no per-token states; "
            "choose another"
        )
    norm = getattr(text, "ln_final", None)
    if norm is None and hasattr(text, "pooler"):  # HFTextEncoder: its last_hidden_state
        norm = text.transformer
    if norm is None:
        raise ValueError(f"the text tower {type(text).__name__} of {config.name!r} has no final norm, so no states")
    return (norm,)


def _embed_dim(network: Any) -> int:
    text = _text(network)
    if getattr(text, "output_dim", None):
        return int(text.output_dim)
    projection = text.text_projection
    if projection is None:
        return _text_width(network)
    return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])


def _text_width(network: Any) -> int:
    text = _text(network)
    if hasattr(text, "ln_final"):
        return int(text.positional_embedding.shape[1])
    return int(getattr(text.config, "hidden_size", 0) or text.config.d_model)


def _image_size(network: Any) -> int:
    if network.visual is None:
        return 0
    size = network.visual.image_size
    sides = {int(s) for s in size} if isinstance(size, Sequence) else {int(size)}
    if len(sides) != 1:
        raise ValueError(f"this CLIP wants pictures of {size}; only square ones are supported")
    return sides.pop()

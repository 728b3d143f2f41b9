"""Any open_clip model behind ImageTextEncoder: images and captions to raw embeddings, and per-token text states."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unclip.checkpoint import Part
from unclip.config import Config, Layers, Pixels, Positions
from unclip.types import Text

from .preprocess import Interpolation, Resize, check_images, fit_square, stack_pictures
from .tokenizer import BytePairTokenizer, Tokenizer, Tokens, check_token_ids, wrap_tokenizer

if TYPE_CHECKING:
    from PIL import Image


_READING = threading.RLock()  # one text at a time, of all CLIPs of the process: a module with a lock could not be copied


class VisionTower(Config, frozen=True, kw_only=True):
    """A vision transformer; the paper's ViT-H/16 is 256, 16, 1280, 32, 80 (unCLIP App. C)."""

    image_size: Pixels
    patch_size: Pixels
    width: int
    layers: Layers
    head_width: int = 64

    def __post_init__(self) -> None:
        if min(self.image_size, self.patch_size, self.width, self.layers, self.head_width) < 1:
            raise ValueError(f"sizes, width and layers of a vision tower are at least 1; got {self}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.width % self.head_width:
            raise ValueError(f"vision width {self.width} is no multiple of head_width {self.head_width}")


class TextTower(Config, frozen=True, kw_only=True):
    """A causal text transformer over CLIP's byte pairs: all, or those in `token_ids` (see `compact_token_ids`)."""

    context_length: Positions = 77
    width: int
    layers: Layers
    heads: int
    token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.context_length < 3:
            raise ValueError(f"context_length is {self.context_length}; start, one token and end need at least 3")
        if min(self.width, self.layers, self.heads) < 1:
            raise ValueError(f"width {self.width}, layers {self.layers}, heads {self.heads}: a text tower's are at least 1")
        if self.width % self.heads:
            raise ValueError(f"text width {self.width} is no multiple of its {self.heads} heads")
        if self.token_ids is not None:
            check_token_ids(self.token_ids)


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
        if (self.name is None) == (self.architecture is None):
            raise ValueError("a CLIP is given either by name (an open_clip model) or by architecture; give exactly one")
        if self.pretrained and self.name is None:
            raise ValueError(f"pretrained is {self.pretrained!r}, but an own architecture has no such weights")
        if self.pretrained and self.name and ":" in self.name and self.pretrained != "default":
            raise ValueError(f"{self.name!r} has one set of weights, 'default'; pretrained is {self.pretrained!r}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; every entry must be positive")


class CLIP(Part[CLIPConfig]):
    """ImageTextEncoder over an open_clip model.  Gradients flow; a user of a frozen CLIP says `torch.no_grad()`."""

    config_class = CLIPConfig
    task_class = "CLIPTask"
    mean: Tensor
    std: Tensor

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.network: Any  # one of open_clip's model classes, which share names but no type
        self.tokenizer: Tokenizer
        self.network, self.tokenizer, found = _own(config) if config.architecture else _named(config)
        self.resolved = config.replace(pretrained=None, **found)
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

    def preprocess(
        self, pictures: Tensor | Image.Image | str | Path | Sequence[Tensor | Image.Image | str | Path]
    ) -> Float[Tensor, "b 3 s s"]:
        """Pictures of any size and mode to the model's square, still in [-1, 1]; `encode_image` takes that as it is."""
        self._check_tower()
        return stack_pictures(pictures, *self._square)

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
        if isinstance(captions, str) or not all(isinstance(c, str) for c in captions):
            raise ValueError(f"expected a list of captions, given {captions!r}")
        if not captions:
            raise ValueError("no captions were given; give at least one (it may be empty)")
        return self.tokenizer(captions)

    def encode_tokens(self, captions: Sequence[str], ids: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Text:
        """`encode_text` from tokens that somebody else made or changed."""
        seen: list[Any] = []
        ids, mask = ids.to(self.device), mask.to(self.device)
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


def _own(config: CLIPConfig) -> tuple[nn.Module, BytePairTokenizer, dict[str, Any]]:
    import open_clip

    arch = config.architecture
    assert arch is not None
    tokenizer = BytePairTokenizer(arch.text.context_length, arch.text.token_ids)
    # open_clip builds both towers or none: where there is to be none, a small one is built and dropped.
    tower = arch.vision or VisionTower(image_size=16, patch_size=16, width=64, layers=1)
    vision = {name: getattr(tower, name) for name in tower.__struct_fields__}
    text = {name: getattr(arch.text, name) for name in ("context_length", "width", "layers", "heads")}
    network = open_clip.model.CLIP(
        embed_dim=arch.embed_dim,
        vision_cfg=open_clip.CLIPVisionCfg(**vision),
        text_cfg=open_clip.CLIPTextCfg(**text, vocab_size=tokenizer.vocab_size),
        quick_gelu=bool(config.quick_gelu),
    )
    if arch.vision is None:
        network.visual = None
    found = {
        "mean": config.mean or open_clip.OPENAI_DATASET_MEAN,
        "std": config.std or open_clip.OPENAI_DATASET_STD,
        "resize": config.resize or "crop",
        "interpolation": config.interpolation or "bicubic",
        "quick_gelu": bool(config.quick_gelu),
    }
    return network, tokenizer, found


def _named(config: CLIPConfig) -> tuple[nn.Module, Tokenizer, dict[str, Any]]:
    import open_clip

    name = config.name
    assert name is not None
    built_in = ":" not in name
    if built_in:
        _check_name(name, config.pretrained)
    tag = open_clip.get_pretrained_cfg(name, config.pretrained) if config.pretrained and built_in else {}
    # open_clip only warns when a tag was trained with quick-GELU and the model's name does not say so, or the reverse.
    quick = config.quick_gelu
    if quick is None and built_in:
        quick = bool((tag or open_clip.get_model_config(name)).get("quick_gelu", False))
    options = {} if quick is None else {"quick_gelu": quick}
    # Under torch.device("meta") parameters are only counted: nothing is downloaded or read.
    meta = torch.get_default_device().type == "meta"
    load = config.pretrained is not None and not meta
    try:
        network = open_clip.create_model(
            name,
            pretrained=config.pretrained if load and built_in else None,
            load_weights=load,
            device="meta" if meta else "cpu",
            force_quick_gelu=bool(quick),
            pretrained_text=False,
            **options,
        )
        tokenizer = open_clip.get_tokenizer(name)
    except NotImplementedError:  # parameters on the meta device: see unclip.checkpoint.build
        raise
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"open_clip cannot make {name!r} with the weights {config.pretrained!r}: {error}") from error
    network.eval()
    own = open_clip.get_model_preprocess_cfg(network)
    own = own | {key: tag[key] for key in own if key in tag}
    mode = own.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise ValueError(f"the CLIP {name!r} wants pictures resized by {mode!r}; known are 'shortest' and 'squash'")
    found = {
        "mean": config.mean or tuple(own["mean"]),
        "std": config.std or tuple(own["std"]),
        "resize": config.resize or ("squash" if mode == "squash" else "crop"),
        "interpolation": config.interpolation or own.get("interpolation", "bicubic"),
        "quick_gelu": quick,
    }
    return network, wrap_tokenizer(tokenizer), found


def _check_name(name: str, pretrained: str | None) -> None:
    import open_clip

    models = open_clip.list_models()
    if name not in models:
        close = difflib.get_close_matches(name, models, n=5, cutoff=0.4)
        hint = f"close to it: {', '.join(close)}" if close else "open_clip.list_models() lists all"
        raise ValueError(f"open_clip has no model {name!r}; {hint}")
    if pretrained and not open_clip.get_pretrained_cfg(name, pretrained):
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ValueError(f"the CLIP {name!r} has no weights {pretrained!r}; it has {', '.join(tags) or 'none'}")


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

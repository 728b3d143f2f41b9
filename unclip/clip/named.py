"""open_clip's models by name: with weights, always, unless they come from elsewhere."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unclip.building import fill
from unclip.checks import path_of
from unclip.config import visible
from unclip.weights import Lazy, lazily, tensors_by_name, tree
from unclip.weights.folder import plain_names

from .config import CLIPConfig
from .tokenizer import Tokenizer, wrap_tokenizer

OPEN_CLIP = "open_clip:"
REPOSITORIES = ("hf-hub:", "local-dir:")  # of one set of weights, with its config
WAYS = "open_clip:NAME:TAG, open_clip:NAME:/path/weights.pt, open_clip:hf-hub:ORGANISATION/NAME or open_clip:local-dir:FOLDER"
FORMATS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
HELD_IN = ("state_dict", "model", "model_state_dict")  # where trainers put a model's tensors
OPENAI = {"input_resolution", "context_length", "vocab_size"}  # what OpenAI's own files hold beside the weights


def named_clip(source: str) -> CLIPConfig:
    """What "open_clip:NAME:TAG" means, and the other `WAYS`; ValueError where it names no weights, with those there are."""
    name = source.removeprefix(OPEN_CLIP)
    if name.startswith("local-dir:"):
        name = f"local-dir:{path_of(name.removeprefix('local-dir:'))}"
    if name.startswith(REPOSITORIES):
        return CLIPConfig(name=name, pretrained="default")
    name, _, weights = name.partition(":")
    _check_model(name)
    if not weights:
        tags = ", ".join(_tags(name)) or "none"
        problem = f"{source} names no weights, and without them a CLIP answers at random: write {OPEN_CLIP}{name}:TAG"
        raise ValueError(f"{problem}, of its tags {tags}, or the path of a file in place of the tag")
    if _is_path(name, weights):
        weights = str(_file(weights))
    config = CLIPConfig(name=name, pretrained=weights)
    check_name(name, weights)
    return config


def placed(source: str, path: Callable[[str], str]) -> str:
    """The same with `path` applied to the file or folder that it names, if it names one."""
    scheme, name = OPEN_CLIP, source.removeprefix(OPEN_CLIP)
    if name.startswith("local-dir:"):
        return f"{scheme}local-dir:{path(name.removeprefix('local-dir:'))}"
    model, colon, weights = name.partition(":")
    is_path = colon and not name.startswith(REPOSITORIES) and _is_path(model, weights)
    return f"{scheme}{model}:{path(weights)}" if is_path else source


def open_named(config: CLIPConfig) -> tuple[nn.Module, Tokenizer, dict[str, Any]]:
    """The network, its tokenizer, and what the model or its tag says where the config says nothing."""
    import open_clip

    name, pretrained = config.name, config.pretrained
    assert name is not None
    built_in = not name.startswith(REPOSITORIES)
    if built_in:
        check_name(name, pretrained)
    file = _file(pretrained) if pretrained and built_in and _is_path(name, pretrained) else None
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained and built_in and file is None else {}
    # Under torch.device("meta") parameters are only counted: nothing is downloaded or read.
    meta = torch.get_default_device().type == "meta"
    source = _read(file) if file and not meta else {}
    # open_clip only warns when a tag was trained with quick-GELU and the model's name does not say so, or the reverse.
    quick = config.quick_gelu
    if quick is None and built_in:
        quick = source.keys() >= OPENAI or bool((tag or open_clip.get_model_config(name)).get("quick_gelu", False))
    options = {} if quick is None else {"quick_gelu": quick}
    load = pretrained is not None and file is None and not meta
    try:
        with _without_weights(load):
            network = open_clip.create_model(
                name,
                pretrained=pretrained if load and built_in else None,
                load_weights=load,
                require_pretrained=load,
                device="meta" if meta else "cpu",
                force_quick_gelu=bool(quick),
                pretrained_text=False,
                **options,
            )
        tokenizer = open_clip.get_tokenizer(name)
    except NotImplementedError:  # parameters on the meta device: see unclip.building.build
        raise
    except (RuntimeError, OSError, ValueError) as error:
        reason = visible(" ".join(str(error).split()), 500)
        raise ValueError(f"open_clip cannot make {name!r} with the weights {pretrained!r}: {reason}") from error
    if file and not meta:
        tensors = {n: lazy.read(torch.float32) for n, lazy in source.items() if n not in OPENAI}
        fill(network, tensors, f"{file}, read as open_clip's {name},")
    network.eval()
    preset = open_clip.get_model_preprocess_cfg(network)
    preset = preset | {key: tag[key] for key in preset if key in tag}
    mode = preset.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise ValueError(f"the CLIP {name!r} wants pictures resized by {mode!r}; known are 'shortest' and 'squash'")
    settings = {
        "mean": config.mean or tuple(preset["mean"]),
        "std": config.std or tuple(preset["std"]),
        "resize": config.resize or ("squash" if mode == "squash" else "crop"),
        "interpolation": config.interpolation or preset.get("interpolation", "bicubic"),
        "quick_gelu": quick,
    }
    return network, wrap_tokenizer(tokenizer), settings


def check_name(name: str, pretrained: str | None) -> None:
    """ValueError for a model that open_clip does not have, or weights that are neither a tag of it nor a file."""
    import open_clip

    _check_model(name)
    if pretrained and not _is_path(name, pretrained) and not open_clip.get_pretrained_cfg(name, pretrained):
        raise ValueError(f"the CLIP {name!r} has no weights {visible(pretrained)!r}; it has {', '.join(_tags(name)) or 'none'}")


def _check_model(name: str) -> None:
    import open_clip

    models = open_clip.list_models()
    if name not in models:
        close = difflib.get_close_matches(name, models, n=5, cutoff=0.4)
        hint = f"close to it: {', '.join(close)}" if close else "open_clip.list_models() lists all"
        raise ValueError(f"open_clip has no model {visible(name)!r}; {hint}")


def _tags(name: str) -> list[str]:
    import open_clip

    return [str(tag) for tag in open_clip.list_pretrained_tags_by_model(name)]


def _is_path(name: str, weights: str) -> bool:
    """Tags have neither slashes nor endings."""
    import open_clip

    like_one = os.sep in weights or "/" in weights or weights.lower().endswith(FORMATS)
    return like_one and not open_clip.get_pretrained_cfg(name, weights)


def _file(weights: str) -> Path:
    from unclip.files import regular_file

    return regular_file(weights).absolute()


def _read(path: Path) -> dict[str, Lazy]:
    """A checkpoint's tensors, as open_clip's trainer, others and OpenAI write them; nothing in it is run."""
    if path.suffix == ".safetensors":
        return plain_names(lazily(path), str(path))
    saved = tree(path)
    if isinstance(saved, dict):
        saved = next((saved[name] for name in HELD_IN if isinstance(saved.get(name), dict)), saved)
    return plain_names(tensors_by_name(saved, str(path)), str(path))


@contextmanager
def _without_weights(load: bool) -> Iterator[None]:
    """Where open_clip is to load none, it need not warn that there are none: they come from elsewhere."""

    def known(record: logging.LogRecord) -> bool:
        return load or not record.getMessage().startswith("No pretrained weights loaded")

    logging.getLogger().addFilter(known)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(known)

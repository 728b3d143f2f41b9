"""Components as unclip 0.1.0 stored them, whose conditions had no configs of their own: configs and tensor names of today."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Today's names of tensors, and what follows them: the older name.
DECODER = {
    r"network\.conditions\.image_embed\.null": r"network.null_image",
    r"network\.conditions\.image_embed\.to_(emb|tokens)\.(.+)": r"network.image_to_\1.\2",
    r"network\.conditions\.text\.encoder\.(.+)": r"network.text.\1",
    r"network\.conditions\.text\.reader\.empty_raw": r"network.text.empty_text",
    r"network\.conditions\.text\.reader\.(.+)": r"network.text.\1",
    r"network\.conditions\.text\.(.+)": r"network.text.\1",
}
PRIOR = {r"network\.reader\.empty_raw": r"network.empty_text", r"network\.reader\.(.+)": r"network.\1"}
NAMES = {"Decoder": DECODER, "DiffusionPrior": PRIOR, "ContrastivePrior": PRIOR}
DERIVED = ("in_channels", "out_channels", "context_width")  # of a UNet, by the stage that it is in


def upgrade_config(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a component of the class `kind`, of which only decoders and upsamplers have changed."""
    new = dict(config)
    if kind not in ("Decoder", "Upsampler") or not isinstance(config.get("unet", {}), dict):
        return new
    if "unet" in config:
        new["unet"] = {name: value for name, value in config["unet"].items() if name not in DERIVED}
    if kind == "Upsampler" or "conditions" in config:
        return new
    image = {ours: new.pop(theirs) for ours, theirs in _IMAGE.items() if theirs in new}
    text, drop = new.pop("text", None), new.pop("text_drop", None)
    if isinstance(text, dict) and drop is not None:
        text = {**text, "drop": drop}
    new["conditions"] = {"image_embed": image, "text": text, "width": config.get("unet", {}).get("context_width")}
    return new


_IMAGE = {"embed_dim": "embed_dim", "tokens": "image_tokens", "scale": "embedding", "drop": "image_drop"}


def older_name(kind: str, name: str) -> str:
    """What a tensor of today's name was called."""
    for pattern, old in NAMES.get(kind, {}).items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, old, name)
    return name

"""Trainings as unclip 0.1.0 wrote them, in `training.json` of run folders and in the files of `unclip config`."""

from __future__ import annotations

from typing import Any

import msgspec

from unclip.checkpoint import upgrade_config
from unclip.training.config import renamed

STAGES = {
    "clip": "CLIP",
    "prior": "DiffusionPrior",
    "ar_prior": "ARPrior",
    "contrastive_prior": "ContrastivePrior",
    "decoder": "Decoder",
    "upsampler": "Upsampler",
}


def upgraded(text: str | bytes) -> str | bytes:
    """The JSON of a training in today's form; what is in it already, or cannot be read, comes back as it is."""
    try:
        tree = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return msgspec.json.encode(_upgraded(tree)) if isinstance(tree, dict) and "stage" in tree else text


def _upgraded(tree: dict[str, Any]) -> dict[str, Any]:
    """The stage was named once, for `model`, `start` and `task`."""
    rest = {name: value for name, value in tree.items() if name != "stage"}
    stage, model, start, task = (tree.get(name) for name in ("stage", "model", "start", "task"))
    if stage not in STAGES:
        raise ValueError(f"the stage is {stage!r}; it must be one of {', '.join(STAGES)}")
    if isinstance(model, dict):
        rest["model"] = {"class": STAGES[stage]} | upgrade_config(STAGES[stage], model)
    if isinstance(start, str) and ":" not in start:
        rest["start"] = f"{start}:{stage}"
    rest["train"] = renamed(tree.get("train"))
    if isinstance(task, dict):
        rest["task"] = {"class": "CLIPTask"} | task if stage == "clip" or task else None
    return rest

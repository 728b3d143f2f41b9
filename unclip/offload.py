"""Pipelines that are larger than memory: at most one part has its weights there, the one that was used last.

A part keeps its config, statistics and hooks; its parameters wait on the meta device.  Using it lets go of the weights of the
part before it and reads its own from their files, by the loader that made it: whatever can be loaded can be offloaded, from any
format, with the same numbers to the last bit, and no second copy of the weights waits anywhere (moving them between two devices
would keep one).  The weights stay until another part is used, so that all chunks of pictures share one reading.

What it costs: each stage is read again in each run; and all are read once at the start, one after the other, which finds a
broken file before minutes are spent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .checkpoint import Part, fingerprint

# What needs weights, of all parts; other methods call these.
USES = ("encode_image", "encode_text", "encode_tokens", "loss", "loss_pairs", "denoise", "sample", "invert", "write")


class Offload:
    """Keeps the weights of at most one of its parts in memory, on `device`."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.resident: Part[Any] | None = None

    def add(self, load: Callable[[], Part[Any]]) -> Part[Any]:
        """The part that `load` makes, whose weights are there until another one's are needed; `load` reads them again."""
        self.release()
        part = load().to(self.device)
        part.offload, part.kept_fingerprint = self, fingerprint(part)
        for name in USES:
            if hasattr(part, name):
                setattr(part, name, self._using(part, load, getattr(part, name)))
        self.resident = part
        return part

    def to(self, device: torch.device | str) -> None:
        """Where weights are put from now on."""
        self.release()
        self.device = torch.device(device)

    def release(self) -> None:
        """Let go of all weights."""
        part, self.resident = self.resident, None
        if part is None:
            return
        for module in part.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    empty = torch.empty_like(parameter, device="meta")
                    module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
        torch.clear_autocast_cache()  # which holds copies in half precision

    def _using(self, part: Part[Any], load: Callable[[], Part[Any]], method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def use(*args: Any, **settings: Any) -> Any:
            if self.resident is not part:
                self.release()
                # Parameters alone: statistics that were measured since are the part's own.
                for own, fresh in zip(part.modules(), load().modules(), strict=True):
                    for name, parameter in fresh._parameters.items():
                        own._parameters[name] = _laid_out(parameter, own._parameters[name])
                part.to(self.device)
                self.resident = part
            return method(*args, **settings)

        return use


def _laid_out(parameter: nn.Parameter | None, like: nn.Parameter | None) -> nn.Parameter | None:
    """In the memory format that the pipeline has given it: the last bit of a convolution depends on that."""
    if parameter is not None and like is not None and like.ndim == 4 and not like.is_contiguous():
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return parameter

"""The one switch of what is in this folder: faster ways to the same numbers, in inference on the CPU."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

OFF = "UNCLIP_PLAIN_CPU"  # set to 1, every layer computes as torch does


def plain(x: Tensor) -> bool:
    """Inference on the CPU outside of autocast, where layers may compute in ways of their own."""
    kind = x.device.type
    if kind != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled(kind):
        return False
    return os.environ.get(OFF, "0") in ("", "0")


@cache
def onednn_linear(dtype: torch.dtype) -> Any:
    """oneDNN's linear layer, or None where this build of torch lacks it or the processor does not compute in that type.

    The operator is what torch.compile uses, not public: so it is tried once and believed only when it answers rightly.
    """
    try:
        run = torch.ops.mkldnn._linear_pointwise
        x, weight, bias = (torch.tensor(y, dtype=dtype) for y in ([[1.0, 2.0]], [[3.0, 4.0]], [5.0]))
        with torch.no_grad():
            return run if float(run(x, weight, bias, "none", [], "")) == 16 else None
    except (AttributeError, RuntimeError, NotImplementedError):
        return None

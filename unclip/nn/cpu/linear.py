"""A linear layer that reads its weights at the speed of memory when there are few rows."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

FEW = 7  # rows up to which BLAS does better with W x^T than with x W^T


class Linear(nn.Linear):
    """nn.Linear, computed by oneDNN on the CPU in inference.

    A step of a cached prior multiplies a handful of rows by every weight, so it costs what reading the weights costs.
    On two AMD cores, float32, 6 rows by 2048 x 8192: x W^T by BLAS reads 10 to 12 GB/s, W x^T as much (15 at 4 rows, 9
    at 12), oneDNN 28, and 38 from a packed copy of the weights, at twice the memory.  Many rows gain too.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not plain(input) or input.dtype != self.weight.dtype:
            return super().forward(input)
        x = input.reshape(-1, self.in_features)
        if (onednn := onednn_linear(x.dtype)) is not None and self.weight.is_contiguous():
            out = onednn(x.contiguous(), self.weight, self.bias, "none", [], "")
        elif len(x) <= FEW:
            out = torch.mm(self.weight, x.t()).t()
            out = out if self.bias is None else out + self.bias
        else:
            return super().forward(input)
        return out.reshape(*input.shape[:-1], self.out_features)


def plain(x: Tensor) -> bool:
    """Inference on the CPU outside of autocast, where layers may compute in ways of their own."""
    kind = x.device.type
    return kind == "cpu" and not torch.is_grad_enabled() and not torch.is_autocast_enabled(kind)


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

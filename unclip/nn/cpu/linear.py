"""A linear layer that reads its weights at the speed of memory when there are few rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .switch import onednn_linear, plain

ROWS = 7  # rows up to which BLAS does better with W x^T than with x W^T


class Linear(nn.Linear):
    """nn.Linear, computed by oneDNN on the CPU in inference.

    A step of a cached prior multiplies a handful of rows by every weight, so it costs what reading the weights costs.
    On two AMD cores, float32, 6 rows by 2048 x 8192: x W^T by BLAS reads 10 to 12 GB/s, W x^T as much (15 at 4 rows, 9
    at 12), oneDNN 28, and 38 from a packed copy of the weights, at twice the memory.  Many rows gain too.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not plain(input) or input.dtype != self.weight.dtype:
            return super().forward(input)
        x = input.reshape(-1, self.in_features)  # (rows, in)
        if (onednn := onednn_linear(x.dtype)) is not None and self.weight.is_contiguous():
            out = onednn(x.contiguous(), self.weight, self.bias, "none", [], "")
        elif len(x) <= ROWS:
            out = torch.mm(self.weight, x.t()).t()
            out = out if self.bias is None else out + self.bias
        else:
            return super().forward(input)
        return out.reshape(*input.shape[:-1], self.out_features)  # (..., out)

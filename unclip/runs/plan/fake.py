"""Fake components: parameters without memory, so that a model of any size can be run through on a laptop.

Parameters are torch's fake tensors, which say that they live on the CPU and hold nothing.  What meets them turns fake; batches,
masks, noise and buffers stay real, so that code which looks at them (how long is the longest caption?) runs as always.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unclip.checkpoint import Component, build
from unclip.config import Config

P = TypeVar("P", bound=Component[Any])


def fake(component_class: type[P], config: Config) -> P:
    """A component of this config whose parameters take no memory."""
    component = build(component_class, config)
    with torch.no_grad():
        for module in component.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(_fake(parameter.data), parameter.requires_grad)
    return component


@contextmanager
def unfused() -> Iterator[None]:
    """Without the kernels that run a whole block at once in inference: their FLOPs are not known to torch's counter."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _fake(tensor: Tensor) -> Tensor:
    from torch._subclasses.fake_tensor import FakeTensor

    return FakeTensor(_mode(), tensor.to("meta"), torch.device("cpu"))


@cache
def _mode() -> Any:
    # One mode for all, or the parts could not be run together.
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)

"""An exponential moving average of the weights, in float32; of sharded weights each process averages its own rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .shard import RowShard, local, part_of, spread


class Ema:
    """e <- e + (1 - d) (w - e) after each step, d = min(decay, (1 + k) / (10 + k)) at update k; buffers are copied."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        state = model.state_dict(keep_vars=True)
        # Own memory for every name, so tied weights stay loadable by name.
        self.tensors = {name: _copy(tensor) for name, tensor in state.items()}
        averaged = [name for name, tensor in state.items() if isinstance(tensor, nn.Parameter)]
        self._averages, self._weights = [self.tensors[name] for name in averaged], [local(state[name]) for name in averaged]
        self._like = state
        self._buffers = [name for name in state if name not in set(averaged)]
        self._model = model

    def decay_at(self, k: int) -> float:
        return min(self.decay, (1 + k) / (10 + k))

    @torch.no_grad()
    def update(self, k: int) -> None:
        """After update k = 0, 1, ... of the weights."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay_at(k))
        if self._buffers:
            state = self._model.state_dict()  # buffers may have been replaced rather than written to
            for name in self._buffers:
                self.tensors[name].copy_(state[name])

    def state_dict(self) -> dict[str, Tensor | RowShard]:
        """The averaged weights under the model's names; live tensors, clone what you keep."""
        return {name: spread(tensor, self._like[name]) for name, tensor in self.tensors.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(part_of(tensors[name], self._like[name]))

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside the block and exactly its own again afterwards."""
        state = {name: local(tensor) for name, tensor in self._model.state_dict().items()}
        current = {name: tensor.clone() for name, tensor in state.items()}
        try:
            for name, tensor in state.items():
                tensor.copy_(self.tensors[name])
            yield
        finally:
            for name, tensor in state.items():
                tensor.copy_(current[name])


def _copy(tensor: Tensor) -> Tensor:
    copy = local(tensor).detach().clone()
    return copy.float() if isinstance(tensor, nn.Parameter) and copy.is_floating_point() else copy

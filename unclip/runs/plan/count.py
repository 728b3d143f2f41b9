"""Count FLOPs and memory of a training step while it runs, on real or fake components."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .fake import unfused


class Count(NamedTuple):
    """FLOPs of the forward pass, of the frozen teachers in it and of the backward pass; bytes.

    `activations`: alive when the forward pass ends; `working`: the most that was alive, without the gradients; `peak`: with
    them; `gradients`: when the backward pass has ended.  Memory counts what is computed, neither weights nor the batch.
    """

    forward: float
    teachers: float
    backward: float
    activations: float
    working: float
    peak: float
    gradients: float

    @property
    def flops(self) -> float:
        return self.forward + self.teachers + self.backward

    def towards(self, other: Count, share: float) -> Count:
        """On the line from this count to another: 0 = this one, 1 = the other."""
        return Count(*(a + share * (b - a) for a, b in zip(self, other)))


def count(model: nn.Module, step: Callable[[], Tensor], passes: int = 1) -> Count:
    """Run `step`, which gives a loss, forwards and backwards; with several passes gradients add up, and FLOPs are the last's."""
    counter = _Counter()
    hooks = [p.register_post_accumulate_grad_hook(counter.gradient) for p in model.parameters() if p.requires_grad]
    try:
        with counter, unfused():
            for _ in range(passes):
                counter.begin()
                loss = step()
                activations = counter.live
                counter.phase = "backward"
                loss.backward()
                del loss
        flops, memory = counter.flops, (activations, counter.working, counter.peak, counter.gradients)
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in model.parameters():
            parameter.grad = None
    return Count(flops["forward"], flops["teachers"], flops["backward"], *map(float, memory))


class _Counter(TorchDispatchMode):
    """Sees every operation: adds up torch's own FLOP formulas, and the storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.gradients = self.working = self.peak = 0
        self._seen: dict[int, weakref.finalize] = {}
        self._gradients: set[int] = set()
        self.begin()

    def begin(self) -> None:
        self.phase, self.flops = "forward", {"forward": 0.0, "teachers": 0.0, "backward": 0.0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor):
                self._note(x, made=False)  # what was there before the step: weights, the batch
        out = func(*args, **kwargs)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            frozen = self.phase == "forward" and not torch.is_grad_enabled()
            self.flops["teachers" if frozen else self.phase] += formula(*args, **kwargs, out_val=out)
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._note(x, made=True)
        self.working = max(self.working, self.live)
        self.peak = max(self.peak, self.live + self.gradients)
        return out

    def gradient(self, parameter: Tensor) -> None:
        """A parameter's gradient is complete: it is kept, and no activation."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        key = storage._cdata
        if key in self._seen and key not in self._gradients:
            self._gradients.add(key)
            self.live -= storage.nbytes()
            self.gradients += storage.nbytes()

    def _note(self, tensor: Tensor, made: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes() if made else 0
        self.live += size
        self._seen[key] = weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._seen.pop(key, None)
        if key in self._gradients:
            self._gradients.discard(key)
            self.gradients -= size
        else:
            self.live -= size


@contextmanager
def saved_activations(model: nn.Module) -> Iterator[list[int]]:
    """What autograd keeps for the backward pass while this lasts, in bytes, in the list's only entry.

    Each storage counts once; the model's own weights do not.
    """
    storages = {p.untyped_storage()._cdata: None for p in model.parameters()}
    total, alive = [0], list[Any]()

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in storages:
            storages[storage._cdata] = None
            alive.append(storage)  # or its number could be given to another
            total[0] += storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield total

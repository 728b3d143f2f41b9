"""Sequential offloading: at most one component has its weights in memory, the one that was used last.

A component keeps its config, statistics and hooks; its parameters wait on the meta device.  Using it lets go of the weights of
the one before it and reads its own from their files, by the loader that made it: whatever can be loaded can be offloaded, from
any format, with the same numbers to the last bit, and no second copy of the weights waits anywhere (moving them between two
devices would keep one).  The weights stay until another component is used, so that all chunks of pictures share one reading.

Of a component's networks that take turns over the steps (`Component.offload_groups`) one is there.

What it costs: each stage is read again in each run, one whose networks take turns once for each; and all are read once at the
start, one after the other, which finds a broken file before minutes are spent.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .checkpoint import Component, fingerprint

# What needs weights, of all components; other methods call these.
WHOLE = "write"  # with the networks that take turns
USES = ("encode_image", "encode_text", "encode_tokens", "loss", "loss_pairs", "denoise", "sample", "invert", WHOLE)
MMAP_THRESHOLD = -3  # its number for mallopt


class Offload:
    """Keeps at most one component's weights in memory, on `device`.  Threads take turns: one component runs at a time."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.resident: Component[Any] | None = None
        self.lock = threading.RLock()

    def add(self, load: Callable[[], Component[Any]]) -> Component[Any]:
        """The component that `load` makes, whose weights are there until another one's are needed; `load` reads them again."""
        self.release()
        with _pages_apart():
            component = load().to(self.device)
        component.offload, component.kept_fingerprint = self, fingerprint(component)
        for name in USES:
            if hasattr(component, name):
                setattr(component, name, self._using(component, load, getattr(component, name), whole=name == WHOLE))
        for name in component.offload_groups:
            component.get_submodule(name).register_forward_pre_hook(self._turn(component, load, name))
        self.resident = component
        _let_go(component, component.offload_groups[1:])
        return component

    def to(self, device: torch.device | str) -> None:
        """Where weights are put from now on."""
        self.release()
        self.device = torch.device(device)

    def release(self) -> None:
        """Let go of all weights."""
        component, self.resident = self.resident, None
        if component is not None:
            _let_go(component, [""])

    def _using(
        self, component: Component[Any], load: Callable[[], Component[Any]], method: Callable[..., Any], whole: bool
    ) -> Callable[..., Any]:
        @functools.wraps(method)
        def use(*args: Any, **settings: Any) -> Any:
            with self.lock:
                return run(*args, **settings)

        def run(*args: Any, **settings: Any) -> Any:
            if self.resident is not component or (whole and any(p.is_meta for p in component.parameters())):
                self.release()
                self._read(component, load, "")
                self.resident = component
                if not whole:
                    _let_go(component, component.offload_groups[1:])
            made = method(*args, **settings)
            if whole:
                _let_go(component, component.offload_groups[1:])
            return made

        return use

    def _turn(self, component: Component[Any], load: Callable[[], Component[Any]], name: str) -> Callable[[nn.Module, Any], None]:
        """Before the network of that name runs: its weights in place of those of the others."""

        def turn(module: nn.Module, args: Any) -> None:
            if any(p.is_meta for p in module.parameters()):
                _let_go(component, component.offload_groups)
                self._read(component, load, name)

        return turn

    def _read(self, component: Component[Any], load: Callable[[], Component[Any]], name: str) -> None:
        """The weights of the submodule `name`.  Parameters alone: statistics that were measured since are the component's own."""
        with _pages_apart():
            for module, fresh in zip(component.get_submodule(name).modules(), load().get_submodule(name).modules(), strict=True):
                for key, parameter in fresh._parameters.items():
                    module._parameters[key] = _laid_out(parameter, module._parameters[key])
            component.get_submodule(name).to(self.device)
        _trim()


def _let_go(component: Component[Any], names: Iterable[str]) -> None:
    """Of the weights of these submodules."""
    for name in names:
        for module in component.get_submodule(name).modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    empty = torch.empty_like(parameter, device="meta")
                    module._parameters[key] = nn.Parameter(empty, parameter.requires_grad)
    torch.clear_autocast_cache()  # which holds copies in half precision
    _trim()


def _trim() -> None:
    """Give back the memory that the process holds without using it."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@contextmanager
def _pages_apart() -> Iterator[None]:
    """What is allocated meanwhile and is larger than 1 MB gets pages of its own, which go back when it is freed.

    glibc keeps freed blocks of up to 32 MB, and what is read and laid out anew leaves holes: 1 to 4 GB of Karlo's weights.
    Afterwards its largest threshold holds again, for activations come and go too often for pages of their own.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        if libc is not None:
            libc.mallopt(MMAP_THRESHOLD, 2**25)


@functools.cache
def _glibc() -> Any:
    """The C library, where it is one whose allocator can be told; None elsewhere."""
    try:
        libc = ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
        return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
    except OSError:  # another C library
        return None


def _laid_out(parameter: nn.Parameter | None, like: nn.Parameter | None) -> nn.Parameter | None:
    """In the memory layout that the pipeline has given it: the last bit of a convolution depends on that."""
    if parameter is not None and like is not None and parameter.stride() != like.stride():
        module = torch.empty_strided(like.shape, like.stride(), dtype=parameter.dtype, device=parameter.device)
        parameter.data = module.copy_(parameter.data)
    return parameter

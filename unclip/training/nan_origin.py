"""Find the module that first produced a non-finite number, by running the bad step again with hooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn


class NanOrigin(NamedTuple):
    module: str  # as in named_modules; the class of the task for what it computes outside of its modules; "the batch"
    direction: Literal["forward", "backward"]


@torch.no_grad()
def nan_origin(
    task: nn.Module, run: Callable[[], object], agree: Callable[[NanOrigin | None], NanOrigin | None] = lambda mine: mine
) -> NanOrigin | None:
    """Where the forward and backward pass `run` first leaves the finite numbers; None when it does not.

    Buffers are put back; gradients are left behind.  agree: what one of the processes found, for all of them, as each has
    samples of its own and all must run equally often.
    """
    buffers = [(buffer, buffer.clone()) for buffer in task.buffers()]
    try:
        for look in (_forward, _backward):
            with _uncompiled(task), look(task) as origins, torch.enable_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Full backward hook is firing")  # of modules that are fed data
                run()
            if origin := agree(origins[0] if origins else None):
                return origin
    except RuntimeError:  # a module that changes its inputs in place bears no backward hooks
        return None
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
    return agree(_first_parameter(task))


@contextmanager
def _forward(task: nn.Module) -> Iterator[list[NanOrigin]]:
    origins: list[NanOrigin] = []
    running: list[str] = []  # modules under way, outermost first; all were given finite numbers until something is found

    def note(name: str) -> None:
        if not origins:
            origins.append(NanOrigin(name, "forward"))

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not origins and not _finite((args, kwargs)):
                note(running[-1] if running else "the batch")  # made between the modules of the one under way
            running.append(name)

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            running.pop()
            if not origins and not _finite(output):
                note(name)

        return hook

    handles = []
    for path, module in task.named_modules():
        name = path or _title(task)
        handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(module.register_forward_hook(after(name)))
    try:
        yield origins
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _backward(task: nn.Module) -> Iterator[list[NanOrigin]]:
    origins: list[NanOrigin] = []
    fine: set[str] = set()  # modules that were given finite gradients of their outputs

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, grad_output: Any) -> None:
            if _finite(grad_output):
                fine.add(name)
            elif not origins:
                around = [".".join(name.split(".")[:i]) for i in range(name.count("."), 0, -1)]
                origins.append(NanOrigin(next((a for a in around if a in fine), _title(task)), "backward"))

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, grad_input: Any, grad_output: Any) -> None:
            if not origins and not _finite(grad_input):
                origins.append(NanOrigin(name, "backward"))

        return hook

    handles = []
    for name, module in task.named_modules():
        if name:
            handles.append(module.register_full_backward_pre_hook(before(name)))
            handles.append(module.register_full_backward_hook(after(name)))
    try:
        yield origins
    finally:
        for handle in handles:
            handle.remove()


def _first_parameter(task: nn.Module) -> NanOrigin | None:
    """The owner of a gradient that is not finite, when no module's own inputs and outputs showed it."""
    for name, parameter in task.named_parameters():
        if parameter.grad is not None and not _finite(parameter.grad):
            return NanOrigin(name.rpartition(".")[0] or _title(task), "backward")
    return None


def _title(task: nn.Module) -> str:
    return type(task).__name__.removeprefix("FSDP")  # what fully_shard calls the classes that it makes


@contextmanager
def _uncompiled(task: nn.Module) -> Iterator[None]:
    """Compiled code runs no hooks."""
    compiled = [(m, m._compiled_call_impl) for m in task.modules() if getattr(m, "_compiled_call_impl", None) is not None]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


def _finite(tree: Any) -> bool:
    if isinstance(tree, Tensor):
        tensor = tree.detach()
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if not tensor.is_floating_point() or bool(tensor.isfinite().all()):
            return True
        # A mask to be added, of zeros and minus infinities, is as it should be.
        return bool(((tensor == 0) | (tensor == -torch.inf)).all())
    if isinstance(tree, dict):
        return all(_finite(value) for value in tree.values())
    return all(_finite(value) for value in tree) if isinstance(tree, (tuple, list)) else True

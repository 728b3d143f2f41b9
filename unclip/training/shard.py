"""FSDP2 sharding of weights, and the way between a shard and the whole tensor.

A sharded parameter is a DTensor.  Everything in the loop that works number by number (the optimiser, averages) works on
`local` tensors, which are the process's own rows as plain tensors in the same memory; states hold whole tensors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .blocks import blocks
from .task import Task


def shard(task: Task, device: torch.device) -> None:
    """Share out the parameters of `task.model` over all processes, block by block; teachers and numbers stay whole.

    While the task runs, each block's weights are gathered just before it and dropped just after it.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7):
        raise ValueError(f"shard needs torch 2.7 or newer; this is {torch.__version__}: set shard to false")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    trained = set(task.model.parameters())
    # FSDP2 takes no parameters without dimensions (CLIP's logit_scale): `average_whole` cares for their gradients.
    whole = {p for p in task.parameters() if p not in trained or p.ndim == 0}

    def apply(module: nn.Module) -> None:
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=whole)

    for block in blocks(task.model):
        for submodule in _called_from_outside(block):
            apply(submodule)
        apply(block)
    # The root is the task and not its model, whose methods are many: loss, encode_image, ...
    apply(task)
    for name in ("validate", "sample_images"):
        register_fsdp_forward_method(task, name)
    task.to(device)


def _called_from_outside(block: nn.Module) -> list[nn.Module]:
    """Modules of a block that run apart from it: a UNet projects the context for all its attention layers beforehand."""
    from unclip.nn.unet import SpatialAttention

    return [m.context for m in block.modules() if isinstance(m, SpatialAttention) and m.context is not None]


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")


@torch.no_grad()
def local(tensor: Any) -> Tensor:
    """This process's rows of a sharded tensor, in the same memory; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def part_of(full: Tensor, like: Any) -> Tensor:
    """The rows of `full` that this process has of `like`."""
    if not is_sharded(like) or full.shape != like.shape:
        return full
    from torch.distributed.tensor import distribute_tensor

    full = full.to(like.device)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None).to_local()


class RowShard(NamedTuple):
    """A tensor of which every process holds the rows that it holds of the sharded tensor `like`."""

    rows: Tensor
    like: Any

    @property
    def shape(self) -> torch.Size:
        return self.like.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.dtype

    def whole(self) -> Tensor:
        """All rows.  Every process must ask."""
        from torch.distributed.tensor import DTensor

        mesh, placements = self.like.device_mesh, self.like.placements
        spread = DTensor.from_local(
            self.rows, mesh, placements, run_check=False, shape=self.like.shape, stride=self.like.stride()
        )
        return spread.full_tensor()


def spread(rows: Tensor, like: Tensor) -> Tensor | RowShard:
    """`rows` as what they are a part of, when `like` is sharded and they are shaped as its rows."""
    return RowShard(rows, like) if is_sharded(like) and rows.shape == local(like).shape else rows


def average_whole(parameters: list[nn.Parameter]) -> None:
    """Average the gradients of the parameters that sharding left whole over the processes; FSDP2 does it for the others."""
    for parameter in parameters:
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= torch.distributed.get_world_size()

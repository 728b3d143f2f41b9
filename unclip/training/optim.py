"""AdamW with decay on matrices only, the learning rate of a step, and the update that guards itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import TrainConfig
from .shard import RowShard, average_whole, is_sharded, local, part_of, spread

GUARDED = ("cpu", "cuda")  # devices whose fused kernel heeds grad_scale and found_inf; that of MPS takes them and does not


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step 0, 1, ...: linear warm-up, then constant, or a cosine or line to floor * lr at the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.decay == "constant":
        return config.lr
    done = min(1.0, (step - config.warmup) / max(1, config.steps - 1 - config.warmup))
    share = (1 + math.cos(math.pi * done)) / 2 if config.decay == "cosine" else 1 - done
    return config.lr * (config.floor + (1 - config.floor) * share)


class Weight(NamedTuple):
    """A trainable parameter, and what the optimiser has in its place: itself, or this process's shard as a plain parameter."""

    name: str
    parameter: nn.Parameter
    mine: nn.Parameter
    decayed: bool


def trainable(model: nn.Module) -> list[Weight]:
    """What is to be trained.  Vectors (biases, gains, nulls) and embeddings are not decayed."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    weights = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            vector = sum(side > 1 for side in parameter.shape) < 2
            mine = nn.Parameter(local(parameter)) if is_sharded(parameter) else parameter
            weights.append(Weight(name, parameter, mine, not vector and id(parameter) not in tables))
    if not weights:
        raise ValueError(f"{type(model).__name__} has no trainable parameters: nothing to train")
    return weights


def collect(weights: list[Weight]) -> None:
    """Give sharded weights their gradients, after a backward pass."""
    if all(weight.mine is weight.parameter for weight in weights):
        return
    average_whole([weight.parameter for weight in weights if weight.mine is weight.parameter])
    for weight in weights:
        if weight.mine is not weight.parameter:
            weight.mine.grad = None if weight.parameter.grad is None else local(weight.parameter.grad)


def drop_gradients(weights: list[Weight]) -> None:
    for weight in weights:
        weight.parameter.grad = weight.mine.grad = None


def gradient_norm(weights: list[Weight]) -> Tensor:
    """Euclidean norm over all gradients, those of all shards, a scalar on their device."""
    gradients = [weight.mine.grad for weight in weights if weight.mine.grad is not None]
    if not gradients:
        raise ValueError("the loss reached no parameter of task.model: no gradients after the backward pass")
    norms = torch.stack(torch._foreach_norm(gradients))
    spread = [weight.mine is not weight.parameter for weight in weights if weight.mine.grad is not None]
    if not any(spread):
        return torch.linalg.vector_norm(norms)
    shards = torch.tensor(spread, device=norms.device)
    squares = (norms.square() * shards).sum()
    torch.distributed.all_reduce(squares)
    return (squares + (norms.square() * ~shards).sum()).sqrt()


class Stepper:
    """Clips, guards and applies one update without asking the host: a bad gradient leaves weights and moments alone.

    The fused kernel divides gradients by `grad_scale` and does nothing when `found_inf` is 1, so clipping, the loss
    scale of float16 and the skipping of bad steps cost no pass of their own.  On other devices than `GUARDED` they do, and the
    host is asked.
    """

    def __init__(self, weights: list[Weight], config: TrainConfig, device: torch.device):
        self.weights, self.clip, self.float16 = weights, config.clip, config.precision == "float16"
        self.guarded = device.type in GUARDED
        groups = [
            {"params": [w.mine for w in weights if w.decayed], "weight_decay": config.weight_decay},
            {"params": [w.mine for w in weights if not w.decayed], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        # One fused kernel per step, also on the CPU: 12 ms against 169 for 20M parameters on two cores.  It takes plain
        # tensors, which is why it is given shards as such.
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        self.scale = torch.tensor(2.0**16 if self.float16 else 1.0, device=device)  # loss scale
        self.good = torch.tensor(0.0, device=device)  # updates since the scale last changed

    def step(self, norm: Tensor, bad: Tensor, lr: float) -> None:
        """`norm`: of the scaled gradients divided by the scale; `bad`: scalar bool."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        excess = (norm / self.clip).clamp(min=1.0) if self.clip else torch.ones_like(norm)
        scale = (self.scale * excess).float()
        if self.guarded:
            self.optimizer.grad_scale = scale  # type: ignore[attr-defined]
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bad:
            torch._foreach_div_([weight.mine.grad for weight in self.weights if weight.mine.grad is not None], scale)
            self.optimizer.step()
        drop_gradients(self.weights)
        if self.float16:  # halve after an overflow, double after 2000 good updates
            self.good = torch.where(bad, 0.0, self.good + 1)
            grow = self.good >= 2000
            scale = torch.where(bad, self.scale / 2, torch.where(grow, self.scale * 2, self.scale))
            self.scale = scale.clamp(1.0, 2.0**24)
            self.good = torch.where(grow, 0.0, self.good)

    def tensors(self) -> dict[str, Tensor | RowShard]:
        """The optimiser's state by parameter name: {"exp_avg/unet.in.weight": ...}."""
        named = [(weight, self.optimizer.state.get(weight.mine, {})) for weight in self.weights]
        return {f"{key}/{w.name}": spread(value, w.parameter) for w, state in named for key, value in state.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        weights = {weight.name: weight for weight in self.weights}
        for path, value in tensors.items():
            key, _, name = path.partition("/")
            if name not in weights:
                raise ValueError(f"the saved optimiser has moments of {name!r}, which is not trained now")
            like = weights[name].mine
            value = part_of(value, weights[name].parameter)
            # In the parameter's own memory layout, which the fused kernel relies on.
            moment = torch.empty_like(like, requires_grad=False) if value.shape == like.shape else torch.empty_like(value)
            self.optimizer.state[like][key] = moment.to(like.device).copy_(value)

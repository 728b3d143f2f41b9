"""Mutable training state: model, EMA, optimiser, counters; saved to disk and restored."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from unclip.config import Config

from .config import TrainConfig
from .ema import Ema
from .log import Meter
from .optim import Stepper
from .shard import is_sharded, local, part_of, spread
from .state import State, ema_name
from .task import Task


class Run:
    """Mutable training state: model, EMA, optimiser, running means, counters.

    `step`: updates done; `streak`: bad steps in a row; `seconds`: trained, up to the last log line; `best`: the step whose
    validation came out best, and its number.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, samples: int, stepper: Stepper, meter: Meter):
        self.model, self.config, self.samples = model, config, samples
        self.stepper, self.meter = stepper, meter
        self.emas = [Ema(model, decay) for decay in config.decays]
        self.step, self.streak, self.seconds = 0, 0, 0.0
        self.best: tuple[int, float] | None = None

    @property
    def ema(self) -> Ema:
        """The average that samples, validation and the result use."""
        return self.emas[0]

    @property
    def sharded(self) -> bool:
        return any(is_sharded(parameter) for parameter in self.model.parameters())

    def state(self) -> State:
        tensors = {
            "model": {name: spread(local(tensor), tensor) for name, tensor in self.model.state_dict().items()},
            **{ema_name(self.config, ema.decay): ema.state_dict() for ema in self.emas},
            "optimizer": self.stepper.tensors(),
        }
        values = {
            "config": self.config.to_json(),
            "model": _identity(self.model),
            "samples": self.samples,
            "seconds": self.seconds,
            "streak": self.streak,
            "scale": float(self.stepper.scale),
            "good": float(self.stepper.good),
            "meter": self.meter.state(),
            "best": {"number": self.config.best, "step": self.best[0], "value": self.best[1]} if self.best else None,
        }
        return State(self.step, tensors, values)

    @torch.no_grad()
    def restore(self, state: State, run_dir: Path) -> None:
        """Stand where `state` stood, bit for bit.  ValueError: it is the state of another run."""
        self._refuse_other(state, run_dir)
        for name, tensor in self.model.state_dict().items():
            local(tensor).copy_(part_of(state.tensors["model"][name], tensor))
        for ema in self.emas:
            ema.load(state.tensors[ema_name(self.config, ema.decay)])
        self.stepper.load(state.tensors["optimizer"])
        self.stepper.scale.fill_(state.values["scale"])
        self.stepper.good.fill_(state.values["good"])
        self.meter.load(state.values["meter"])
        self.step, self.streak, self.seconds = state.step, state.values["streak"], state.values["seconds"]
        best = state.values.get("best")  # of another number than is asked for now it says nothing
        self.best = (best["step"], best["value"]) if best and best["number"] == self.config.best else None

    def _refuse_other(self, state: State, run_dir: Path) -> None:
        saved = TrainConfig.from_json(state.values["config"], source=f"the config of the state in {run_dir}")
        changes = saved.differences(self.config)
        if state.values["samples"] != self.samples:
            changes.append(f"number of samples: {state.values['samples']} -> {self.samples}")
        if problem := _unreadable(state.values["model"], self.model):
            raise ValueError(
                f"{run_dir} holds a run that another version of unclip has begun, stopped after step {state.step}, and this one "
                f"cannot go on with it: {problem}. Let that version finish it, or choose a new run folder (by `unclip train` "
                f"its averaged weights are trained on with start={run_dir})"
            )
        if not _same_config(state.values["model"], self.model):
            changes.append(f"config of the model: {state.values['model']} -> {_identity(self.model)}")
        then = {name: tuple(tensor.shape) for name, tensor in state.tensors["model"].items()}
        now = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        if then != now:
            changes.append(f"weights: {first_names(sorted(n for n in {*then, *now} if then.get(n) != now.get(n)))}")
        if changes:
            raise ValueError(
                f"{run_dir} holds another run, stopped after step {state.step}. Changed since: {'; '.join(changes)}. "
                "Put that back, or choose another folder for the new run"
            )
        if state.step > self.config.steps:
            raise ValueError(
                f"the run in {run_dir} has done {state.step} steps already, more than the {self.config.steps} asked for"
            )


def prepare(task: Task, config: TrainConfig, init: dict[str, Tensor] | None) -> nn.Module:
    """`task.model` ready to train: `init` loaded, float32 weights, memory format; all else in the task frozen."""
    model = task.model
    if config.micro_batch is not None and getattr(model, "couples_samples", False):
        raise ValueError(
            f"micro_batch is {config.micro_batch}, but the loss of a {type(model).__name__} makes the samples of a batch each "
            "other's negatives: in pieces it would be another loss. Set micro_batch to null; checkpointing also saves memory"
        )
    trained = {id(parameter) for parameter in model.parameters()}
    for parameter in task.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)
    if init is not None:
        wrong = model.load_state_dict(init, strict=False)
        if wrong.missing_keys or wrong.unexpected_keys:
            raise ValueError(
                f"init does not fit {type(model).__name__}: missing {first_names(wrong.missing_keys)}; "
                f"unknown {first_names(wrong.unexpected_keys)}"
            )
    _freeze(model, config.freeze)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    task.eval()
    model.train()
    return model


def _freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Take the parameters whose names match out of training: no gradient, no optimiser state, not a bit changes."""
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(
                f"freeze: no parameter of {type(model).__name__} matches {pattern!r}; there are {first_names(names)}"
            )
    for name, parameter in model.named_parameters():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)


def first_names(names: list[str]) -> str:
    """The first names of a long list."""
    if not names:
        return "none"
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _identity(model: nn.Module) -> str | None:
    """The model's config as JSON on one line, if it has one."""
    config = getattr(model, "config", None)
    return json.dumps(json.loads(config.to_json())) if isinstance(config, Config) else None


def _same_config(saved: str | None, model: nn.Module) -> bool:
    """Whether a state's config is the model's, which may have fields since whose defaults change nothing."""
    config = getattr(model, "config", None)
    if saved is None or not isinstance(config, Config):
        return saved == _identity(model)
    return type(config).from_json(saved) == config


def _unreadable(saved: str | None, model: nn.Module) -> str | None:
    """Why a state's config cannot be read as one of this model's class; None = it can be."""
    config = getattr(model, "config", None)
    if saved is None or not isinstance(config, Config):
        return None
    try:
        type(config).from_json(saved, source="its model's config")
    except ValueError as error:
        return str(error)
    return None

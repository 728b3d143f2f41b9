"""The training loop of every stage: batches in, averaged weights out, resumed exactly wherever it was cut off."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from unclip.checks import path_of
from unclip.data.order import Data, indices, slice_for
from unclip.progress import Bars
from unclip.randomness import Noise
from unclip.trees import move
from unclip.types import Batch

from . import state as states
from .backward import Backward
from .blocks import recomputed
from .config import TrainConfig
from .exact import deterministic
from .lock import locked
from .log import Log, Meter
from .nan_origin import NanOrigin, nan_origin
from .optim import Stepper, collect, drop_gradients, gradient_norm, learning_rate, trainable
from .prefetch import Prefetch
from .run import Run, prepare
from .sam import sam_ascend, sam_restore
from .shard import RowShard, shard
from .signals import Signals
from .task import Task
from .watch import Watch, layout

if TYPE_CHECKING:
    from accelerate import Accelerator


class Trained(NamedTuple):
    step: int
    ema: dict[str, Tensor]  # averaged weights by the names of task.model's state_dict; of a sharded run on the main process alone


def train(
    task: Task,
    data: Data,
    config: TrainConfig,
    run_dir: str | Path,
    init: dict[str, Tensor] | None = None,
    held_out: Data | None = None,
    bars: Bars | None = None,
) -> Trained:
    """Train `task.model`, and nothing else in the task; continue by itself where the run in `run_dir` stopped.

    `init`: weights to start a new run from.  `held_out`: data to validate the averaged weights on.  SIGTERM and SIGINT save and
    exit with 143 and 130.  ValueError: the folder holds another run, or none but broken states, or another process trains in it.
    FloatingPointError: `max_skips` steps in a row had a loss or gradient that is not finite.  `bars`: None = one over the steps,
    where somebody watches.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="no")  # the precision is the config's: a plain autocast, in Backward
    _refuse_strangers(accelerator.num_processes)
    if config.best is not None and held_out is None:
        raise ValueError(f"best is {config.best!r}, but there is no held-out data to validate on: give some, or set best to null")
    if len(data) < 1:
        raise ValueError("the data is empty: nothing to train on")
    with locked(path_of(run_dir), accelerator.is_main_process):
        return _train(task, data, config, path_of(run_dir), init, held_out, accelerator, bars)


def _train(
    task: Task,
    data: Data,
    config: TrainConfig,
    run_dir: Path,
    init: dict[str, Tensor] | None,
    held_out: Data | None,
    accelerator: Accelerator,
    bars: Bars | None,
) -> Trained:
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    mine = slice_for(config.batch, rank, world)
    model = prepare(task, config, init)
    wrapped = _share(task, config, accelerator)
    weights = trainable(model)
    stepper = Stepper(weights, config, device)
    run = Run(model, config, len(data), stepper, Meter(_timesteps(model), accelerator.gather if world > 1 else None))
    if (state := _newest(run_dir, accelerator)) is not None:
        run.restore(state, run_dir)
        del state  # it keeps the files open, which on Windows are then never removed
    accelerator.wait_for_everyone()  # nobody writes before everybody has read
    bars = (bars or Bars()) if accelerator.is_main_process else Bars(False)
    log = Log(run_dir, run.step, active=accelerator.is_main_process, say=bars.say)
    if run.step:
        log.say(f"continuing {run_dir} after step {run.step}" + (", so init is not used" if init else ""))
    if config.shard and world == 1:
        log.say("shard: one process alone has nothing to share out; it holds all weights")
    backward = Backward(wrapped, config, device, rank)

    def make(step: int) -> tuple[Batch, Noise]:
        """This process's rows of global batch `step` and their noise: functions of seed, step and position alone."""
        chosen = indices(len(data), config.batch, config.seed, step, getattr(data, "weights", None))[mine]
        noise = Noise.of(config.seed, range(config.batch)[mine]).at(f"step/{step}")
        return layout(data.batch(chosen, noise.at("data")), config), noise.at("loss")

    def find(step: int) -> NanOrigin | None:
        """Which module spoilt a step, by its batch and noise.  (Seen some steps late, weights have moved on by those.)"""
        batch, noise = make(step)
        here = move(batch, device)
        origin = nan_origin(task, lambda: backward(here, noise, step, stepper.scale), lambda origin_: _any(origin_, accelerator))
        drop_gradients(weights)
        return origin

    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        stack.enter_context(log)
        stack.enter_context(torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []))
        stack.enter_context(deterministic(config.deterministic))
        stack.enter_context(recomputed(model, config.checkpointing))
        if config.compile:
            getattr(model, "network", model).compile()
        batches = stack.enter_context(Prefetch(make, run.step, config.steps, config.workers))
        watch = Watch(task, data, held_out, run, run_dir, accelerator, log, find)
        stack.callback(watch.trackers.close)
        stack.enter_context(bars)
        bars.show("train", run.step, config.steps, unit="step")
        for batch, noise in batches:
            batch, step = move(batch, device), run.step
            losses, loss = backward(batch, noise, step, stepper.scale)
            collect(weights)
            if (rho := getattr(task, "sam_rho", None)) is not None:
                # Sharpness-aware: the gradient that counts is the one at the worst weights nearby.
                shards = [weight.mine for weight in weights]
                before = sam_ascend(shards, rho, gradient_norm(weights) if run.sharded else None)
                drop_gradients(weights)
                backward(batch, noise, step, stepper.scale)
                collect(weights)
                sam_restore(shards, before)
            norm = gradient_norm(weights) / stepper.scale
            bad = _anywhere(~(norm.isfinite() & loss.isfinite()), accelerator)
            rate = learning_rate(config, step)
            stepper.step(norm, bad, rate)
            for ema in run.emas:
                ema.update(step)
            run.meter.add(step + 1, losses, norm, bad)
            run.step = step + 1
            bars.show("train", run.step, config.steps, unit="step")
            watch.on_step_end(signals, rate)
    return Trained(run.step, _whole(run, accelerator))


def _refuse_strangers(world: int) -> None:
    """Processes that were started together and do not know of each other would each write the same run."""
    launched = int(os.environ.get("WORLD_SIZE") or 1)
    if world == 1 and launched > 1:
        raise ValueError(
            f"WORLD_SIZE says that {launched} processes train, but accelerate sees this one alone: each would do the whole "
            "training, all in one folder. accelerate ignores torchrun where there is no GPU: for processes on CPUs set "
            "ACCELERATE_USE_CPU=true. For one process unset WORLD_SIZE"
        )


def _share(task: Task, config: TrainConfig, accelerator: Accelerator) -> nn.Module:
    """The task as the processes train it together: each with all weights (DDP), or with a share of them (FSDP2)."""
    trainable(task.model)  # says so when there is nothing to train, before the processes are tied together
    if not config.shard or accelerator.num_processes == 1:
        return accelerator.prepare_model(task)
    shard(task, accelerator.device)
    return task


def _any(mine: NanOrigin | None, accelerator: Accelerator) -> NanOrigin | None:
    """What the first process says that knows something."""
    if accelerator.num_processes == 1:
        return mine
    from accelerate.utils import gather_object

    return next((origin for origin in gather_object([mine]) if origin is not None), None)


def _newest(run_dir: Path, accelerator: Accelerator) -> states.State | None:
    """The state to continue from: found and checked by the main process, for all."""
    if accelerator.num_processes == 1:
        return states.newest(run_dir)
    from accelerate.utils import broadcast_object_list

    state = states.newest(run_dir) if accelerator.is_main_process else None
    step: list[int | None] = [state.step if state else None]
    broadcast_object_list(step)
    return state if accelerator.is_main_process or step[0] is None else states.read(run_dir, step[0])


def _whole(run: Run, accelerator: Accelerator) -> dict[str, Tensor]:
    """The averaged weights; of sharded ones the main process puts each together on the CPU, the others have none."""
    result = {}
    for name, tensor in run.ema.state_dict().items():
        full = tensor.whole().cpu() if isinstance(tensor, RowShard) else tensor
        if accelerator.is_main_process or not run.sharded:
            result[name] = full
    return result


def _timesteps(model: nn.Module) -> int | None:
    """T of the model's schedule; None = it has none, and the loss is not split by timestep."""
    return getattr(getattr(model, "schedule", None), "T", None)


def _anywhere(flag: Tensor, accelerator: Accelerator) -> Tensor:
    """True when the flag is true in any process: all skip a step or none does."""
    return flag if accelerator.num_processes == 1 else accelerator.reduce(flag.float(), "sum") > 0

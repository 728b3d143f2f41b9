"""One loop for every stage: batches in, averaged weights out, exact to continue wherever it was cut off."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from unclip.data.order import Data, indices, slice_for
from unclip.randomness import Noise
from unclip.types import Batch, Losses, Task, move

from . import state as states
from .config import TrainConfig
from .ema import Ema
from .log import Log, Meter, console_line, digits, save_grid
from .optim import Stepper, adamw, gradient_norm, learning_rate
from .prefetch import Prefetch
from .run import Run, prepare
from .sam import sam_ascend, sam_restore
from .signals import Signals

if TYPE_CHECKING:
    from accelerate import Accelerator

LOOK = 8  # steps between looks at signals, clock and skipped steps where a look costs a synchronisation
GRID = 16  # pictures on a grid of samples


class Trained(NamedTuple):
    step: int
    ema: dict[str, Tensor]  # averaged weights under the names of task.model's state_dict


def train(task: Task, data: Data, config: TrainConfig, run_dir: str | Path, init: dict[str, Tensor] | None = None) -> Trained:
    """Train `task.model`, and nothing else in the task; continue by itself where the run in `run_dir` stopped.

    `init`: weights to start a new run from.  SIGTERM and SIGINT save and exit with 143 and 130.  ValueError: the folder
    holds another run.  FloatingPointError: `max_skips` steps in a row had a loss or gradient that is not finite.
    """
    from accelerate import Accelerator

    run_dir = Path(run_dir)
    accelerator = Accelerator(mixed_precision="no")  # the precision is the config's: a plain autocast, below
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    mine = slice_for(config.batch, rank, world)
    if len(data) < 1:
        raise ValueError("the data is empty: nothing to train on")

    model = prepare(task, config, init)
    wrapped = accelerator.prepare_model(task)
    parameters = [p for p in model.parameters() if p.requires_grad]
    stepper = Stepper(adamw(model, config), config.clip, device, float16=config.precision == "float16")
    meter = Meter(_timesteps(model), accelerator.gather if world > 1 else None)
    run = Run(model, config, len(data), Ema(model, config.ema), stepper, meter)
    if (state := states.newest(run_dir)) is not None:
        run.restore(state, run_dir)
    accelerator.wait_for_everyone()  # nobody writes before everybody has read
    log = Log(run_dir, run.step, active=accelerator.is_main_process)
    if run.step:
        log.say(f"continuing {run_dir} after step {run.step}" + (", so init is not used" if init else ""))
    if config.compile:
        getattr(model, "network", model).compile()

    def make(step: int) -> tuple[Batch, Noise]:
        """This process's rows of global batch `step` and their noise: functions of seed, step and position alone."""
        chosen = indices(len(data), config.batch, config.seed, step)[mine]
        noise = Noise.of(config.seed, range(config.batch)[mine]).at(f"step/{step}")
        return _layout(data.batch(chosen, noise.at("data")), config), noise.at("loss")

    def backward(batch: Batch, noise: Noise, step: int) -> tuple[Losses, Tensor]:
        """Gradients of the loss, meant over the global batch, times the loss scale."""
        _seed_dropout(device, config.seed, step, rank)
        precision = getattr(torch, config.precision)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            losses = wrapped(batch, noise)
        loss = losses.total.float().mean()  # shares are equal, and processes average their gradients
        (loss * stepper.scale).backward()
        return losses, loss.detach()

    def save() -> None:
        try:
            if accelerator.is_main_process:
                log.sync()
                states.save(run_dir, run.state(), config.keep)
        finally:  # also after a full disk, or the others would wait for ever
            accelerator.wait_for_everyone()

    devices = [device.index or 0] if device.type == "cuda" else []
    batches = Prefetch(make, run.step, config.steps)
    lap, lap_step, saved = time.perf_counter(), run.step, time.perf_counter()
    with Signals() as signals, log, torch.random.fork_rng(devices), batches:
        for batch, noise in batches:
            batch, step = move(batch, device), run.step
            losses, loss = backward(batch, noise, step)
            if (rho := getattr(task, "sam_rho", None)) is not None:
                # Sharpness-aware: the gradient that counts is the one at the worst weights nearby.
                before = sam_ascend(parameters, rho)
                stepper.optimizer.zero_grad(set_to_none=True)
                backward(batch, noise[:], step)
                sam_restore(parameters, before)
            norm = gradient_norm(parameters) / stepper.scale
            bad = _anywhere(~(norm.isfinite() & loss.isfinite()), accelerator)
            rate = learning_rate(config, step)
            stepper.step(norm, bad, rate)
            run.ema.update(step)
            meter.add(step + 1, losses, norm, bad)
            run.step = step + 1

            last = run.step == config.steps
            log_due, sample_due = run.step % config.log_every == 0, _due(config.sample_every, run.step)
            save_due = _due(config.save_steps, run.step) or last
            free = world == 1 and device.type == "cpu"  # looking costs nothing
            if not (free or log_due or sample_due or save_due or run.step % LOOK == 0):
                continue

            for seen in meter.flush():
                run.streak = 0 if seen.fine else run.streak + 1
                if not seen.fine:
                    log.write({"step": seen.step, "event": "skipped", "loss": seen.loss, "grad_norm": seen.norm})
                    log.say(f"step {seen.step} skipped: loss {seen.loss:.4g}, gradient norm {seen.norm:.4g}")
                if run.streak >= config.max_skips + (16 if stepper.float16 else 0):  # float16 searches its scale
                    save()
                    raise FloatingPointError(
                        f"the loss or gradient was not finite in {run.streak} steps in a row, up to step {seen.step} "
                        f"(loss {seen.loss:.4g}, gradient norm {seen.norm:.4g}). Stopped, with the state saved in "
                        f"{run_dir}: look at the data and the learning rate, or train in float32"
                    )
            now = time.perf_counter()
            if log_due:
                run.seconds += now - lap
                row = {"step": run.step, "samples": run.step * config.batch, **meter.take()}
                row |= {"lr": digits(rate), "ema": digits(run.ema.decay_at(step)), "seconds": digits(run.seconds)}
                row |= {"samples_per_second": digits((run.step - lap_step) * config.batch / (now - lap))}
                log.write(row)
                log.say(console_line(row, config.steps))
                lap, lap_step = now, run.step
            stop, overdue = _agree(signals.caught, now - saved > config.save_seconds, accelerator)
            if sample_due and not stop:
                _samples(task, data, config, run, run_dir, accelerator)
            if save_due or overdue or stop:
                try:
                    save()
                except OSError as error:
                    if last or stop:
                        raise
                    log.say(f"the state after step {run.step} could not be saved: {error}; training goes on")
                saved = time.perf_counter()
            if stop:
                log.say(f"stopped by signal {stop} after step {run.step}, state saved: the same command continues")
                raise SystemExit(128 + stop)
            lap += time.perf_counter() - now  # the speed logged is that of training
    return Trained(run.step, run.ema.state_dict())


def _samples(task: Task, data: Data, config: TrainConfig, run: Run, run_dir: Path, accelerator: Accelerator) -> None:
    """A grid of samples of the averaged weights, always for the same data and the same noise."""
    if accelerator.is_main_process:
        n = min(GRID, len(data))
        noise = Noise.of(config.seed, range(n)).at("samples")
        modes = [(module, module.training) for module in run.model.modules()]
        run.model.eval()
        with run.ema.applied(), torch.no_grad():
            batch = _layout(data.batch([i * len(data) // n for i in range(n)], None), config)
            images = task.sample_images(move(batch, accelerator.device), noise)
        for module, training in modes:
            module.training = training
        if images is not None:
            save_grid(images, run_dir / "samples" / f"step-{run.step:08d}.png")
    accelerator.wait_for_everyone()


def _layout(batch: Batch, config: TrainConfig) -> Batch:
    if config.channels_last and batch.images is not None:
        return batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))
    return batch


def _timesteps(model: nn.Module) -> int | None:
    """T of the model's schedule; None = it has none, and the loss is not split by timestep."""
    return getattr(getattr(model, "schedule", None), "T", None)


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _anywhere(flag: Tensor, accelerator: Accelerator) -> Tensor:
    """True when the flag is true in any process: all skip a step or none does."""
    return flag if accelerator.num_processes == 1 else accelerator.reduce(flag.float(), "sum") > 0


def _agree(caught: int | None, overdue: bool, accelerator: Accelerator) -> tuple[int, bool]:
    """Signal and clock as all processes shall see them: any signal counts, and the main process's clock."""
    if accelerator.num_processes == 1:
        return caught or 0, overdue
    mine = [caught or 0, int(overdue and accelerator.is_main_process)]
    everyone = accelerator.gather(torch.tensor([mine], device=accelerator.device))
    return int(everyone[:, 0].max()), bool(everyone[:, 1].any())


def _seed_dropout(device: torch.device, *parts: int) -> None:
    """Seed torch's global generators, the only ones that dropout knows.  (torch.manual_seed costs half a millisecond.)"""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "little") >> 1  # torch takes 63 bits
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)

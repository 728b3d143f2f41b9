"""What runs between steps: skipped steps, log lines, validation, sample grids, checkpoints, signals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from unclip.data.order import Data
from unclip.files import write_files
from unclip.images import grid
from unclip.randomness import Noise
from unclip.trees import move
from unclip.types import Batch

from . import state as states
from .config import TrainConfig
from .log import Log, Seen, console_line, digits
from .nan_origin import NanOrigin
from .run import Run
from .signals import Signals
from .task import Task

if TYPE_CHECKING:
    from accelerate import Accelerator

CHECK_EVERY = 8  # steps between checks of signals, clock and skipped steps where a check costs a synchronisation
GRID = 16  # pictures on a grid of samples


class Watch:
    """`on_step_end` after every step.  All processes do the same things at the same steps; the main one writes."""

    def __init__(
        self,
        task: Task,
        data: Data,
        held_out: Data | None,
        run: Run,
        run_dir: Path,
        accelerator: Accelerator,
        log: Log,
        find: Callable[[int], NanOrigin | None],
    ):
        """find: which module spoilt a step, by running it again."""
        from .trackers import Trackers
        from .validation import Validation

        self.task, self.data, self.run, self.config, self.run_dir = task, data, run, run.config, run_dir
        self.accelerator, self.log, self.find = accelerator, log, find
        self.validation = None if held_out is None else Validation(task, held_out, run.config, accelerator)
        self.trackers = Trackers(run.config.trackers, run_dir, accelerator, run.config)
        self.lap, self.lap_step, self.saved = time.perf_counter(), run.step, time.perf_counter()
        # Where checks cost nothing, everything is seen at once.
        self.free = accelerator.num_processes == 1 and accelerator.device.type == "cpu"

    def on_step_end(self, signals: Signals, rate: float) -> None:
        """`rate`: the learning rate of the step that was just done."""
        config, run = self.config, self.run
        last = run.step == config.steps
        log_due, sample_due = _due(config.log_every, run.step), _due(config.sample_every, run.step)
        validate_due = self.validation is not None and (_due(config.validate_every, run.step) or last)
        save_due = _due(config.save_steps, run.step) or last
        if not (self.free or log_due or sample_due or validate_due or save_due or run.step % CHECK_EVERY == 0):
            return
        for seen in run.meter.flush():
            self._count_bad(seen)
        now = time.perf_counter()
        if log_due:
            self._write_means(now, rate)
        before = run.best
        if validate_due:
            self._validate()
        stop, overdue = self._agree(signals.caught, now - self.saved > config.save_seconds)
        if sample_due and not stop:
            self._draw_samples()
        if save_due or overdue or stop or run.best != before:
            if problem := self._save():
                run.best = before
                if last or stop:
                    raise self._unsaved(problem)
                self.log.say(f"the state after step {run.step} could not be saved: {problem}; training goes on")
            self.saved = time.perf_counter()
        if stop:
            self.log.say(f"stopped by signal {stop} after step {run.step}, state saved: the same command continues")
            raise SystemExit(128 + stop)
        self.lap += time.perf_counter() - now  # the speed logged is that of training

    def _count_bad(self, seen: Seen) -> None:
        """Tell of a step that was skipped, and stop after too many."""
        run, search = self.run, 16 if self.run.stepper.float16 else 0  # float16 searches its scale
        run.streak = 0 if seen.fine else run.streak + 1
        if seen.fine:
            return
        # A gradient too large for float16's scale is part of that search, and nobody's fault.
        origin = self.find(seen.step - 1) if run.streak > search or not math.isfinite(seen.loss) else None
        where = f", first in {origin.module}, {origin.direction}" if origin else ""
        row = {"step": seen.step, "event": "skipped", "loss": seen.loss, "grad_norm": seen.norm}
        self.log.write(row | (origin._asdict() if origin else {}))
        self.log.say(f"step {seen.step} skipped: loss {seen.loss:.4g}, gradient norm {seen.norm:.4g}{where}")
        if run.streak >= self.config.max_skips + search:
            problem = self._save()
            raise FloatingPointError(
                f"the loss or gradient was not finite in {run.streak} steps in a row, up to step {seen.step} "
                f"(loss {seen.loss:.4g}, gradient norm {seen.norm:.4g}{where}). Stopped, with the state "
                f"{f'not saved ({problem})' if problem else 'saved'} in {self.run_dir}: look at the data and the learning rate, "
                "or train in float32"
            )

    def _write_means(self, now: float, rate: float) -> None:
        config, run = self.config, self.run
        run.seconds += now - self.lap
        row = {"step": run.step, "samples": run.step * config.batch, **run.meter.take()}
        row |= {"lr": digits(rate), "ema": digits(run.ema.decay_at(run.step - 1)), "seconds": digits(run.seconds)}
        row |= {"samples_per_second": digits((run.step - self.lap_step) * config.batch / (now - self.lap))}
        self.log.write(row)
        self.trackers.log(row, run.step)
        self.log.say(console_line(row, config.steps))
        self.lap, self.lap_step = now, run.step

    def _validate(self) -> None:
        assert self.validation is not None
        run, name = self.run, (self.config.best or "").removeprefix("-")
        with run.ema.applied(), evaluating(run.model):
            validated = self.validation(run.step)
        row = {"step": run.step, "event": "validated", **validated}
        self.log.write(row)
        self.trackers.log(row, run.step)
        numbers = "  ".join(f"{key} {'-' if value is None else format(value, '.4g')}" for key, value in validated.items())
        self.log.say(f"step {run.step}/{self.config.steps} validated  {numbers}")
        if name and name not in validated:
            problem = self._save()
            raise ValueError(
                f"best is {self.config.best!r}, but the validation has no such number: {', '.join(validated)}. Stopped, with the "
                f"state {f'not saved ({problem})' if problem else 'saved'}: the same command with another `best` continues"
            )
        value = validated.get(name)
        sign = -1 if (self.config.best or "").startswith("-") else 1
        if value is not None and (run.best is None or sign * value > sign * run.best[1]):
            run.best = run.step, value

    @torch.no_grad()
    def _draw_samples(self) -> None:
        """A grid of samples of the averaged weights, always for the same data and the same noise."""
        run, accelerator = self.run, self.accelerator
        if accelerator.is_main_process or run.sharded:  # sharded weights run on all processes or none
            n = min(GRID, len(self.data))
            noise = Noise.of(self.config.seed, range(n)).at("samples")
            with run.ema.applied(), evaluating(run.model):
                batch = layout(self.data.batch([i * len(self.data) // n for i in range(n)], None), self.config)
                images = self.task.sample_images(move(batch, accelerator.device), noise)
            if images is not None and accelerator.is_main_process:
                try:
                    write_files([(self.run_dir / "samples" / f"step-{run.step:08d}.png", grid(images))])
                except ValueError as error:
                    self.log.say(f"the samples of step {run.step} could not be saved: {error}; training goes on")
        accelerator.wait_for_everyone()

    def _save(self) -> OSError | None:
        """Write a state; what went wrong with the disk, if anything, on every process."""
        problem: OSError | None = None
        main = self.accelerator.is_main_process
        try:
            if main:
                self.log.sync()
        except OSError as error:
            problem = error
        try:
            if main or self.run.sharded:  # also without a log to count on: the others wait for this one's rows
                states.save(self.run_dir, self.run.state(), self.config.keep, writes=main and problem is None)
        except OSError as error:
            problem = error
        if self._agree(int(problem is not None), False)[0] and problem is None:
            problem = OSError("the main process could not write it")
        return problem

    def _unsaved(self, problem: OSError) -> OSError:
        """The error that ends a training whose last state could not be written."""
        states_dir, steps = self.run_dir / "state", states.saved_steps(self.run_dir)
        before = f"that after step {steps[-1]} is kept" if steps else "there is none from before"
        told = f"the state after step {self.run.step} could not be written into {states_dir} ({problem.strerror or problem})"
        return OSError(f"{told}; {before}: make room, and the same command goes on from there")

    def _agree(self, caught: int | None, overdue: bool) -> tuple[int, bool]:
        """Signal and clock as all processes shall see them: any signal counts, and the main process's clock."""
        if self.accelerator.num_processes == 1:
            return caught or 0, overdue
        mine = [caught or 0, int(overdue and self.accelerator.is_main_process)]
        everyone = self.accelerator.gather(torch.tensor([mine], device=self.accelerator.device))
        return int(everyone[:, 0].max()), bool(everyone[:, 1].any())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, and every module in its own again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def layout(batch: Batch, config: TrainConfig) -> Batch:
    if config.channels_last and batch.images is not None:
        return batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))
    return batch


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0

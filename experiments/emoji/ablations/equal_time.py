"""Train a recipe for so many seconds of CPU time: what settings are worth that change what a step costs.

The process's own CPU time counts, of training alone: neither pauses nor a neighbour's turns, nor writing states.  At one thread
it is what a core was busy for.
"""

from __future__ import annotations

import time
from pathlib import Path

from unclip.config import Config
from unclip.files import write_files
from unclip.runs import Training, build
from unclip.training import load_ema, train
from unclip.training.state import newest
from unclip.training.task import Task

FIRST = 10  # steps from which the cost of a step is first told
LAST = 0.1  # part of the time that is left for a last correction
FILE = "clock.json"


class Spent(Config, frozen=True, kw_only=True):
    """Updates of a run and the CPU seconds that they took."""

    steps: int = 0
    seconds: float = 0.0

    def more(self, budget: float) -> int:
        """How many steps to take before the next look at the clock; 0 = the time is up."""
        if self.steps < FIRST:
            return FIRST - self.steps
        each, left = self.seconds / self.steps, budget - self.seconds
        if left > 2 * LAST * budget:
            left -= LAST * budget
        return max(0, round(left / each))


def train_for(training: Training, budget: float, run_dir: Path) -> tuple[Task, Spent]:
    """The task with its averaged weights loaded, after `budget` CPU seconds, and what was spent.

    Goes on where it was cut off.  The rate must be constant after its warm-up: how many steps there will be is known at the end.
    """
    if training.train.decay != "constant":
        raise ValueError(f"decay is {training.train.decay!r}; a training that ends by the clock needs train.decay=constant")
    task, data, *_ = build(training)
    ticks: list[float] = []
    hook = task.register_forward_pre_hook(lambda module, inputs: ticks.append(time.process_time()))
    spent = stood(run_dir)
    try:
        while more := spent.more(budget):
            ticks.clear()
            try:
                train(task, data, training.train.replace(steps=spent.steps + more), run_dir)
            finally:  # also when a signal ends it, whose state is saved
                spent = add(spent, ticks, time.process_time())
                write_files([(run_dir / FILE, spent.to_json().encode())])
    finally:
        hook.remove()
    task.model.load_state_dict(load_ema(run_dir))
    task.model.eval()
    return task, spent


def add(spent: Spent, ticks: list[float], now: float) -> Spent:
    """With steps that began at `ticks`: the last one, after which a state is written, counts like the mean of the others."""
    if not ticks:
        return spent
    whole = (ticks[-1] - ticks[0]) * len(ticks) / (len(ticks) - 1) if len(ticks) > 1 else now - ticks[0]
    return Spent(steps=spent.steps + len(ticks), seconds=spent.seconds + whole)


def stood(run_dir: Path) -> Spent:
    """Where the run in a folder stands.  Where clock and state differ, by a crash between the two, the state is right."""
    state = newest(run_dir, only=())
    if state is None:
        return Spent()
    spent = Spent.load(run_dir / FILE)
    return Spent(steps=state.step, seconds=spent.seconds * state.step / spent.steps)

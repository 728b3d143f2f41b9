"""How far something is: one bar after the other, with the time left, where somebody watches; nothing of it elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from .types import Callback, Step

F = TypeVar("F", bound=Callable[..., Any])


def is_watched() -> bool:
    """Whether standard error is a terminal, or this is a notebook."""
    try:
        return sys.stderr.isatty() or in_notebook()
    except (AttributeError, ValueError):  # there is none, as under pythonw, or it is closed
        return False


def in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


class Bars:
    """Bars on standard error, each closed, and left as it ended, when the next begins.  A callback for pipelines.

    shown: None = where somebody watches.
    """

    def __init__(self, shown: bool | None = None):
        self.shown = shown
        self.name: str | None = None
        self.bar: Any = None
        self.chunk = 1  # pictures that go through a stage together

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self, step: Step) -> None:
        """Denoising steps of all chunks of a stage together."""
        if step.rows.start == 0:
            self.chunk = max(1, step.rows.stop)
        chunks = -(-step.total // self.chunk)
        done = step.rows.start // self.chunk * step.steps + step.step
        pictures = f" ({step.total} pictures)" if step.total > 1 else ""
        self.show(f"{step.stage}{pictures}", done, chunks * step.steps, "step")

    def show(self, name: str, done: int, total: int | None = None, unit: str = "picture", **options: Any) -> None:
        """That so much of `total` is done; another name, or less than before, begins another bar."""
        if self.shown is None:
            self.shown = is_watched()
        if not self.shown:
            return
        if self.bar is None or name != self.name or done < self.bar.n:
            self.close()
            self.name, self.bar = name, _tqdm()(desc=name, total=total, unit=unit, file=sys.stderr, initial=done, **options)
        self.bar.update(done - self.bar.n)

    def counter(self, name: str, total: int | None, **options: Any) -> Callable[[int], None]:
        """A function that adds to a bar, which is there from now on."""
        self.show(name, 0, total, **options)
        pending, least = 0, (total or 2**26) // 64  # so that a first small piece gives no strange estimate

        def add(count: int) -> None:
            nonlocal pending
            pending += count
            if self.bar is not None and pending >= least:
                self.bar.update(pending)
                pending = 0

        return add

    def finish(self) -> None:
        """All is done: what was counted may be a little less than all."""
        if self.bar is not None:
            self.bar.total = self.bar.n = self.bar.total or self.bar.n
            self.bar.refresh()
        self.close()

    def say(self, text: str) -> None:
        """A line on standard output, above the bar."""
        if self.bar is None:
            print(text, flush=True)
        else:
            self.bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = self.name = None


def _tqdm() -> Any:
    if in_notebook() and find_spec("ipywidgets"):
        from tqdm.notebook import tqdm
    else:
        from tqdm import tqdm
    return tqdm


class Both:
    """The callback of somebody who watches, and another one."""

    def __init__(self, bars: Bars, callback: Callback | None):
        self.bars, self.callback = bars, callback

    def __call__(self, step: Step) -> None:
        self.bars(step)
        if self.callback is not None:
            self.callback(step)


def with_bars(method: F) -> F:
    """What draws, with bars where somebody watches: its `progress` None; True = always, False = never.

    A callback goes on being told.  What calls another such method hands it its own bars.
    """
    named = signature(method)

    @wraps(method)
    def shown(*args: Any, **options: Any) -> Any:
        try:
            bound = named.bind(*args, **options)
        except TypeError:
            return method(*args, **options)  # which says so in its own name
        callback, progress = bound.arguments.get("callback"), bound.arguments.pop("progress", None)
        watching = isinstance(callback, (Bars, Both)) or not (callback is None or callable(callback))
        if watching or not (is_watched() if progress is None else progress):
            return method(*bound.args, **bound.kwargs)
        with Bars(True) as bars:
            bound.arguments["callback"] = Both(bars, callback)
            return method(*bound.args, **bound.kwargs)

    return shown  # type: ignore[return-value]

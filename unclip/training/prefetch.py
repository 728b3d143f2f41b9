"""Makes the next values in a background thread while the current one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterates over make(start), ..., make(stop - 1), `depth` ahead; raises what `make` raised."""

    def __init__(self, make: Callable[[int], T], start: int, stop: int, depth: int = 2):
        self._make, self._numbers = make, range(start, stop)
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)

    def __enter__(self) -> Prefetch[T]:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        for _ in self._numbers:
            value, error = self._queue.get()
            if error is not None:
                raise error
            yield value  # type: ignore[misc]

    @torch.no_grad()
    def _work(self) -> None:
        for number in self._numbers:
            try:
                entry: tuple[T | None, BaseException | None] = self._make(number), None
            except BaseException as error:
                entry = None, error
            while not self._closed.is_set():
                try:
                    self._queue.put(entry, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._closed.is_set() or entry[1] is not None:
                return

"""Prefetching: the next values are made in background threads while the current one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterates over make(start), ..., make(stop - 1), in order, made ahead by `workers` threads; raises what `make` raised."""

    def __init__(self, make: Callable[[int], T], start: int, stop: int, workers: int = 1):
        self._make, self._numbers, self._ahead = make, iter(range(start, stop)), workers + 1
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
        self._coming: deque[Future[T]] = deque()

    def __enter__(self) -> Prefetch[T]:
        for _ in range(self._ahead):
            self._order()
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[T]:
        while self._coming:
            value = self._coming.popleft().result()
            self._order()
            yield value

    def _order(self) -> None:
        for number in self._numbers:
            self._coming.append(self._threads.submit(self._work, number))
            return

    @torch.no_grad()
    def _work(self, number: int) -> T:
        return self._make(number)

"""Shapes and types written in signatures are checked while the tests run (and only then: it breaks torch.compile)."""

from __future__ import annotations

import os
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: tests this small gain nothing by a second thread, and workers side by side lose by it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if not os.environ.get("UNCLIP_UNCHECKED"):
    from jaxtyping import install_import_hook

    install_import_hook(["unclip", "prior", "decoder", "upsamplers"], "beartype.beartype")

KERNEL = ("test_conditions.py", "test_config.py", "test_diffusion_", "test_nn_", "test_randomness.py", "test_types.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.startswith(KERNEL) and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.fast)


class Bar:
    """tqdm for the tests: which stage counted to what, of what total, and whether it was closed before the next began."""

    told: list[list[Any]] = []

    def __init__(self, desc: str, total: int, initial: int, **options: Any):
        assert all(bar[3] for bar in Bar.told)
        self.told_of = [desc, initial, total, False]
        Bar.told.append(self.told_of)

    @property
    def n(self) -> int:
        return int(self.told_of[1])

    def update(self, more: int) -> None:
        self.told_of[1] += more

    def close(self) -> None:
        self.told_of[3] = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """What bars over stages told, as if somebody watched."""
    from unclip.progress import Bars

    monkeypatch.setattr("tqdm.tqdm", Bar)
    monkeypatch.setattr(Bar, "told", [])
    monkeypatch.setattr(Bars, "counter", lambda self, *name, **options: lambda count: None)  # of weights
    monkeypatch.setattr(Bars, "finish", lambda self: None)
    monkeypatch.setattr("unclip.progress.is_watched", lambda: True)
    return Bar.told

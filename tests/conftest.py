"""Shapes and types written in signatures are checked while the tests run (and only then: it breaks torch.compile)."""

from __future__ import annotations

import os

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

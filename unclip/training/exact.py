"""Determinism: seeds of dropout, and operations that may not vary."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Read when cuBLAS starts, which may be long before a training, for a teacher; without it torch refuses deterministic products.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def seed_dropout(device: torch.device, *parts: int) -> None:
    """Seed torch's global generators, the only ones that dropout knows.  (torch.manual_seed costs half a millisecond.)"""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "little") >> 1  # torch takes 63 bits
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def deterministic(active: bool) -> Iterator[None]:
    """Inside the block torch takes deterministic kernels alone, and refuses an operation that has none, by its name."""
    if not active:
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.get_deterministic_debug_mode(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]

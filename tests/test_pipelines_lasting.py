"""A pipeline that is used for long: memory stays where it was, and an interrupt in the middle leaves it as it was."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from unclip import UnCLIP
from unclip.types import Step


@pytest.mark.parametrize(
    ("stage", "at", "offload"), [("prior", 1, False), ("decoder", 2, False), ("decoder", 2, True), ("upsampler_64", 1, False)]
)
def test_an_interrupt_in_the_middle_of_drawing(tmp_path: Path, stage: str, at: int, offload: bool) -> None:
    tiny.pipeline().save_pretrained(tmp_path / "model")
    pipe = UnCLIP.from_pretrained(tmp_path / "model", offload=offload)
    expected, state = tiny.pipeline().generate("two dogs", seed=3, size=64), torch.get_rng_state()

    def interrupt(step: Step) -> None:
        if (step.stage, step.step) == (stage, at):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pipe.generate("two dogs", seed=3, size=64, callback=interrupt)
    made = pipe.generate("two dogs", seed=3, size=64)
    assert torch.equal(made.images, expected.images) and all(
        torch.equal(made.stages[size], images) for size, images in expected.stages.items()
    )
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()
    assert not any(module.training for part in pipe.components.values() for module in part.modules())
    assert all(not module._forward_hooks for part in pipe.components.values() for module in part.modules())


def tensors() -> int:
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


def test_no_tensor_is_kept(capfd: Any) -> None:
    pipe = tiny.pipeline()
    counts = []
    for k in range(8):
        pipe.generate(["two dogs", "a red heart"], seed=k, size=16)
        pipe.vary(torch.zeros(1, 3, 16, 16), n=1, seed=k, size=16)
        if k in (2, 7):  # looking through all objects takes seconds
            counts.append(tensors())
    assert counts[0] == counts[1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells how much memory is used")
def test_memory_over_five_hundred_generations() -> None:
    pipe, used = tiny.pipeline(), []
    for k in range(501):
        pipe.generate(["two dogs", "a red heart"], seed=k, size=64)
        if k in (100, 500):
            gc.collect()
            used.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    print(f"\nresident after 100 generations {used[0]:.1f} MiB, after 500 {used[1]:.1f} MiB")
    assert used[1] - used[0] < 8

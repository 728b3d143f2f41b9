"""The benchmark of the CPU kernels: each is turned off and on again, without another result."""

from __future__ import annotations

import pytest
import torch

from benchmarks import karlo, kernels
from unclip.nn.cpu import attention, convolution, linear


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["all", *kernels.KERNELS])
def test_kernel_is_not_taken_inside_the_block_and_back_after_it(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LONG", 64)  # so that each is taken at this size
    monkeypatch.setattr(convolution, "LARGE", 64)
    monkeypatch.setattr(convolution, "WIDE", 32)
    monkeypatch.setattr(convolution, "HEAVY", 9 * 128 * 256)
    monkeypatch.setattr(convolution, "SMALL", 64)
    taken: list[str] = []

    def spy(owner: object, name: str, called: str) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (taken.append(called), original(*args))[1])

    spy(convolution, "winograd", "winograd")
    spy(convolution.Conv3x3, "_surroundings", "one product")
    spy(convolution, "_phases", "upsampling")
    spy(linear, "onednn_linear", "linear")
    spy(attention, "onednn_linear", "attention")
    step = karlo.our_step(karlo.our_part("decoder", karlo.SMALL, torch.float32), karlo.SMALL, torch.float32).step
    expected = step()
    assert set(taken) == set(kernels.KERNELS)
    taken.clear()
    with kernels.without(kernel):
        torch.testing.assert_close(step(), expected, rtol=1e-3, atol=1e-4)
    assert not set(taken) & (set(kernels.KERNELS) if kernel == "all" else {kernel})
    assert torch.equal(step(), expected) and set(taken) == set(kernels.KERNELS)


def test_table_has_a_row_for_each_kernel(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "header", lambda: "a machine")
    kernels.main(["--small", "--turns", "1", "--stages", "upsampler", "--dtypes", "float32"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert len(rows) == 1 + len(kernels.KERNELS) and all(float(row[-1]) > 0 for row in rows)

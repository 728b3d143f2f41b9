"""Progress bars of the stages, which come from the pipeline's callback."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unclip.types import Step


class Bars:
    """One bar per stage, counting its denoising steps; on standard error, and only when a person watches."""

    def __init__(self) -> None:
        self.bars: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        return self

    def __call__(self, step: Step) -> None:
        from tqdm import tqdm

        bar = self.bars.get(step.stage)
        if bar is None:
            bar = self.bars[step.stage] = tqdm(desc=step.stage, total=step.steps, unit="step", file=sys.stderr, disable=None)
        elif step.step == 1:  # each chunk of pictures counts from 0
            bar.reset(total=step.steps)
        bar.update()
        if step.step == step.steps:
            bar.set_description(f"{step.stage} {step.rows.stop}/{step.total}")

    def __exit__(self, *error: Any) -> None:
        for bar in self.bars.values():
            bar.close()

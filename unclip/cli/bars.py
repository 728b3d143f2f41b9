"""Progress bars of the stages, which know nothing of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unclip.pipelines.unclip import UnCLIP


class Bars:
    """One bar per stage, counting the passes of its network; on standard error, and only when a person watches.

    passes: of each stage, for one chunk of pictures; "invert": of the decoder's network while it inverts them.
    back: the decoder's passes once pictures have been inverted, where it has drawn others before.
    """

    def __init__(self, pipe: UnCLIP, passes: Mapping[str, int], back: int | None = None):
        self.bars: dict[str, Any] = {}
        self.passes, self.back = dict(passes), back
        self.inverting, self.ended = False, set[str]()
        parts = {name: part for name, part in pipe.parts.items() if name in passes}
        self.hooks = [part.network.register_forward_hook(partial(self.step, name)) for name, part in parts.items()]

    def __enter__(self) -> Bars:
        return self

    def step(self, stage: str, *_: Any) -> None:
        from tqdm import tqdm

        if stage == "decoder" and self.inverting:
            stage = "invert"
        if stage not in self.bars:
            self.bars[stage] = tqdm(desc=stage, total=self.passes[stage], unit="step", file=sys.stderr, disable=None)
        elif stage in self.ended:  # each chunk of pictures counts from 0
            self.bars[stage].reset(total=self.passes[stage])
        self.ended.discard(stage)
        self.bars[stage].update()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Told after each chunk of a stage; of an inversion, before each chunk and at the end."""
        self.ended.add(stage)
        if stage == "invert":
            self.inverting = done < total
            self.passes["decoder"] = self.back or self.passes["decoder"]
        if stage in self.bars:
            self.bars[stage].set_description(f"{stage} {done}/{total}")

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        for bar in self.bars.values():
            bar.close()

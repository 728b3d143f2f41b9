"""Pipelines as people type them: called, and printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from .stage import FormerNames

if TYPE_CHECKING:
    from .generation import Generation


class Surface(FormerNames):
    """`pipe("red heart")` is `pipe.generate("red heart")`; `pipe` at a prompt tells what it is."""

    def __call__(self, *args: Any, **options: Any) -> Generation:
        generation: Generation = self.generate(*args, **options)  # type: ignore[attr-defined]
        return generation

    def __repr__(self) -> str:
        pipe: Any = self
        rows, total = [], 0
        for name, component in pipe.components.items():
            count = sum(p.numel() for p in component.parameters()) if isinstance(component, nn.Module) else 0
            total += count
            rows.append(f"  {name}: {type(component).__name__}, {count / 1e6:.2f}M")
        sizes = ", ".join(map(str, pipe.sizes))
        where = f"{pipe.device}, {str(pipe.dtype).removeprefix('torch.')}{', offloaded' if pipe.offload else ''}"
        title = f"{type(self).__name__} {pipe.name!r}: pictures of {sizes} pixels, {total / 1e6:.2f}M parameters, on {where}"
        return "\n".join([title, *rows])

"""Plots of the experiments: one look, PNG bytes out."""

from __future__ import annotations

import io
from typing import Any


def axes(rows: int, columns: int, title: str) -> tuple[Any, list[Any]]:
    """A figure and its axes, row by row.  ValueError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plots need matplotlib: pip install 'unclip[experiments]'") from None
    figure = Figure(figsize=(5.5 * columns, 4.2 * rows), dpi=110, layout="constrained")
    figure.suptitle(title)
    parts = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for part in parts:
        part.grid(alpha=0.3)
        part.spines[["top", "right"]].set_visible(False)
    return figure, parts


def band(part: Any, x: list[float], rows: list[Any], label: str, colour: str, marker: str = "o") -> None:
    """A line through means with their 95 % intervals as a band; rows are mappings with mean, low and high."""
    part.plot(x, [row["mean"] for row in rows], marker=marker, color=colour, label=label)
    part.fill_between(x, [row["low"] for row in rows], [row["high"] for row in rows], color=colour, alpha=0.15, linewidth=0)


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()

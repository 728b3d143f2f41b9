"""`unclip report`: what became of training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Errors, Overwrite


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are drawn over each other.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The curves: a .png.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Say how a training run went, each number beside its baseline, and draw its curves."""
    with Errors():
        from unclip.runs.report import report as write

        typer.echo(write(runs, output, overwrite))
        if output is not None:
            typer.echo(f"\n{output}")

"""The `unclip` command.  Bad input ends with one line on standard error and status 2; nothing is half-written."""

from __future__ import annotations

from typing import Annotated

import typer

from . import data, edit, embed, generate, plan, report, train
from .settings import PRESETS, settings

__all__ = ["PRESETS", "app", "main", "settings"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def _version(wanted: bool) -> bool:
    if wanted:
        from unclip import __version__

        typer.echo(f"unclip {__version__}")
        raise typer.Exit()
    return wanted


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")] = False,
) -> None:
    """unCLIP (DALL-E 2): pictures for captions, edits of pictures, with trained weights inside."""


for command in (
    generate.generate,
    edit.vary,
    edit.interpolate,
    edit.diff,
    edit.reconstruct,
    edit.invert,
    generate.info,
    generate.convert,
    embed.embed,
    train.config,
    plan.plan,
    train.train,
    report.report,
    train.assemble,
):
    app.command()(command)

app.add_typer(data.app, name="data")


def main() -> None:
    app()

"""The `unclip` command.  Bad input ends with one line on standard error and status 2; nothing is half-written."""

from __future__ import annotations

import io
import signal
import sys
import threading
from types import FrameType
from typing import Annotated

import typer

from . import captions, data, edit, embed, generate, plan, report, steer, train
from .settings import PRESETS, settings

__all__ = ["PRESETS", "app", "main", "settings"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    steer.img2img,
    steer.inpaint,
    steer.mix,
    edit.vary,
    edit.interpolate,
    edit.diff,
    edit.reconstruct,
    edit.invert,
    captions.captions,
    generate.info,
    generate.convert,
    embed.embed,
    train.config,
    plan.plan,
    train.train,
    report.report,
    train.assemble,
):
    # What is no option of a command with settings is perhaps meant for one: `--steps 500`, which has its own message.
    configured = command in (plan.plan, train.train)
    app.command(context_settings={"ignore_unknown_options": True} if configured else None)(command)

app.add_typer(data.app, name="data")


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what it cannot write: their very bytes, else escapes
        utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    # Not where Ctrl-C is ignored, as in the background of a script, or already somebody's business.
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    app()


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Ctrl-C as ever, but while a module is imported: libraries swallow the exception there, so it ends the process plainly."""
    at = frame
    while at is not None:
        if at.f_code.co_filename.startswith("<frozen importlib."):
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        at = at.f_back
    signal.default_int_handler(number, frame)

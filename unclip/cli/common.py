"""What the commands share: options, the loading of a model, and errors as one line."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from unclip.progress import Bars, Both, is_watched

if TYPE_CHECKING:
    from unclip.pipelines.cascade import Cascade
    from unclip.pipelines.unclip import UnCLIP
    from unclip.types import Callback

HOUSES = [Path(__file__).parents[2] / name for name in ("unclip", "prior", "decoder", "upsamplers")]

Model = Annotated[str, typer.Option(help="A shipped name, a folder, or a Hugging Face hub id, also owner/name@revision.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same pictures.")]
First = Annotated[int, typer.Option(help="Number of the first picture: picture k of a run alone is --first k.", min=0)]
Guidance = Annotated[float | None, typer.Option(help="Guidance of the decoder; 1 = off.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, ...")]
Dtype = Annotated[str, typer.Option(help="What networks compute in: float32, bfloat16 or float16.")]
Negative = Annotated[str | None, typer.Option(help="What guidance leads away from, a caption.")]
BestOf = Annotated[
    int | None, typer.Option(help="Draw so many pictures for each caption; those that CLIP finds nearest to it are kept.", min=1)
]
PreviewFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A .png that shows what is being drawn, written again every few steps.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there already; else they are refused.")]
Variant = Annotated[
    str | None, typer.Option(help='Which weights, where a folder holds several: a word as "fp16", "plain", or a file\'s name.')
]
Offload = Annotated[
    bool, typer.Option("--offload", help="One stage's weights in memory at a time, read from the files: less memory, slower.")
]


def watched(bars: Bars, preview: Callback | None) -> Callback:
    """Who is told of every step: the bars, and what writes previews."""
    return Both(bars, preview)


def load(model: str, device: str, dtype: str, prior: str = "prior", offload: bool = False, variant: str | None = None) -> UnCLIP:
    """The pipeline, on its device; ValueError for a cascade, which has no latents to edit.  `prior`: what draws embeddings."""
    from unclip.pipelines.unclip import UnCLIP

    pipe = load_any(model, device, dtype, prior, offload, variant)
    if not isinstance(pipe, UnCLIP):
        raise ValueError(f"{model} is a {type(pipe).__name__}, which has no CLIP embeddings to work on; take an unCLIP model")
    return pipe


def load_any(
    model: str, device: str, dtype: str, prior: str = "prior", offload: bool = False, variant: str | None = None
) -> UnCLIP | Cascade:
    """A pipeline of any kind, on its device; ValueError for a device that is not there."""
    from unclip.checks import device_of, dtype_of
    from unclip.pipelines.load import from_pretrained

    place, kind = device_of(device), dtype_of(dtype)
    return from_pretrained(model, offload=offload, prior=prior, variant=variant).to(place, kind)


class Errors:
    """A known kind of error -> one line and status 2.  This package's own warnings, and open_clip's -> one line each; those of
    other libraries are not shown.  A reader that has seen enough (`| head`) ends the command quietly.

    loading: what; said at once where somebody watches, before libraries are imported, which takes seconds.
    less_memory: what helps where memory is exhausted.
    """

    def __init__(
        self,
        loading: str = "",
        less_memory: str = "draw fewer pictures at once (--n), smaller ones (--size), or with --dtype bfloat16",
    ):
        self.loading, self.less_memory = loading, less_memory

    def __enter__(self) -> None:
        if self.loading and is_watched():
            print(f"loading {self.loading} ...", file=sys.stderr, flush=True)
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _show_warning
        self.handle = logging.Logger.handle
        logging.Logger.handle = _show_record  # type: ignore[assignment, method-assign]

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.warnings.__exit__(kind, error, trace)
        logging.Logger.handle = self.handle  # type: ignore[method-assign]
        # Windows calls it an invalid argument.
        if isinstance(error, BrokenPipeError) or (os.name == "nt" and getattr(error, "errno", None) == errno.EINVAL):
            _close()
            raise typer.Exit() from None
        if exhausted := _exhausted(error):
            _say("error", f"out of memory: {self.less_memory}")
        elif isinstance(error, (ValueError, OSError)):
            _say("error", error)
        if exhausted or isinstance(error, (ValueError, OSError)):
            raise typer.Exit(2) from None


def _exhausted(error: BaseException | None) -> bool:
    """Whether memory was.  Torch's other errors, "an illegal memory access" too, are faults of ours and keep their traceback."""
    kinds = (MemoryError, getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError))
    messages = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
    )  # where the error has no kind of its own, as on CPUs
    return isinstance(error, kinds) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in messages)
    )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning) and any(Path(filename).is_relative_to(house) for house in HOUSES):
        _say("warning", message)
    elif "open_clip" in Path(filename).parts:
        _say("warning", f"open_clip: {message}")


def _show_record(logger: logging.Logger, record: logging.LogRecord) -> None:
    """Of what libraries log, open_clip's warnings: they are about the weights."""
    if record.levelno >= logging.WARNING and "open_clip" in Path(record.pathname).parts and logger.filter(record):
        _say("warning", f"open_clip: {record.getMessage()}")


def _close() -> None:
    """Nobody reads any more: what the interpreter writes out at its end goes nowhere."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # of a test's, without a descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(kind: str, message: object) -> None:
    from unclip.config import visible

    print(visible(f"{kind}: {' '.join(str(message).split())}", 4000), file=sys.stderr, flush=True)

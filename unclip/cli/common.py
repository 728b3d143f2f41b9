"""What the commands share: options, the loading of a model, and errors as one line."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

if TYPE_CHECKING:
    from unclip.pipelines.cascade import Cascade
    from unclip.pipelines.unclip import UnCLIP

HOUSES = [Path(__file__).parents[2] / name for name in ("unclip", "prior", "decoder", "upsamplers")]

Model = Annotated[str, typer.Option(help="A shipped name, a folder, or a Hugging Face hub id.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same pictures.")]
First = Annotated[int, typer.Option(help="Number of the first picture: picture k of a run alone is --first k.", min=0)]
Guidance = Annotated[float | None, typer.Option(help="Guidance of the decoder; 1 = off.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, ...")]
Dtype = Annotated[str, typer.Option(help="What networks compute in: float32, bfloat16 or float16.")]
Offload = Annotated[
    bool, typer.Option("--offload", help="One stage's weights in memory at a time, read from the files: less memory, slower.")
]


def load(model: str, device: str, dtype: str, prior: str = "prior", offload: bool = False) -> UnCLIP:
    """The pipeline, on its device; ValueError for a cascade, which has no latents to edit.  `prior`: what draws embeddings."""
    from unclip.pipelines.unclip import UnCLIP

    pipe = load_any(model, device, dtype, prior, offload)
    if not isinstance(pipe, UnCLIP):
        raise ValueError(f"{model} is a {type(pipe).__name__}, which has no CLIP embeddings to work on; take an unCLIP model")
    return pipe


def load_any(model: str, device: str, dtype: str, prior: str = "prior", offload: bool = False) -> UnCLIP | Cascade:
    """A pipeline of any kind, on its device; ValueError for a device that is not there."""
    import torch

    from unclip.pipelines.load import from_pretrained
    from unclip.pipelines.stage import DTYPES

    types = {str(t).removeprefix("torch."): t for t in DTYPES}
    if dtype not in types:
        raise ValueError(f"no dtype {dtype!r}; there are {', '.join(types)}")
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return from_pretrained(model, offload=offload, prior=prior).to(device, types[dtype])


class Errors:
    """A known kind of error -> one line and status 2.  This package's own warnings -> one line each; libraries' are not shown.

    less_memory: what helps where memory is exhausted.
    """

    def __init__(self, less_memory: str = "draw fewer pictures at once (--n), smaller ones (--size), or with --dtype bfloat16"):
        self.less_memory = less_memory

    def __enter__(self) -> None:
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _show_warning
        self.logging = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.warnings.__exit__(kind, error, trace)
        logging.disable(self.logging)
        if exhausted := _exhausted(error):
            _say("error", f"out of memory: {self.less_memory}")
        elif isinstance(error, (ValueError, OSError)):
            _say("error", error)
        if exhausted or isinstance(error, (ValueError, OSError)):
            raise typer.Exit(2) from None


def _exhausted(error: BaseException | None) -> bool:
    """Whether memory was.  Torch's other errors, "an illegal memory access" too, are faults of ours and keep their traceback."""
    kinds = (MemoryError, getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError))
    told = ("out of memory", "can't allocate memory", "not enough memory")  # where the error has no kind of its own, as on CPUs
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and any(words in str(error).lower() for words in told))


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


def _say(kind: str, message: object) -> None:
    print(f"{kind}: {' '.join(str(message).split())}", file=sys.stderr)

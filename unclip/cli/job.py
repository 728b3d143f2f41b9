"""Set up an edit command: the loaded pipeline, the options of all edits, an output that can be written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeVar

import typer

from .common import load

if TYPE_CHECKING:
    from unclip.editing.latent import Latent
    from unclip.editing.result import Edit
    from unclip.pipelines.cascade import Cascade
    from unclip.pipelines.unclip import UnCLIP
    from unclip.sampling import Inversion

G = TypeVar("G", str, Path)
LATENT = ".safetensors"
LARGEST = 256  # pixels, unless asked: an edit is many pictures, and larger ones take minutes each

Output = Annotated[
    Path, typer.Option("-o", "--output", help="A .png (of several pictures a labelled sheet), a .gif or .webp, or a folder.")
]
Size = Annotated[int | None, typer.Option(help=f"Side in pixels; default: the largest of the model up to {LARGEST}.")]


class Job(NamedTuple):
    """A loaded pipeline and what the options of an edit mean to it."""

    pipe: UnCLIP
    size: int
    inversion: Inversion


def open_job(
    model: str,
    device: str,
    dtype: str,
    size: int | None,
    guidance: float | None,
    inversion_steps: int | None,
    refine: int | None,
    offload: bool = False,
    variant: str | None = None,
) -> Job:
    """Load the model and look at what all edits share, before minutes are spent on what cannot work."""
    from unclip.sampling import Sampling

    if guidance is not None:
        Sampling(guidance=guidance)
    pipe = load(model, device, dtype, "prior", offload, variant)
    return Job(pipe, edit_size(pipe, size), inversion_of(pipe, inversion_steps, refine))


def edit_size(pipe: UnCLIP | Cascade, size: int | None) -> int:
    """The size that was asked for, else the largest of the model up to LARGEST; ValueError for one that it does not make."""
    if size is None:
        size = max([s for s in pipe.sizes if s <= LARGEST], default=pipe.sizes[0])
    pipe.stages(size)
    return size


def write(edit: Edit, output: Path, overwrite: bool) -> None:
    """Save an edit and print the files."""
    for path in edit.save(output, overwrite):
        typer.echo(path)


def check_edit(output: Path, numbers: range, sources: Sequence[str | Path], overwrite: bool) -> None:
    """ValueError for an output that cannot be written, or must not be."""
    from unclip.editing.result import edit_paths
    from unclip.files import check_files

    check_files(edit_paths(output, numbers), overwrite, sources)


def inversion_of(pipe: UnCLIP, steps: int | None, refine: int | None) -> Inversion:
    """The decoder's own, changed by the options."""
    from unclip.editing.sources import Invertible

    if not isinstance(pipe.decoder, Invertible):
        raise ValueError(f"the decoder, a {type(pipe.decoder).__name__}, does not say how it inverts; edit in Python")
    changes = {name: value for name, value in {"steps": steps, "refine": refine}.items() if value is not None}
    return pipe.decoder.inversion.replace(**changes)


def read_source(source: G) -> G | Latent:
    """A latent read, anything else as it was given."""
    from unclip.editing.latent import Latent

    return Latent.load(source) if is_latent(source) else source


def rows_of(source: str | Path | Latent) -> int:
    """How many pictures it is."""
    return 1 if isinstance(source, (str, Path)) else len(source)


def is_latent(source: str | Path) -> bool:
    return Path(source).suffix.lower() == LATENT

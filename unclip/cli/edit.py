"""The commands that edit pictures through the latent pair (z_i, x_T): vary, interpolate, diff, reconstruct, invert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from unclip.progress import Bars

from .common import Device, Dtype, Errors, First, Guidance, Model, Offload, Overwrite, Seed, Variant, load
from .job import LATENT, Job, Output, Size, check_edit, inversion_of, is_latent, open_job, read_source, rows_of, write

if TYPE_CHECKING:
    from unclip.editing.edits import NoisePath

Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture of any format, or a latent (.safetensors).")]
InversionSteps = Annotated[int | None, typer.Option(help="Steps of the inversion; default: the decoder's own.")]
Refine = Annotated[
    int | None, typer.Option(help="Refinements of each step of the inversion; default: the decoder's own; 0 is fast, and rough.")
]


def vary(
    image: Image,
    output: Output,
    model: Model = "emoji",
    n: Annotated[int, typer.Option(help="Variations.")] = 4,
    eta: Annotated[
        float | None, typer.Option(help="Noise renewed in each step, from 0, the picture itself, to 1, the default.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start from new noise; nothing is inverted.")] = False,
    guidance: Guidance = None,
    seed: Seed = 0,
    first: First = 0,
    size: Size = None,
    inversion_steps: InversionSteps = None,
    refine: Refine = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
    variant: Variant = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw variations of a picture: what it shows, with other details."""
    with Errors(model):
        if fresh:
            _refuse("with --fresh", {"--eta": eta, "--inversion-steps": inversion_steps, "--refine": refine})
        _refuse_inversion([image], inversion_steps, refine)
        source, eta = read_source(image), 1.0 if eta is None else eta
        check_edit(output, range(first, first + n * rows_of(source)), [image], overwrite)
        job = open_job(model, device, dtype, size, guidance, inversion_steps, refine, offload, variant)
        with Bars() as bars:
            edit = job.pipe.vary(
                source,
                n=n,
                eta=eta,
                x_t="fresh" if fresh else "kept",
                guidance=guidance,
                seed=seed,
                first=first,
                size=job.size,
                inversion=job.inversion,
                callback=bars,
            )
        write(edit, output, overwrite)


def interpolate(
    sources: Annotated[list[str], typer.Argument(metavar="A B ...", help="Pictures, latents (.safetensors) or captions.")],
    output: Output,
    model: Model = "emoji",
    steps: Annotated[int, typer.Option(help="Pictures from each to the next, both included.")] = 7,
    x_t: Annotated[str, typer.Option(help="slerp: the given pictures are on the path; fixed: one noise for all.")] = "slerp",
    guidance: Guidance = None,
    seed: Seed = 0,
    size: Size = None,
    inversion_steps: InversionSteps = None,
    refine: Refine = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
    variant: Variant = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw a path from picture to picture, or from caption to caption."""
    with Errors(model):
        if x_t not in ("slerp", "fixed"):
            raise ValueError(f"--x-t {x_t!r} not understood: write slerp or fixed")
        if x_t == "fixed":
            _refuse("with --x-t fixed", {"--inversion-steps": inversion_steps, "--refine": refine})
        _refuse_inversion(sources, inversion_steps, refine)
        opened = [read_source(source) for source in sources]
        count = (sum(map(rows_of, opened)) - 1) * (steps - 1) + 1
        check_edit(output, range(count), sources, overwrite)
        job = open_job(model, device, dtype, size, guidance, inversion_steps, refine, offload, variant)
        with Bars() as bars:
            edit = job.pipe.interpolate(
                opened,
                steps=steps,
                x_t=cast("NoisePath", x_t),
                guidance=guidance,
                seed=seed,
                size=job.size,
                inversion=job.inversion,
                callback=bars,
            )
        write(edit, output, overwrite)


def diff(
    image: Image,
    output: Output,
    target: Annotated[str, typer.Option("--to", help="What the picture shall become.")],
    source: Annotated[
        str | None, typer.Option("--from", help='What it is, or "a photo"; without it the target alone gives the direction.')
    ] = None,
    model: Model = "emoji",
    theta: Annotated[float, typer.Option(help="Fraction of the angle to the target to turn by; 0.25 to 0.5 is usual.")] = 0.4,
    steps: Annotated[int, typer.Option(help="Pictures on the way, the first of them the reconstruction.")] = 5,
    guidance: Guidance = None,
    seed: Seed = 0,
    size: Size = None,
    inversion_steps: InversionSteps = None,
    refine: Refine = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
    variant: Variant = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a picture towards what one caption says and another does not."""
    with Errors(model):
        _refuse_inversion([image], inversion_steps, refine)
        opened = read_source(image)
        check_edit(output, range(steps * rows_of(opened)), [image], overwrite)
        job = open_job(model, device, dtype, size, guidance, inversion_steps, refine, offload, variant)
        with Bars() as bars:
            edit = job.pipe.text_diff(
                opened,
                target,
                source=source,
                theta=theta,
                steps=steps,
                guidance=guidance,
                seed=seed,
                size=job.size,
                inversion=job.inversion,
                callback=bars,
            )
        write(edit, output, overwrite)


def reconstruct(
    image: Image,
    output: Output,
    model: Model = "emoji",
    pca: Annotated[str | None, typer.Option(help="Draw from so many principal components alone, for instance 20,40,80.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance of the decoder with --pca; 1 = off.")] = None,
    seed: Seed = 0,
    size: Size = None,
    inversion_steps: InversionSteps = None,
    refine: Refine = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
    variant: Variant = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw a picture from its latent again, or from the first principal components of its embedding."""
    with Errors(model):
        if pca is None:
            _refuse("without --pca", {"--guidance": guidance})
        else:
            _refuse("with --pca", {"--inversion-steps": inversion_steps, "--refine": refine})
        _refuse_inversion([image], inversion_steps, refine)
        components = None if pca is None else _numbers(pca)
        source = read_source(image)
        check_edit(output, range(rows_of(source) * (1 if components is None else len(components))), [image], overwrite)
        job = open_job(model, device, dtype, size, guidance, inversion_steps, refine, offload, variant)
        with Bars() as bars:
            if components is None:
                edit = job.pipe.reconstruct(source, size=job.size, seed=seed, inversion=job.inversion, callback=bars)
            else:
                edit = job.pipe.reconstruct_pca(source, components, guidance=guidance, seed=seed, size=job.size, callback=bars)
        write(edit, output, overwrite)


def invert(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture of any format.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .safetensors, which the other commands take as a picture.")],
    model: Model = "emoji",
    inversion_steps: InversionSteps = None,
    refine: Refine = None,
    device: Device = "cpu",
    offload: Offload = False,
    variant: Variant = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a picture's latent pair (z_i, x_T), from which edits start at once."""
    with Errors(model):
        from unclip.files import check_files, check_output

        check_files([check_output(output, (LATENT,), folder=False)], overwrite, [image])
        if is_latent(image):
            raise ValueError(f"{image} is a latent already: give the picture")
        pipe = load(model, device, "float32", "prior", offload, variant)
        job = Job(pipe, pipe.sizes[0], inversion_of(pipe, inversion_steps, refine))
        with Bars() as bars:
            latent = pipe.invert(image, inversion=job.inversion, callback=bars)
        latent.save(output, overwrite)
        typer.echo(output)


def _numbers(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"--pca {text!r} not understood: write numbers of components, for instance 20,40,80")
    return [int(word) for word in words]


def _refuse_inversion(sources: Sequence[str | Path], steps: int | None, refine: int | None) -> None:
    if all(map(is_latent, sources)):
        _refuse("where a latent is given, which is inverted already", {"--inversion-steps": steps, "--refine": refine})


def _refuse(where: str, options: Mapping[str, object]) -> None:
    """Options that would change nothing."""
    used = [name for name, value in options.items() if value is not None]
    if used:
        raise ValueError(f"{' and '.join(used)} would change nothing {where}")

"""The commands that draw from given pictures: img2img, inpaint, mix."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unclip.progress import Bars

from .common import (
    BestOf,
    Device,
    Dtype,
    Errors,
    First,
    Guidance,
    Model,
    Negative,
    Offload,
    Overwrite,
    PreviewFile,
    Seed,
    Variant,
    load_any,
    watched,
)
from .generate import class_labels
from .job import Output, Size, check_edit, edit_size, read_source, write

if TYPE_CHECKING:
    from unclip.pipelines.cascade import Cascade
    from unclip.pipelines.unclip import UnCLIP
    from unclip.sampling import Sampling

Picture = Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture of any format.")]
Caption = Annotated[str | None, typer.Option(help="What the picture shall show.")]
Label = Annotated[str | None, typer.Option(help="A class, by name or number, of a model that draws classes.")]
Count = Annotated[int, typer.Option(help="Pictures.", min=1)]
Steps = Annotated[int | None, typer.Option(help="Of the decoder.", min=1)]


def img2img(
    image: Picture,
    output: Output,
    caption: Caption = None,
    label: Label = None,
    strength: Annotated[
        float, typer.Option(help="Part of the steps taken from the noised picture: above 0; 1 keeps nothing of it.")
    ] = 0.75,
    negative: Negative = None,
    model: Model = "emoji",
    n: Count = 1,
    best_of: BestOf = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    first: First = 0,
    size: Size = None,
    preview: PreviewFile = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
    variant: Variant = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw a picture anew, in its colours and layout, as a caption says."""
    with Errors(model):
        from unclip.editing.init_image import check_strength

        check_strength(strength)
        _check_files(output, preview, n, first, best_of, [image], overwrite)
        pipe, size, see = _open(model, device, dtype, size, offload, variant, preview)
        sampling = _decoder(pipe.decoder.resolve(None), steps, guidance)
        with Bars() as bars:
            edit = pipe.img2img(
                image,
                caption,
                strength,
                n=n,
                seed=seed,
                first=first,
                size=size,
                decoder=sampling,
                **_options(pipe, caption, label, negative, best_of),
                callback=watched(bars, see),
            )
        write(edit, output, overwrite)


def inpaint(
    image: Picture,
    output: Output,
    mask: Annotated[Path | None, typer.Option(help="A picture as large, white where it is drawn anew.")] = None,
    keep: Annotated[Path | None, typer.Option(help="A picture as large, white where it stays; in place of --mask.")] = None,
    caption: Annotated[str | None, typer.Option(help="What the whole picture shall show; without it what is kept tells.")] = None,
    label: Label = None,
    feather: Annotated[int, typer.Option(help="Pixels of the picture over which the border is blended.", min=0)] = 0,
    repaint: Annotated[
        bool, typer.Option("--repaint", help="Go back and draw steps again (RePaint): 85 passes in place of 50.")
    ] = False,
    negative: Negative = None,
    model: Model = "emoji",
    n: Count = 1,
    best_of: BestOf = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    first: First = 0,
    size: Size = None,
    preview: PreviewFile = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
    variant: Variant = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw a part of a picture anew; every other pixel stays as it is."""
    with Errors(model):
        from unclip.editing.inpaint import inpaint_sampling, known
        from unclip.editing.mask import keep_masks
        from unclip.editing.sources import source_images

        source = source_images(image)
        kept = keep_masks(keep, mask, [(source.images[0].shape[-2], source.images[0].shape[-1])])
        _check_files(output, preview, n, first, best_of, [image, *(path for path in (mask, keep) if path)], overwrite)
        pipe, size, see = _open(model, device, dtype, size, offload, variant, preview)
        sampling = _decoder(inpaint_sampling(pipe.decoder, repaint), steps, guidance)
        known(source, kept, pipe.stages(size), feather)  # refuses a mask that keeps all, or nothing
        print(_describe_hole(~kept[0][0, 0], f"the white of {mask}" if mask else f"all but the white of {keep}"), file=sys.stderr)
        with Bars() as bars:
            edit = pipe.inpaint(
                image,
                caption,
                keep=keep,
                mask=mask,
                n=n,
                seed=seed,
                first=first,
                size=size,
                feather=feather,
                decoder=sampling,
                **_options(pipe, caption, label, negative, best_of),
                callback=watched(bars, see),
            )
        write(edit, output, overwrite)


def mix(
    sources: Annotated[list[str], typer.Argument(metavar="A B ...", help="Pictures, latents (.safetensors) or captions.")],
    output: Output,
    weights: Annotated[str | None, typer.Option(help="One for each, for instance 2,1,1; default: equal.")] = None,
    model: Model = "emoji",
    n: Count = 1,
    guidance: Guidance = None,
    seed: Seed = 0,
    first: First = 0,
    size: Size = None,
    preview: PreviewFile = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
    variant: Variant = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw a mixture of captions, pictures and latents."""
    with Errors(model):
        from unclip.pipelines.unclip import UnCLIP

        shares = None if weights is None else _numbers(weights)
        _check_files(output, preview, n, first, None, sources, overwrite)
        pipe, size, see = _open(model, device, dtype, size, offload, variant, preview)
        if not isinstance(pipe, UnCLIP):
            raise ValueError(f"{model} is a {type(pipe).__name__}, which has no CLIP embeddings to mix; take an unCLIP model")
        items = [read_source(source) for source in sources]
        with Bars() as bars:
            edit = pipe.mix(items, shares, n, guidance, seed, first, size, watched(bars, see))
        write(edit, output, overwrite)


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--weights {text!r} not understood: write numbers, for instance 2,1,1") from None


def _check_files(
    output: Path,
    preview: Path | None,
    n: int,
    first: int,
    best_of: int | None,
    sources: Sequence[str | Path],
    overwrite: bool,
) -> None:
    """ValueError for files that cannot be written, or must not be, before anything is loaded."""
    check_edit(output, range(first, first + max(n, best_of or n)), sources, overwrite)
    if preview is not None:
        from unclip.files import check_files

        check_files([preview], overwrite, sources)


def _open(
    model: str, device: str, dtype: str, size: int | None, offload: bool, variant: str | None, preview: Path | None
) -> tuple[UnCLIP | Cascade, int, Any]:
    """The pipeline, the size of what is drawn, and who writes previews."""
    from unclip.pipelines.preview import Preview

    see = None if preview is None else Preview(preview)
    pipe = load_any(model, device, dtype, offload=offload, variant=variant)
    return pipe, edit_size(pipe, size), see


def _decoder(sampling: Sampling, steps: int | None, guidance: float | None) -> Sampling:
    changes = {"steps": steps, "guidance": guidance}
    return sampling.replace(**{name: value for name, value in changes.items() if value is not None})


def _options(
    pipe: UnCLIP | Cascade, caption: str | None, label: str | None, negative: str | None, best_of: int | None
) -> dict[str, Any]:
    from unclip.pipelines.unclip import UnCLIP

    options = {"negative": negative, "best_of": best_of}
    if label is not None:
        if isinstance(pipe, UnCLIP):
            raise ValueError("--label is for models that draw classes; this one draws captions")
        (options["labels"],) = class_labels([label], pipe.label_names)
    return options


def _describe_hole(hole: Any, what: str) -> str:
    """Which part of a picture is drawn, for those who mean the other one."""
    rows, columns = (hole.any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    where = f"columns {columns[0]} to {columns[-1]}, rows {rows[0]} to {rows[-1]}" if rows else "nowhere"
    return f"drawing {what} anew, {100 * hole.float().mean():.0f} % of the picture ({where}); the rest is kept"

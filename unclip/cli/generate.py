"""`unclip generate` and `unclip info`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

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
from .settings import PRESETS, settings, upsamplers

KINDS = {"diffusion": "prior", "ar": "ar_prior"}  # of priors, and the components that they are


def generate(
    output: Annotated[Path, typer.Option("-o", "--output", help="A .png, .jpg or .webp, or a folder.")],
    captions: Annotated[
        list[str] | None, typer.Argument(help="One or more captions; an empty one gives an unconditional picture.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="A class, by name or number, of a model that draws classes; several times for more.")
    ] = None,
    negative: Negative = None,
    model: Model = "emoji",
    n: Annotated[int, typer.Option(help="Pictures for each caption.", min=1)] = 1,
    best_of: BestOf = None,
    clip: Annotated[
        str | None, typer.Option(help="What ranks for --best-of where the model has no CLIP: a model, or open_clip:NAME:TAG.")
    ] = None,
    seed: Seed = 0,
    first: First = 0,
    size: Annotated[int | None, typer.Option(help="Side in pixels; default: the largest the model makes.")] = None,
    guidance: Guidance = None,
    guide_scale: Annotated[
        float | None,
        typer.Option(help="How strongly the model's classifier, or other guide, steers; 0 = not at all, default: its own."),
    ] = None,
    prior_guidance: Annotated[float | None, typer.Option(help="Guidance of the prior; 1 = off.")] = None,
    prior: Annotated[str, typer.Option(help="diffusion, or ar where the model has an autoregressive one too.")] = "diffusion",
    steps: Annotated[str | None, typer.Option(help="Steps by stage, for instance decoder=50,prior=64.")] = None,
    preset: Annotated[str | None, typer.Option(help=f"Sampling of all stages: {', '.join(PRESETS)}.")] = None,
    quality: Annotated[int | None, typer.Option(help="Of JPEG and WebP; default: 95.", min=1, max=100)] = None,
    preview: PreviewFile = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
    variant: Variant = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw pictures for captions."""
    with Errors(model):
        from unclip.files import check_files
        from unclip.images import check_quality
        from unclip.pipelines.generation import picture_paths

        check_quality(quality, output.suffix.lower())
        # Of which numbers the best will be is not known yet: in a folder any of them.
        each = n if best_of is None or output.suffix else max(n, best_of)
        count = each * max(1, len(captions or label or ()))
        check_files(picture_paths(output, range(first, first + count)), overwrite)  # before minutes are spent in vain
        if preview is not None:
            check_files([preview], overwrite)
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
        if prior not in KINDS:
            raise ValueError(f"no prior {prior!r}; there are {', '.join(KINDS)}")
        if clip is not None and best_of is None:
            raise ValueError("--clip ranks pictures for --best-of, which is not there")
        from unclip.pipelines.preview import Preview
        from unclip.pipelines.unclip import UnCLIP

        see = None if preview is None else Preview(preview)
        _tell_unknown(model, captions or ())
        pipe = load_any(model, device, dtype, KINDS[prior], offload, variant)
        samplings = settings(pipe, preset, steps, guidance, prior_guidance)
        request: dict[str, Any] = {"n": n, "seed": seed, "first": first, "size": size, "negative": negative, "best_of": best_of}
        request |= {"decoder": samplings["decoder"], "upsamplers": [samplings[name] for name in upsamplers(pipe)]}
        with Bars() as bars:
            request["callback"] = watched(bars, see)
            if isinstance(pipe, UnCLIP):
                if label:
                    raise ValueError("--label is for models that draw classes; this one draws captions")
                if guide_scale is not None:
                    raise ValueError("--guide-scale is for models with a classifier, or another guide; this one has none")
                if clip is not None:
                    raise ValueError("--clip is for models that have none; this one's own ranks the pictures")
                if not captions:
                    raise ValueError("no caption was given: write one or more, in quotes")
                result = pipe.generate(captions, **request, prior=samplings.get("prior"))
            else:
                if guide_scale is not None:
                    if pipe.guide is None:
                        raise ValueError(f"--guide-scale {guide_scale:g}: this model has no classifier, nor another guide")
                    request["guide_scale"] = guide_scale
                labels = None if label is None else class_labels(label, pipe.label_names)
                if clip is not None:
                    from unclip.runs.components import load_clip

                    request["clip"] = load_clip(clip).to(pipe.device)
                result = pipe.generate(captions or None, labels, **request)
        for path in result.save(output, overwrite, quality):
            typer.echo(path)


def _tell_unknown(model: str, captions: Sequence[str]) -> None:
    """A line for each caption of which the model knows no word, if it tells what it knows."""
    from unclip.pipelines.glossary import Glossary

    if captions and (glossary := Glossary.of(model)) is not None:
        for caption in captions:
            if (hint := glossary.unknown(caption)) is not None:
                warnings.warn(hint, stacklevel=1)


def class_labels(words: Sequence[str], names: Sequence[str]) -> list[int | str]:
    """Names of classes, numbers too where classes are named so; other numbers are class numbers."""
    return [int(word) if word.isdecimal() and word not in names else word for word in words]


def convert(
    source: Annotated[str, typer.Argument(help="Folder or hub id of public weights: Karlo's, GLIDE's or ADM's.")],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    dtype: Annotated[str, typer.Option(help="What weights are stored in: float32, bfloat16 or float16.")] = "float32",
    variant: Variant = None,
    overwrite: Overwrite = False,
) -> None:
    """Write public weights of another format in this package's, without running anything in them."""
    with Errors(source):
        from unclip.convert import convert as run

        run(source, folder, dtype, variant, overwrite=overwrite)
        typer.echo(folder)


def info(
    model: Annotated[str, typer.Argument(help="A shipped name, a folder, or a hub id.")] = "emoji",
    variant: Variant = None,
) -> None:
    """Print components, parameters, sampling defaults and provenance of a model."""
    with Errors(model):
        from unclip import __version__
        from unclip.types import Adjustable

        pipe = load_any(model, "cpu", "float32", variant=variant)
        _echo(f"{pipe.name} (unclip {__version__}); pictures of {', '.join(map(str, pipe.sizes))} pixels")
        total = 0
        for name, component in pipe.components.items():
            count = sum(p.numel() for p in component.parameters())
            total += count
            sampling = component.describe() if isinstance(component, Adjustable) else ""
            _echo(f"  {name:15} {type(component).__name__:15} {count / 1e6:8.2f}M  {sampling}".rstrip())
        _echo(f"  {'all':31} {total / 1e6:8.2f}M parameters")
        _echo_tree(pipe.provenance)


def _echo(text: str) -> None:
    """Print what a file says."""
    from unclip.config import visible

    typer.echo(visible(text, 4000))


def _echo_tree(tree: Mapping[str, Any], indent: int = 2) -> None:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            _echo(f"{' ' * indent}{key}:")
            _echo_tree(value, indent + 2)
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            _echo(f"{' ' * indent}{key}:")
            for one in value:
                _echo(f"{' ' * indent}- {_line(one)}")
        else:
            _echo(f"{' ' * indent}{key}: {value}")


def _line(tree: Mapping[str, Any]) -> str:
    entries = {key: f"({_line(value)})" if isinstance(value, Mapping) else value for key, value in tree.items() if value != {}}
    return ", ".join(f"{key} {value}" for key, value in entries.items())

"""`unclip config`, `unclip train` and `unclip assemble`: from pictures of one's own to a pipeline."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Errors, Overwrite, Variant

if TYPE_CHECKING:
    from unclip.runs import Training


What = Annotated[str, typer.Argument(help="What `unclip config` writes, or a recipe by its name, as emoji.decoder.")]


def config(
    stage: Annotated[
        str, typer.Argument(help="clip, prior, ar_prior, contrastive_prior, decoder or upsampler; or a recipe, as emoji.decoder.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="A new .json file.")],
    source: Annotated[
        str | None, typer.Argument(help="Captioned pictures: a folder, a table, tar shards (see `unclip data check`).")
    ] = None,
    scale: Annotated[str, typer.Option(help="small (thousands of pictures, two cores) or base (millions, a GPU).")] = "small",
    clip: Annotated[
        str | None, typer.Option(help='The CLIP of priors and decoders: a model, a folder, "open_clip:NAME:TAG".')
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the pictures; default: what the stage needs.")] = None,
    embeddings: Annotated[str | None, typer.Option(help="What `unclip embed` made of these data.")] = None,
    held_out: Annotated[str | None, typer.Option(help="Data for validation, of the same kind as SOURCE.")] = None,
    start: Annotated[str | None, typer.Option(help="Train these weights on: a model, a component's folder, a run.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a configuration to train a stage with; every setting stands in it and can be changed."""
    with Errors(stage):
        from unclip.checks import path_of
        from unclip.files import check_files, check_output, write_files
        from unclip.runs import recipes

        from .starters import STARTERS, starter

        check_files([check_output(output, (".json",), folder=False)], overwrite)
        if stage in STARTERS:
            if source is None:
                raise ValueError(f"a {stage} is trained on pictures: name them, as in unclip config {stage} pictures -o x.json")
            if scale not in ("small", "base"):
                raise ValueError(f"no scale {scale!r}; there are small and base")
            if not any(sign in source for sign in "{*[:") and not path_of(source).exists():
                warnings.warn(f"{source} is not here: the training will look for it below its own current folder", stacklevel=1)
            made = starter(stage, source, scale, clip, size, embeddings, held_out, start)  # type: ignore[arg-type]
        elif stage in recipes.functions() and source is None:
            made = recipes.find(stage)
        else:
            raise ValueError(f"no stage {stage!r}; there are {', '.join((*STARTERS, *recipes.functions()))}")
        write_files([(output, made.to_json().encode())], overwrite)
        typer.echo(output)


def train(
    what: What,
    settings: Annotated[list[str] | None, typer.Argument(help="Changes, as train.steps=500 model.unet.channels=96.")] = None,
    run: Annotated[
        # The second name is for torchrun, whose own options begin with the first.
        Path | None, typer.Option("--run", "--folder", help="Folder of the run; default: runs/NAME of the file or recipe.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--start", "--init", help="Begin with these weights: a run, a component's folder, MODEL:COMPONENT."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ...; default: the best there is, of each process its own.")
    ] = None,
    overfit: Annotated[int | None, typer.Option(help="Self-test: learn so many samples by heart.", min=2)] = None,
    overfit_steps: Annotated[int, typer.Option(help="Updates of the self-test.", min=1)] = 400,
    show: Annotated[bool, typer.Option("--show", help="Print the whole configuration and stop.")] = False,
) -> None:
    """Train a stage; the same command goes on where a run was cut off.  Several processes: torchrun -m unclip.cli train ..."""
    less_memory = "compute less at once (train.micro_batch), activations again (train.checkpointing=true), or train.batch smaller"
    with Errors(what, less_memory):
        from unclip.checks import path_of
        from unclip.runs.recipes import load

        training = load(what).override(*(settings or []))
        training = training if start is None else training.replace(start=start)
        folder = path_of(run or Path("runs") / what.removesuffix(".json").rpartition("/")[2])
        if show:
            typer.echo(training.to_json(), nl=False)
        elif overfit is None:
            _train(training, folder, device)
        elif not _overfit(training, folder.with_name(f"{folder.name}-overfit"), device, overfit, overfit_steps):
            raise typer.Exit(1)


def assemble(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    decoder: Annotated[
        str, typer.Option(help="A run, a component's folder, or a model; MODEL:COMPONENT names one of a model's.")
    ],
    clip: Annotated[
        str | None,
        typer.Option(
            help='A model, a folder, a run, or "open_clip:NAME:TAG"; left out for a decoder of captions or labels alone.'
        ),
    ] = None,
    prior: Annotated[str | None, typer.Option(help="As --decoder; without one the pipeline edits pictures only.")] = None,
    upsampler: Annotated[list[str] | None, typer.Option(help="The same; several in the order of use.")] = None,
    guide: Annotated[
        str | None, typer.Option(help="As --decoder, without a CLIP: what steers that by its gradient, as a Classifier.")
    ] = None,
    ar_prior: Annotated[str | None, typer.Option(help="A second prior, for `generate --prior ar`.")] = None,
    name: Annotated[str | None, typer.Option(help="Default: the folder's.")] = None,
    dtype: Annotated[str, typer.Option(help="What weights are stored in: float32, bfloat16 or float16.")] = "float32",
    variant: Variant = None,
    overwrite: Overwrite = False,
) -> None:
    """Put trained components together to a pipeline that every command takes as --model."""
    with Errors(decoder):
        from prior import ARPrior
        from unclip.checks import dtype_of
        from unclip.files import check_folder
        from unclip.index import PIPELINE_FILES
        from unclip.pipelines.cascade import Cascade
        from unclip.pipelines.unclip import UnCLIP
        from unclip.runs import load_clip, open_component
        from unclip.types import Decoder, GuideModel, Prior, Upsampler

        kind = dtype_of(dtype)
        if clip is None and (prior or ar_prior):
            raise ValueError("--prior draws the embeddings of a CLIP: name that too, with --clip")
        if clip is not None and guide is not None:
            raise ValueError("--guide is for models without a CLIP: a model with one is steered by its captions and embeddings")
        named = {"clip": clip, "prior": prior, "decoder": decoder, "guide": guide, "ar_prior": ar_prior}
        sources = {stage: source for stage, source in named.items() if source} | {
            f"upsampler {i + 1}": source for i, source in enumerate(upsampler or [])
        }
        read = [place for source in sources.values() for place in (source, source.rpartition(":")[0]) if place]  # MODEL:PART
        check_folder(folder, overwrite, PIPELINE_FILES, read)
        first = (
            None
            if prior is None
            else _component("prior", prior, Prior, "a prior (a DiffusionPrior, ARPrior or ContrastivePrior)", variant)
        )
        drawing = _component("decoder", decoder, Decoder, "a Decoder", variant)
        uppers = [_component("upsampler", source, Upsampler, "an Upsampler", variant) for source in upsampler or []]
        steering = None if guide is None else _component("guide", guide, GuideModel, "what guides, as a Classifier,", variant)
        second = open_component(ar_prior, "ar_prior", variant) if ar_prior else None
        if second is not None and not isinstance(second, ARPrior):
            raise ValueError(f"--ar-prior {ar_prior} is a {type(second).__name__}, not an ARPrior")
        if clip is None and "image_embed" in drawing.takes:
            problem = f"--decoder {decoder} draws pictures for the image embeddings of a CLIP"
            raise ValueError(f"{problem}: name that with --clip, and with --prior what draws them for captions")
        options: dict[str, Any] = {"name": name or folder.name}
        options["provenance"] = {"parts": {stage: _metadata(source) for stage, source in sources.items()}}
        if clip is None:
            Cascade(drawing, uppers, guide=steering, **options).save_pretrained(folder, kind, overwrite=overwrite)
        else:
            pipe = UnCLIP(load_clip(clip, variant), first, drawing, uppers, **options)
            pipe.save_pretrained(folder, kind, ar_prior=second, overwrite=overwrite)
        typer.echo(folder)


def _component(option: str, source: str, contract: type, expected: str, variant: str | None) -> Any:
    """A component; ValueError where it is of another kind than the option's."""
    from unclip.contracts import keep_contract
    from unclip.runs import open_component

    component = open_component(source, option, variant)
    try:
        keep_contract(component, contract)
    except ValueError:
        raise ValueError(f"--{option} {source} is a {type(component).__name__}, and {expected} is expected here") from None
    return component


def _train(training: Training, folder: Path, device: str | None) -> None:
    from unclip.runs.train import train as run

    try:
        made = run(training, folder, _device(device))
    except FloatingPointError as error:
        raise ValueError(str(error)) from None
    if int(os.environ.get("RANK", "0")) == 0:
        typer.echo(made)


def _overfit(training: Training, folder: Path, device: str | None, n: int, steps: int) -> bool:
    from unclip.runs import build
    from unclip.training.overfit import overfit

    built = build(training, _device(device), _silent)
    verdict = overfit(built.task, built.data, training.train, folder, n, steps)
    typer.echo(verdict.text)
    return bool(verdict.passed)


def _device(name: str | None) -> Any:
    """The one that the training loop will take, so that the frozen CLIP is there too.  None = accelerate's choice."""
    import torch
    from accelerate import Accelerator

    from unclip.checks import device_of

    chosen, together = None if name is None else device_of(name), int(os.environ.get("WORLD_SIZE", "1")) > 1
    if together and chosen is not None and chosen.index is not None:
        raise ValueError(f"--device {name}: of processes that train together each has a device of its own; say {chosen.type}")
    if chosen is not None and not together:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(chosen)
    accelerator = getattr(torch, "accelerator", torch.cuda)  # from torch 2.6 on every kind of device
    if (chosen is not None and chosen.type == "cpu") or (together and not accelerator.is_available()):
        os.environ["ACCELERATE_USE_CPU"] = "true"  # or each process would train alone
    return Accelerator(mixed_precision="no").device


def _metadata(source: str) -> dict[str, Any]:
    """Where a component comes from: a run tells its training and how it ended."""
    from unclip.checks import path_of
    from unclip.files import read_json
    from unclip.runs.components import RECORD
    from unclip.training import read_log

    metadata: dict[str, Any] = {"from": source}
    run = path_of(source)
    if (run / RECORD).is_file():
        record = read_json(run / RECORD)
        # Its component has its config; where its maker's files lie is nobody's business.
        metadata["training"] = {key: _bare(value) for key, value in record.items() if key != "model"}
        rows = [row for row in read_log(source) if "loss" in row and "event" not in row]
        metadata |= {key: rows[-1][key] for key in ("step", "samples", "loss", "seconds") if rows and key in rows[-1]}
    return metadata


def _bare(value: Any) -> Any:
    """Absolute paths without their folders."""
    if isinstance(value, dict):
        return {key: _bare(of) for key, of in value.items()}
    if isinstance(value, list):
        return [_bare(of) for of in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def _silent(text: str) -> None:
    pass

"""`unclip config`, `unclip train` and `unclip assemble`: from pictures of one's own to a pipeline."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from .common import Errors

if TYPE_CHECKING:
    from unclip.checkpoint import Part
    from unclip.runs.training import Training


def config(
    stage: Annotated[str, typer.Argument(help="clip, prior, ar_prior, contrastive_prior, decoder or upsampler.")],
    source: Annotated[str, typer.Argument(help="Captioned pictures: a folder, a table, tar shards (see `unclip data check`).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A new .json file.")],
    scale: Annotated[str, typer.Option(help="small (thousands of pictures, two cores) or base (millions, a GPU).")] = "small",
    clip: Annotated[
        str | None, typer.Option(help='The CLIP of priors and decoders: a model, a folder, "open_clip:NAME:TAG".')
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the pictures; default: what the stage needs.")] = None,
    embeddings: Annotated[str | None, typer.Option(help="What `unclip embed` made of these data.")] = None,
    held_out: Annotated[str | None, typer.Option(help="Data to examine on, of the same kind as SOURCE.")] = None,
    start: Annotated[str | None, typer.Option(help="Train these weights on: a model, a part's folder, a run.")] = None,
) -> None:
    """Write a configuration to train a stage with; every setting stands in it and can be changed."""
    with Errors():
        from unclip.runs.starters import Scale, starter, write
        from unclip.runs.training import Stage

        if stage not in get_args(Stage) or scale not in get_args(Scale):
            known = f"stages are {', '.join(get_args(Stage))}, scales {', '.join(get_args(Scale))}"
            raise ValueError(f"no stage {stage!r} of scale {scale!r}; {known}")
        write(starter(stage, source, scale, clip, size, embeddings, held_out, start), output)  # type: ignore[arg-type]
        typer.echo(output)


def train(
    file: Annotated[Path, typer.Argument(help="What `unclip config` writes.")],
    settings: Annotated[list[str] | None, typer.Argument(help="Changes, as train.steps=500 model.unet.channels=96.")] = None,
    run: Annotated[
        # The second name is for torchrun, whose own options begin with the first.
        Path | None, typer.Option("--run", "--folder", help="Folder of the run; default: runs/NAME of the file.")
    ] = None,
    overfit: Annotated[int | None, typer.Option(help="Self-test: learn so many samples by heart.", min=2)] = None,
    overfit_steps: Annotated[int, typer.Option(help="Updates of the self-test.", min=1)] = 400,
) -> None:
    """Train a stage; the same command goes on where a run was cut off.  Several processes: torchrun -m unclip.cli train ..."""
    with Errors("compute less at once (train.micro_batch), activations again (train.checkpointing=true), or train.batch smaller"):
        from unclip.runs.training import Training

        training = Training.load(file).override(*(settings or []))
        folder = run or Path("runs") / file.stem
        if overfit is None:
            _train(training, folder)
        elif not _overfit(training, folder.with_name(f"{folder.name}-overfit"), overfit, overfit_steps):
            raise typer.Exit(1)


def assemble(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    clip: Annotated[str, typer.Option(help='A model, a folder, a run, or "open_clip:NAME:TAG".')],
    prior: Annotated[str, typer.Option(help="A run, a part's folder, or a model; of a model another part as MODEL:PART.")],
    decoder: Annotated[str, typer.Option(help="The same.")],
    upsampler: Annotated[list[str] | None, typer.Option(help="The same; several in the order of use.")] = None,
    ar_prior: Annotated[str | None, typer.Option(help="A second prior, for `generate --prior ar`.")] = None,
    name: Annotated[str | None, typer.Option(help="Default: the folder's.")] = None,
    dtype: Annotated[str, typer.Option(help="What weights are stored in: float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Put trained parts together to a pipeline that every command takes as --model."""
    with Errors():
        from prior import ARPrior
        from unclip.pipelines.stage import DTYPES
        from unclip.pipelines.unclip import UnCLIP
        from unclip.runs.training import open_clip, open_part

        types = {str(t).removeprefix("torch."): t for t in DTYPES}
        if dtype not in types:
            raise ValueError(f"no dtype {dtype!r}; there are {', '.join(types)}")
        parts: dict[str, Part[Any]] = {"prior": open_part(prior, "prior"), "decoder": open_part(decoder, "decoder")}
        uppers = [open_part(source, "upsampler") for source in upsampler or []]
        second = open_part(ar_prior, "ar_prior") if ar_prior else None
        if second is not None and not isinstance(second, ARPrior):
            raise ValueError(f"--ar-prior {ar_prior} is a {type(second).__name__}, not an ARPrior")
        given = {"clip": clip, "prior": prior, "decoder": decoder, "ar_prior": ar_prior}
        sources = {stage: source for stage, source in given.items() if source} | {
            f"upsampler {i + 1}": source for i, source in enumerate(upsampler or [])
        }
        pipe = UnCLIP(
            open_clip(clip),
            parts["prior"],  # type: ignore[arg-type]
            parts["decoder"],  # type: ignore[arg-type]
            uppers,  # type: ignore[arg-type]
            name=name or folder.name,
            provenance={"parts": {stage: _story(source) for stage, source in sources.items()}},
        )
        pipe.save_pretrained(folder, types[dtype], ar_prior=second)
        typer.echo(folder)


def _train(training: Training, folder: Path) -> None:
    from unclip.runs import record
    from unclip.runs.training import build, finish
    from unclip.training import train as run

    main = int(os.environ.get("RANK", "0")) == 0
    record.refuse_other(training, folder)
    built = build(training, _device(), typer.echo if main else _silent)
    folder.mkdir(parents=True, exist_ok=True)
    if main:
        record.begin(training, folder)
        count = sum(p.numel() for p in built.task.model.parameters())
        typer.echo(f"{training.stage}: {count / 1e6:.2f}M parameters, {len(built.data)} samples, run {folder}")
    try:
        trained = run(built.task, built.data, training.train, folder, held_out=built.held_out)
    except FloatingPointError as error:
        raise ValueError(str(error)) from None
    if main:
        typer.echo(finish(training, built, trained.ema, folder))


def _overfit(training: Training, folder: Path, n: int, steps: int) -> bool:
    from unclip.runs.training import build
    from unclip.training.overfit import overfit

    built = build(training, _device(), _silent)
    verdict = overfit(built.task, built.data, training.train, folder, n, steps)
    typer.echo(verdict.text)
    return bool(verdict.passed)


def _device() -> Any:
    """The one that the training loop will take, so that the frozen CLIP is there too."""
    import torch
    from accelerate import Accelerator

    accelerator = getattr(torch, "accelerator", torch.cuda)  # from torch 2.6 on every kind of device
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # or each process would train alone
    return Accelerator(mixed_precision="no").device


def _story(source: str) -> dict[str, Any]:
    """Where a part comes from: a run tells its training and how it ended."""
    from unclip.runs.record import RECORD
    from unclip.training import read_log

    story: dict[str, Any] = {"from": source}
    if (Path(source) / RECORD).is_file():
        told = json.loads((Path(source) / RECORD).read_text())
        # Its part has its config; where its maker's files lie is nobody's business.
        story["training"] = {key: _bare(value) for key, value in told.items() if key != "model"}
        rows = [row for row in read_log(source) if "loss" in row and "event" not in row]
        story |= {key: rows[-1][key] for key in ("step", "samples", "loss", "seconds") if rows and key in rows[-1]}
    return story


def _bare(value: Any) -> Any:
    """Absolute paths without their folders."""
    if isinstance(value, dict):
        return {key: _bare(of) for key, of in value.items()}
    if isinstance(value, list):
        return [_bare(of) for of in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def _silent(text: str) -> None:
    pass

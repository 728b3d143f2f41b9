"""The `unclip` command.  Bad input ends with one line on standard error and status 2; nothing is half-written."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unclip.pipeline import UnCLIP
    from unclip.types import Sampling

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

# The paper's steps (Table 3): prior 64 with analytic variance, decoder 250, upsamplers 27 and 15 with DDIM.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "prior": {"sampler": "ddpm", "steps": 64, "variance": "analytic"},
        "decoder": {"sampler": "ddpm", "steps": 250},
        "upsampler_256": {"sampler": "ddim", "steps": 27},
        "upsampler_1024": {"sampler": "ddim", "steps": 15},
    }
}

Model = Annotated[str, typer.Option(help="A shipped name, a folder, or a Hugging Face hub id.")]


@app.callback()
def root() -> None:
    """unCLIP (DALL-E 2): pictures for captions, with trained weights inside."""


@app.command()
def generate(
    captions: Annotated[list[str], typer.Argument(help="One or more captions; an empty one gives an unconditional picture.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .png, or a folder.")],
    model: Model = "emoji",
    n: Annotated[int, typer.Option(help="Pictures for each caption.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pictures.")] = 0,
    first: Annotated[int, typer.Option(help="Number of the first picture: picture k of a run alone is --first k.", min=0)] = 0,
    size: Annotated[int | None, typer.Option(help="Side in pixels; default: the largest the model makes.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance of the decoder; 1 = off.")] = None,
    prior_guidance: Annotated[float | None, typer.Option(help="Guidance of the prior; 1 = off.")] = None,
    steps: Annotated[str | None, typer.Option(help="Steps by stage, for instance decoder=50,prior=64.")] = None,
    preset: Annotated[str | None, typer.Option(help=f"Sampling of all stages: {', '.join(PRESETS)}.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="What networks compute in: float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Draw pictures for captions."""
    with _Errors():
        _check_output(output, many=len(captions) * n > 1)
        pipe = _load(model, device, dtype)
        samplings = settings(pipe, preset, steps, guidance, prior_guidance)
        with _Bars() as bars:
            result = pipe.generate(
                captions,
                n=n,
                seed=seed,
                first=first,
                size=size,
                prior=samplings["prior"],
                decoder=samplings["decoder"],
                upsamplers=[samplings[name] for name in pipe.parts if name.startswith("upsampler_")],
                progress=bars,
            )
        for path in result.save(output):
            typer.echo(path)


@app.command()
def info(model: Annotated[str, typer.Argument(help="A shipped name, a folder, or a hub id.")] = "emoji") -> None:
    """Print parts, parameters, sampling defaults and provenance of a model."""
    with _Errors():
        from unclip import __version__

        pipe = _load(model, "cpu", "float32")
        typer.echo(f"{pipe.name} (unclip {__version__}); pictures of {', '.join(map(str, pipe.sizes))} pixels")
        total = 0
        for name, part in pipe.parts.items():
            count = sum(p.numel() for p in part.parameters())
            total += count
            default = getattr(part.config, "sampling", None)
            how = f"{default.sampler}, steps {default.steps}, guidance {default.guidance:g}" if default else ""
            typer.echo(f"  {name:15} {type(part).__name__:15} {count / 1e6:8.2f}M  {how}")
        typer.echo(f"  {'all':31} {total / 1e6:8.2f}M parameters")
        _echo_tree(pipe.provenance)


def settings(
    pipe: UnCLIP, preset: str | None, steps: str | None, guidance: float | None, prior_guidance: float | None
) -> dict[str, Sampling]:
    """Each stage's `Sampling`: its own default, changed by the preset, then by the options."""
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    parts = {name: part.config.sampling for name, part in pipe.parts.items() if name != "clip"}
    changes: dict[str, dict[str, Any]] = {name: dict((PRESETS[preset] if preset else {}).get(name, {})) for name in parts}
    if preset and "variance" not in changes["decoder"]:
        learned = pipe.decoder.config.variance == "learned"
        changes["decoder"]["variance"] = "learned" if learned else "small"
    for setting in steps.split(",") if steps else []:
        name, equals, value = setting.partition("=")
        if not equals or name not in parts or not value.strip().isdigit():
            raise ValueError(f"--steps {setting!r} not understood: write {'|'.join(parts)}=number, separated by commas")
        changes[name]["steps"] = int(value)
    if guidance is not None:
        changes["decoder"]["guidance"] = guidance
    if prior_guidance is not None:
        changes["prior"]["guidance"] = prior_guidance
    return {name: sampling.replace(**changes[name]) for name, sampling in parts.items()}


def _load(model: str, device: str, dtype: str) -> UnCLIP:
    import torch

    from unclip.pipeline import UnCLIP

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in types:
        raise ValueError(f"no dtype {dtype!r}; there are {', '.join(types)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return UnCLIP.from_pretrained(model).to(device, types[dtype])


def _check_output(path: Path, many: bool) -> None:
    """Refuse what could not be written before minutes are spent on it."""
    if path.suffix and path.suffix.lower() != ".png":
        raise ValueError(f"pictures are written as .png or into a folder, not as {path.suffix!r}: {path}")
    if path.suffix and path.is_dir():
        raise ValueError(f"{path} is a folder")
    folder = path.parent if path.suffix else path
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write to {folder}: choose another output")


def _echo_tree(tree: Any, indent: int = 2) -> None:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if isinstance(value, Mapping):
                typer.echo(f"{' ' * indent}{key}:")
                _echo_tree(value, indent + 2)
            else:
                typer.echo(f"{' ' * indent}{key}: {value}")


class _Errors:
    """ValueError -> one line and status 2; warnings -> one line each."""

    def __enter__(self) -> None:
        warnings.showwarning = lambda message, *rest, **more: print(f"warning: {message}", file=sys.stderr)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (ValueError, MemoryError, OSError)):
            print(f"error: {error or type(error).__name__}", file=sys.stderr)
            raise typer.Exit(2) from None


class _Bars:
    """One progress bar per stage, on standard error."""

    def __init__(self) -> None:
        self.bars: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        bar = self.bars.setdefault(stage, None) or tqdm(desc=f"{stage:15}", total=total, file=sys.stderr)
        self.bars[stage] = bar
        bar.update(done - bar.n)

    def __exit__(self, *error: Any) -> None:
        for bar in self.bars.values():
            bar.close()


def main() -> None:
    app()

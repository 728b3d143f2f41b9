"""The `unclip` command.  Bad input ends with one line on standard error and status 2; nothing is half-written."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

if TYPE_CHECKING:
    from .pipeline import UnCLIP
    from .types import Sampling

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

# The paper's steps (Table 3): prior 64 with analytic variance, decoder 250, upsamplers 27 and 15 with DDIM.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "prior": {"sampler": "ddpm", "steps": 64, "variance": "analytic", "eta": 0.0},
        "decoder": {"sampler": "ddpm", "steps": 250, "variance": "learned", "eta": 0.0},
        "upsampler 1": {"sampler": "ddim", "steps": 27, "eta": 0.0},
        "upsampler 2": {"sampler": "ddim", "steps": 15, "eta": 0.0},
    }
}

HOUSES = [Path(__file__).parents[1] / name for name in ("unclip", "prior", "decoder", "upsamplers")]
Model = Annotated[str, typer.Option(help="A shipped name, a folder, or a Hugging Face hub id.")]


def _version(wanted: bool) -> bool:
    if wanted:
        from . import __version__

        typer.echo(f"unclip {__version__}")
        raise typer.Exit()
    return wanted


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")] = False,
) -> None:
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
        from .results import check_output

        check_output(output)  # before minutes are spent on what could not be written
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
        pipe = _load(model, device, dtype)
        samplings = settings(pipe, preset, steps, guidance, prior_guidance)
        with _Bars(pipe, samplings) as bars:
            result = pipe.generate(
                captions,
                n=n,
                seed=seed,
                first=first,
                size=size,
                prior=samplings["prior"],
                decoder=samplings["decoder"],
                upsamplers=[samplings[name] for name in _upsamplers(pipe)],
                progress=bars,
            )
        for path in result.save(output):
            typer.echo(path)


@app.command()
def info(model: Annotated[str, typer.Argument(help="A shipped name, a folder, or a hub id.")] = "emoji") -> None:
    """Print parts, parameters, sampling defaults and provenance of a model."""
    with _Errors():
        from . import __version__

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
    """Each stage's `Sampling`: its own default, changed by the preset, then by the options, and checked against the stage."""
    parts = {name: part for name, part in pipe.parts.items() if name != "clip"}
    changes: dict[str, dict[str, Any]] = {name: {} for name in parts}
    if preset is not None:
        roles = dict(zip(("prior", "decoder", *_upsamplers(pipe)), ("prior", "decoder", "upsampler 1", "upsampler 2")))
        changes |= {name: dict(PRESETS[preset][role]) for name, role in roles.items()}
        if parts["decoder"].config.variance != "learned":
            changes["decoder"]["variance"] = "small"
    for setting in steps.split(",") if steps else []:
        name, equals, value = (word.strip() for word in setting.partition("="))
        if not equals or name not in parts or not value.isdecimal():
            raise ValueError(f"--steps {setting!r} not understood: write {'|'.join(parts)}=number, separated by commas")
        changes[name]["steps"] = int(value)
    if guidance is not None:
        changes["decoder"]["guidance"] = guidance
    if prior_guidance is not None:
        changes["prior"]["guidance"] = prior_guidance
    return {name: _sampling(name, part, changes[name]) for name, part in parts.items()}


def _sampling(name: str, part: Any, changes: Mapping[str, Any]) -> Sampling:
    """The part's own `Sampling` with changes; what it cannot do is refused now, not after the stages before it."""
    from unclip.diffusion.schedule import spaced

    try:
        sampling: Sampling = part.config.sampling.replace(**changes)
        visited = [t for t in spaced(part.schedule.T, sampling.steps) if t > 0]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    measured = getattr(part, "x0_variance", None)
    if sampling.sampler == "ddpm" and sampling.variance == "analytic" and measured is not None:
        missing = int(measured[visited].isnan().sum())
        if missing:
            raise ValueError(
                f"{name}: its analytic variance was not measured at {missing} of the {len(visited)} timesteps of steps "
                f"{sampling.steps}; leave out the option or preset that asks for them, or measure them in Python "
                "(prior.measure_variance) and save the model again"
            )
    return sampling


def _upsamplers(pipe: UnCLIP) -> list[str]:
    return [name for name in pipe.parts if name.startswith("upsampler_")]


def _load(model: str, device: str, dtype: str) -> UnCLIP:
    import torch

    from .pipeline import DTYPES, UnCLIP

    types = {str(t).removeprefix("torch."): t for t in DTYPES}
    if dtype not in types:
        raise ValueError(f"no dtype {dtype!r}; there are {', '.join(types)}")
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return UnCLIP.from_pretrained(model).to(device, types[dtype])


def _echo_tree(tree: Any, indent: int = 2) -> None:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if isinstance(value, Mapping):
                typer.echo(f"{' ' * indent}{key}:")
                _echo_tree(value, indent + 2)
            else:
                typer.echo(f"{' ' * indent}{key}: {value}")


class _Errors:
    """A known kind of error -> one line and status 2.  This package's own warnings -> one line each; libraries' are not shown."""

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
        # Torch tells of exhausted memory by a RuntimeError; its other ones are faults of ours and keep their traceback.
        exhausted = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error).lower())
        if exhausted:
            _say("error", "out of memory: draw fewer pictures at once (--n), smaller ones (--size), or with --dtype bfloat16")
        elif isinstance(error, (ValueError, OSError)):
            _say("error", error)
        if exhausted or isinstance(error, (ValueError, OSError)):
            raise typer.Exit(2) from None


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


class _Bars:
    """One progress bar per stage, counting the steps of its network; on standard error, and only when a person watches."""

    def __init__(self, pipe: UnCLIP, samplings: Mapping[str, Sampling]):
        from unclip.diffusion.schedule import spaced

        self.bars: dict[str, Any] = {}
        self.steps = {name: len(spaced(pipe.parts[name].schedule.T, how.steps)) - 1 for name, how in samplings.items()}
        self.hooks = [pipe.parts[name].network.register_forward_hook(partial(self.step, name)) for name in samplings]

    def __enter__(self) -> _Bars:
        return self

    def step(self, stage: str, *_: Any) -> None:
        from tqdm import tqdm

        if stage not in self.bars:
            self.bars[stage] = tqdm(desc=stage, total=self.steps[stage], unit="step", file=sys.stderr, disable=None)
        self.bars[stage].update()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Pictures come in chunks, each of which counts its steps from 0."""
        bar = self.bars.get(stage)
        if bar is None:
            return
        bar.set_description(f"{stage} {done}/{total}")
        if done < total:
            bar.reset()

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        for bar in self.bars.values():
            bar.close()


def main() -> None:
    app()


if __name__ == "__main__":
    main()

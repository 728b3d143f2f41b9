"""How each stage samples: its own default, changed by a preset and by options, and refused before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unclip.pipelines.unclip import UnCLIP
    from unclip.types import Sampling

# The paper's steps (Table 3): prior 64 with analytic variance, decoder 250, upsamplers 27 and 15 with DDIM.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "prior": {"sampler": "ddpm", "steps": 64, "variance": "analytic", "eta": 0.0},
        "decoder": {"sampler": "ddpm", "steps": 250, "variance": "learned", "eta": 0.0},
        "upsampler 1": {"sampler": "ddim", "steps": 27, "eta": 0.0},
        "upsampler 2": {"sampler": "ddim", "steps": 15, "eta": 0.0},
    }
}


def settings(
    pipe: UnCLIP, preset: str | None, steps: str | None, guidance: float | None, prior_guidance: float | None
) -> dict[str, Sampling]:
    """Each stage's `Sampling`: its own default, changed by the preset, then by the options, and checked against the stage."""
    parts = {name: part for name, part in pipe.parts.items() if name != "clip"}
    changes: dict[str, dict[str, Any]] = {name: {} for name in parts}
    if preset is not None:
        roles = dict(zip(("prior", "decoder", *upsamplers(pipe)), ("prior", "decoder", "upsampler 1", "upsampler 2")))
        changes |= {name: dict(PRESETS[preset][role]) for name, role in roles.items() if diffuses(parts[name])}
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


def upsamplers(pipe: UnCLIP) -> list[str]:
    return [name for name in pipe.parts if name.startswith("upsampler_")]


def diffuses(part: Any) -> bool:
    """All stages do, but for an autoregressive prior, which draws one symbol after the other."""
    return hasattr(part, "schedule")


def passes(part: Any, sampling: Sampling) -> int:
    """How often a stage's network runs to draw a batch."""
    from unclip.diffusion.schedule import spaced

    return len(spaced(part.schedule.T, sampling.steps)) - 1 if diffuses(part) else int(part.length)


def _sampling(name: str, part: Any, changes: Mapping[str, Any]) -> Sampling:
    """The part's own `Sampling` with changes; what it cannot do is refused now, not after the stages before it."""
    from unclip.diffusion.schedule import spaced
    from unclip.types import Sampling

    if not diffuses(part):
        if "steps" in changes:
            raise ValueError(f"{name}: it draws its {part.length} symbols one by one and has no steps; leave out {name}=")
        own = Sampling(guidance=part.config.sampling.guidance)  # its other settings stay its own
    else:
        own = part.config.sampling
    try:
        sampling = own.replace(**changes)
        visited = [t for t in spaced(part.schedule.T, sampling.steps) if t > 0] if diffuses(part) else []
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

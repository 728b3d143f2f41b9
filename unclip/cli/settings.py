"""How each stage samples: its own default, changed by a preset and by options, and refused before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unclip.pipelines.cascade import Cascade
    from unclip.pipelines.unclip import UnCLIP

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
    pipe: UnCLIP | Cascade, preset: str | None, steps: str | None, guidance: float | None, prior_guidance: float | None
) -> dict[str, Any]:
    """Each stage's `Sampling`: its own default, changed by the preset, then by the options, and checked against the stage.

    Components that are no `Adjustable` keep to their own ways (None).
    """
    from unclip.sampling import DDIM, FAST27, strided

    stages = {name: component for name, component in pipe.components.items() if name not in ("clip", "guide")}
    changes: dict[str, dict[str, Any]] = {name: {} for name in stages}
    if preset is not None:
        roles = dict(zip(("prior", "decoder", *upsamplers(pipe)), ("prior", "decoder", "upsampler 1", "upsampler 2")))
        changes |= {name: dict(PRESETS[preset][role]) for name, role in roles.items() if diffuses(stages.get(name))}
        if "variance" in changes["decoder"]:
            changes["decoder"] = _with_variance(stages["decoder"], changes["decoder"])
    for setting in steps.split(",") if steps else []:
        name, equals, value = (word.strip() for word in setting.partition("="))
        word = value == FAST27 or strided(value) is not None
        if not equals or name not in stages or not (word or value.isdecimal()):
            known = f"{'|'.join(stages)}=number, {FAST27!r} or '{DDIM}25', separated by commas"
            raise ValueError(f"--steps {setting!r} not understood: write {known}")
        changes[name] |= {"steps": value if word else int(value)} | ({"sampler": "ddim"} if strided(value) else {})
    if guidance is not None:
        changes["decoder"]["guidance"] = guidance
    if prior_guidance is not None:
        if "prior" not in stages:
            raise ValueError(f"--prior-guidance {prior_guidance:g}: this model has no prior")
        changes["prior"]["guidance"] = prior_guidance
    return {name: _sampling(name, component, changes[name]) for name, component in stages.items()}


def upsamplers(pipe: UnCLIP | Cascade) -> list[str]:
    return [name for name in pipe.components if name.startswith("upsampler_")]


def diffuses(component: Any) -> bool:
    """Stages do whose default is a `Sampling`; an autoregressive prior draws one symbol after the other."""
    from unclip.sampling import Sampling
    from unclip.types import Adjustable

    return isinstance(component, Adjustable) and isinstance(component.sampling, Sampling)


def _with_variance(decoder: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes; where the decoder has not learned the variance that they ask for, with a fixed one."""
    try:
        decoder.resolve(decoder.sampling.replace(**changes))
    except ValueError:
        return changes | {"variance": "small"}
    return changes


def _sampling(name: str, component: Any, changes: Mapping[str, Any]) -> Any:
    """The component's own way of sampling with changes; what it cannot do is refused now, not after the stages before it."""
    from unclip.sampling import Sampling
    from unclip.types import Adjustable

    if not isinstance(component, Adjustable):
        if changes:
            raise ValueError(f"{name}: a {type(component).__name__} does not say how it samples; leave out {', '.join(changes)}")
        return None
    try:
        if not diffuses(component) and "steps" in changes:
            component.resolve(Sampling(steps=changes["steps"]))  # says why it has none
        sampling = component.sampling.replace(**changes)
        component.resolve(sampling)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return sampling

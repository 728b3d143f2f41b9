"""Karlo at its full size, here and in diffusers, a step of each stage and peak memory: `python -m benchmarks.karlo`.

Random weights of the public model's shapes.  Each system runs in a process of its own, in turn (diffusers, ours, diffusers,
ours), so that what else the machine does meets both; medians of all steps timed, after one that does not count.  A guided step
is two rows of prior and decoder, in one pass; the upsampler has no guidance.  "ours" is what the pipeline runs: the prior's text
and the decoder's context once per picture, weights held in the type that is computed in.  diffusers' are the networks of its
UnCLIPPipeline (PriorTransformer, UNet2DConditionModel, UNet2DModel), as it calls them.

Memory: a process that holds all networks and runs a step of each; with offloading, ours holds one at a time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.machine import header, memory
from experiments.command import run

SYSTEMS = ("diffusers", "ours")
STEPS = {"prior": 25, "decoder": 25, "upsampler": 7}  # of a picture
LEAST = {  # how many times faster than diffusers a step must be
    ("prior", "float32"): 6.0,
    ("prior", "bfloat16"): 10.0,
    **{(stage, dtype): 1.25 for stage in ("decoder", "upsampler") for dtype in ("float32", "bfloat16")},
}
PICTURE, MEMORY = 1.3, 0.5  # times faster; part of diffusers' peak, with offloading
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Size(NamedTuple):
    embed: int
    heads: int  # of the prior, each 64 wide
    layers: int
    levels: tuple[int, ...]  # of the decoder, with attention but for the first
    context: int
    pixels: int
    upper: tuple[int, ...]  # levels of the upsampler's networks
    depth: int
    text: tuple[int, int]  # layers and heads of CLIP's text tower


FULL = Size(768, 32, 20, (320, 640, 960, 1280), 1536, 64, (320, 640, 960, 1280), 3, (12, 12))
SMALL = Size(64, 2, 2, (64, 128), 48, 16, (32, 64), 1, (2, 1))


class Step(NamedTuple):
    """What a stage does per step, what it does once before, and how many bytes its weights have."""

    step: Callable[[], Tensor]
    once: Callable[[], Any] | None
    weights: int


def fill(module: nn.Module, dtype: torch.dtype) -> Any:
    """Weights for a module on the meta device, which keep activations at about their size; from one small pool of numbers."""
    pool = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).to(dtype)
    for parameter in module.parameters():  # module.to(dtype) would warn of diffusers' modules
        parameter.data = parameter.data.to(dtype)
    module.to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        flat = parameter.data.view(-1)
        if parameter.ndim < 2:
            flat.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        scale = parameter[0].numel() ** -0.5
        for part in flat.split(len(pool)):
            torch.mul(pool[: len(part)], scale, out=part)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.fill_(0.0)
        elif buffer.dtype == torch.int64:  # positions
            buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))
    return module.eval()


def draw(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


# diffusers


def _blocks(levels: tuple[int, ...], attention: bool) -> dict[str, Any]:
    """Of a UNet: attention on all levels but the first, or on none."""
    kind, inner = ("SimpleCrossAttn{}Block2D", len(levels) - 1) if attention else ("", 0)
    outer = len(levels) - inner
    down = (*["ResnetDownsampleBlock2D"] * outer, *[kind.format("Down")] * inner)
    up = (*[kind.format("Up")] * inner, *["ResnetUpsampleBlock2D"] * outer)
    return {"block_out_channels": levels, "down_block_types": down, "up_block_types": up}


def diffusers_prior(size: Size, dtype: torch.dtype) -> Step:
    from diffusers import PriorTransformer

    with torch.device("meta"):
        model = PriorTransformer(num_attention_heads=size.heads, num_layers=size.layers, embedding_dim=size.embed)
    fill(model, dtype)
    model.causal_attention_mask.copy_(torch.full((81, 81), -10000.0).triu_(1)[None])
    x, states, mask = draw(dtype, 2, size.embed), draw(dtype, 2, 77, size.embed), torch.ones(2, 77, dtype=torch.bool)
    inputs = {"proj_embedding": draw(dtype, 2, size.embed), "encoder_hidden_states": states, "attention_mask": mask}
    return Step(lambda: model(x, timestep=500, **inputs).predicted_image_embedding, None, _bytes(model))


def diffusers_decoder(size: Size, dtype: torch.dtype) -> Step:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(
            sample_size=size.pixels,
            layers_per_block=size.depth,
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            in_channels=3,
            out_channels=6,
            cross_attention_dim=size.context,
            class_embed_type="identity",
            attention_head_dim=64,
            resnet_time_scale_shift="scale_shift",
            **_blocks(size.levels, True),
        )
    fill(model, dtype)
    x, context = draw(dtype, 2, 3, size.pixels, size.pixels), draw(dtype, 2, 81, size.context)
    added, mask = draw(dtype, 2, 4 * size.levels[0]), torch.ones(2, 81, dtype=torch.bool)
    inputs = {"encoder_hidden_states": context, "class_labels": added, "attention_mask": mask}
    return Step(lambda: model(x, 500, **inputs).sample, None, _bytes(model))


def diffusers_upsampler(size: Size, dtype: torch.dtype) -> Step:
    from diffusers import UNet2DModel

    with torch.device("meta"):
        model = UNet2DModel(
            sample_size=4 * size.pixels,
            layers_per_block=size.depth,
            in_channels=6,
            out_channels=3,
            add_attention=False,
            **_blocks(size.upper, False),
        )
    fill(model, dtype)
    x = draw(dtype, 1, 6, 4 * size.pixels, 4 * size.pixels)
    return Step(lambda: model(x, 500).sample, None, _bytes(model))


def diffusers_text(size: Size, dtype: torch.dtype) -> Step:
    """CLIP's text tower, which only counts for the memory."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    layers, heads = size.text
    config = CLIPTextConfig(
        hidden_size=size.embed,
        projection_dim=size.embed,
        intermediate_size=4 * size.embed,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=49408,
    )
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(config)
    fill(model, dtype)
    tokens = torch.arange(77)[None]
    return Step(lambda: model(tokens).text_embeds, None, _bytes(model))


# ours


def our_part(stage: str, size: Size, dtype: torch.dtype) -> Any:
    """A component as unclip.convert makes it, but for its weights."""
    from prior import DiffusionPrior
    from unclip.convert import karlo
    from unclip.nn.transformer import TransformerConfig
    from unclip.nn.unet import UNetConfig

    if stage == "prior":
        transformer = TransformerConfig(width=64 * size.heads, layers=size.layers, heads=size.heads)
        return _made(DiffusionPrior, karlo.prior_config(transformer, size.embed, 77, 10.0), dtype)
    levels = size.levels if stage == "decoder" else size.upper
    shape = {"channels": levels[0], "multiple": tuple(w // levels[0] for w in levels), "depth": size.depth}
    if stage == "decoder":
        from decoder import Decoder

        attention = tuple(range(1, len(levels)))
        unet = UNetConfig(attention=attention, **shape)  # type: ignore[arg-type]
        return _made(Decoder, karlo.decoder_config(unet, size.context, size.pixels, size.embed, 4, 77, 25), dtype)
    from upsamplers import Upsampler

    unet = UNetConfig(modulation="add", **shape)  # type: ignore[arg-type]
    return _made(Upsampler, karlo.upsampler_config(unet, 4), dtype)


def _made(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    from unclip.checkpoint import build

    part = build(kind, config, dtype)  # on the meta device, its buffers real
    buffers = {name: buffer.clone() for name, buffer in part.named_buffers()}
    fill(part, dtype)
    part.load_state_dict(buffers, strict=False, assign=True)
    if kind.__name__ != "CLIP":
        part.to(memory_format=torch.channels_last)  # as in a pipeline
    if hasattr(part, "fit"):
        part.fit(draw(torch.float32, 64, config.network.embed_dim))
    if kind.__name__ in ("DiffusionPrior", "Decoder"):  # whose null is the empty caption
        part.set_null(_text(config, 1))
    return part


def _text(config: Any, b: int) -> Any:
    """Captions that fill the context."""
    from unclip.types import Text

    width = config.network.embed_dim if hasattr(config, "network") else config.conditions.image_embed.embed_dim
    mask = torch.ones(b, 77, dtype=torch.bool)
    states, embed = draw(torch.float32, b, 77, width), draw(torch.float32, b, width)
    return Text(["a caption"] * b, mask.long(), embed, states, mask)


def our_step(part: Any, size: Size, dtype: torch.dtype) -> Step:
    from unclip.types import Cond

    network, t, weights = part.network, torch.full((2,), 500), _bytes(part)
    kind = type(part).__name__
    if kind == "DiffusionPrior":
        text, x = _text(part.config, 2), draw(torch.float32, 2, size.embed)
        prompt = network.prompt(text)
        cache = network.encode(prompt)
        return Step(lambda: network(x, t, cache), lambda: network.encode(prompt), weights)
    if kind == "Decoder":
        text, x = _text(part.config, 2), draw(torch.float32, 2, 3, size.pixels, size.pixels)
        cond = Cond(draw(torch.float32, 2, size.embed), text)
        encoded = network.encode(cond, 2)
        return Step(lambda: network(x, t, encoded), lambda: network.encode(cond, 2), weights)
    low = network.encode(draw(torch.float32, 1, 3, size.pixels, size.pixels))
    noisy = draw(torch.float32, 1, 3, 4 * size.pixels, 4 * size.pixels)
    return Step(lambda: network(noisy, t[:1], low), None, weights // 2)  # of its two networks one runs


def our_clip(size: Size, dtype: torch.dtype) -> Any:
    from unclip.clip.encoder import CLIP, Architecture, CLIPConfig, TextTower, VisionTower

    layers, heads = size.text
    text = TextTower(context_length=77, width=size.embed, layers=layers, heads=heads)
    vision = VisionTower(image_size=32, patch_size=16, width=64, layers=1)  # text alone is compared: next to nothing
    config = CLIPConfig(architecture=Architecture(embed_dim=size.embed, vision=vision, text=text), quick_gelu=True)
    return _made(CLIP, config, dtype)


# Workers


@torch.no_grad()
def time_steps(system: str, stage: str, size: Size, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    if system == "ours":
        part = our_part(stage, size, dtype)
        made = our_step(part, size, dtype)
    else:
        made = globals()[f"diffusers_{stage}"](size, dtype)
    made.step()
    times = [clock(made.step) for _ in range(repeats)]
    return {"seconds": times, "once": clock(made.once) if made.once else 0.0, "weights": made.weights}


@torch.no_grad()
def hold_all(system: str, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    """Peak memory of one process that runs a step of every stage: diffusers', ours, or ours with offloading."""
    if system == "diffusers":
        makers = (diffusers_text, diffusers_prior, diffusers_decoder, diffusers_upsampler, diffusers_upsampler)
        for made in [make(size, dtype) for make in makers]:
            made.step()
        return {"peak": memory()}
    from unclip.offload import Offload
    from unclip.pipelines.unclip import UnCLIP
    from unclip.sampling import Sampling

    keeper = Offload() if system == "offload" else None
    # Weights are drawn again where a pipeline on disk would read them again.
    loads = [lambda stage=stage: our_part(stage, size, dtype) for stage in STEPS] + [lambda: our_clip(size, dtype)]
    prior, decoder, upsampler, clip = (keeper.add(load) if keeper else load() for load in loads)
    pipe = UnCLIP(clip, prior, decoder, [upsampler], candidates=1)
    guided = Sampling(sampler="ddim", steps=1, guidance=4.0)
    pipe.generate("a caption", prior=guided, decoder=guided, upsamplers=[Sampling(sampler="ddim", steps=2)])
    return {"peak": memory()}


def clock(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


# The table


def worker(*words: str, small: bool, repeats: int) -> dict[str, Any]:
    options = ["--worker", *words, "--repeats", str(repeats), *(["--small"] if small else [])]
    results: dict[str, Any] = json.loads(run(["-m", "benchmarks.karlo", *options]).output.splitlines()[-1])
    return results


def versions() -> str:
    import diffusers
    import transformers

    from unclip import __version__

    names = {"unclip": __version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__}
    return ", ".join(f"{name} {version}" for name, version in names.items()) + f", {platform.machine()}"


def measure_steps(args: argparse.Namespace) -> bool:
    """Prints the table of steps; whether all targets are reached."""
    print(f"\n{'':10} {'':9} {'seconds a guided step':^21} {'times':>6} {'at':>6} {'weights':>8}")
    print(f"{'stage':10} {'dtype':9} {'diffusers':>10} {'ours':>10} {'faster':>6} {'least':>6} {'GB/s':>8}", flush=True)
    kept = True
    for dtype in args.dtypes:
        picture, once = dict.fromkeys(SYSTEMS, 0.0), 0.0
        for stage in args.stages:
            results: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
            for _ in range(args.rounds):
                for system in SYSTEMS:
                    results[system].append(worker(system, stage, dtype, small=args.small, repeats=args.repeats))
            seconds = {name: statistics.median(t for one in runs for t in one["seconds"]) for name, runs in results.items()}
            before = statistics.median(one["once"] for one in results["ours"])
            for system in SYSTEMS:
                picture[system] += STEPS[stage] * seconds[system]
            once += before
            ratio, least = seconds["diffusers"] / seconds["ours"], LEAST[stage, dtype]
            kept &= ratio >= least
            rate = results["ours"][0]["weights"] / seconds["ours"] / 1e9
            times = f"{seconds['diffusers']:10.4g} {seconds['ours']:10.4g} {ratio:6.2f} {least:6.2f} {rate:8.2f}"
            print(f"{stage:10} {dtype:9} {times}" + (f"  and {before:.3g} s once" if before else ""), flush=True)
        if set(args.stages) == set(STEPS):
            ours = picture["ours"] + once
            ratio = picture["diffusers"] / ours
            kept &= ratio >= PICTURE
            print(f"{'picture':10} {dtype:9} {picture['diffusers']:10.4g} {ours:10.4g} {ratio:6.2f} {PICTURE:6.2f}")
    steps = " + ".join(str(n) for n in STEPS.values())
    print(f"picture: EXTRAPOLATED, {steps} times the steps above and what is done once; no text, no loading, no last network")
    return kept


def measure_memory(args: argparse.Namespace) -> bool:
    """Prints the table of peaks; whether the target is reached."""
    print(
        f"\n{'dtype':10} {'diffusers':>10} {'ours':>10} {'--offload':>10} {'part':>6} {'most':>6}   peak memory, GB", flush=True
    )
    kept = True
    for dtype in args.dtypes:
        peaks = [worker(name, "memory", dtype, small=args.small, repeats=1)["peak"] for name in ("diffusers", "ours", "offload")]
        part = peaks[2] / peaks[0]
        kept &= part <= MEMORY
        print(f"{dtype:10} " + " ".join(f"{peak:10.2f}" for peak in peaks) + f" {part:6.2f} {MEMORY:6.2f}", flush=True)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that everything runs; targets mean nothing")
    parser.add_argument("--stages", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=2, help="processes of each system")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each process, after one that does not count")
    parser.add_argument("--only", choices=("steps", "memory"), help="one of the two tables; the peaks take 16 GB")
    parser.add_argument("--worker", nargs=3, metavar=("SYSTEM", "STAGE", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = SMALL if args.small else FULL
    if args.worker:
        system, stage, dtype = args.worker
        kind = DTYPES[dtype]
        text = hold_all(system, size, kind) if stage == "memory" else time_steps(system, stage, size, kind, args.repeats)
        print(json.dumps(text))
        return
    print(header())
    print(versions())
    what = "Karlo made tiny" if args.small else "Karlo"
    kept = True
    if args.only != "memory":
        print(f"{what}, {args.rounds} processes of {args.repeats} timed steps for each system, in turn")
        kept &= measure_steps(args)
    if args.only != "steps":
        kept &= measure_memory(args)
    if args.small:
        print("\ntargets: not judged at this size")
        return
    print("\ntargets: " + ("reached" if kept else "MISSED"))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()

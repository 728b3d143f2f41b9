"""How exactly a picture comes back from its latent (z_i, x_T): PSNR in 8 bits at the decoder's size.

    python -m experiments.figures.inversion [MODEL] [-o FOLDER] [--only reconstructions curve lowest photograph] [--part 1/2]
    python -m experiments.figures.inversion [MODEL] [-o FOLDER] --merge

reconstructions: --n pictures at --steps steps with --refine refinements; of the first --few of them also from a random x_T and
with another picture's z_i.  curve: --few pictures over steps and refinements.  lowest: --few pictures over the timestep that a
picture is read at, at the decoder's own steps; x_T is noise where its standard deviation is 1.  photograph: one picture that is
no emoji (by default matplotlib's portrait of Grace Hopper, taken by the US Navy, public domain).

The whole takes 250,000 evaluations of the decoder's network.  Finished chunks are kept in FOLDER/inversion_chunks by what they
depend on, and are never computed again; --part 1/2 and --part 2/2 may run side by side, each does half of them, and whichever
ends last writes inversion.json, inversion.png and inversion_curve.png, as --merge does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.figures import common as figures
from experiments.figures.common import Chosen, Drawn, Numbers, Run
from unclip.editing.latent import Latent
from unclip.files import write_files
from unclip.randomness import Noise
from unclip.sampling import Inversion, Sampling

FORMAT = "unclip-inversion-chunk-1"
CHUNKS = "inversion_chunks"
SECTIONS = ("reconstructions", "curve", "lowest", "photograph")
SHOWN = 6  # pictures in the sheet


class Unit(NamedTuple):
    """Some pictures, inverted and drawn again; `strange`: from the latent thus found, with x_T or z_i of another origin."""

    inversion: Inversion
    start: int
    stop: int
    strange: bool = False
    photograph: bool = False

    @property
    def evaluations(self) -> int:
        """Of the network, roughly, for all its pictures."""
        steps = self.inversion.steps
        assert isinstance(steps, int)
        return (self.stop - self.start) * steps * (2 if self.strange else 2 + self.inversion.refine)


class Plan:
    """What there is to compute, in chunks of pictures."""

    def __init__(self, run: Run):
        self.run, options = run, run.options
        self.chosen = run.pictures() if set(options.only) != {"photograph"} else Chosen([], [], [])
        files = [photograph(options.photograph)] if "photograph" in options.only else []
        self.photograph = figures.read(files, [])
        self.few = min(options.few, len(self.chosen))
        self.main = Inversion(steps=options.steps, refine=options.refine)
        usual = getattr(getattr(run.pipe.decoder, "config", None), "inversion", Inversion())
        self.usual = usual if isinstance(usual.steps, int) else Inversion()
        self.curve = [Inversion(steps=s, refine=r) for s in options.curve_steps for r in options.curve_refine]
        self.lowest = [self.usual.replace(lowest=lowest) for lowest in options.lowest]

    def of(self, section: str) -> list[Unit]:
        if section == "photograph":
            return [Unit(how, 0, 1, photograph=True) for how in dict.fromkeys((self.usual, self.main))]
        count = len(self.chosen) if section == "reconstructions" else self.few
        hows = {"reconstructions": [self.main], "curve": self.curve, "lowest": self.lowest}[section]
        units = [Unit(how, *chunk) for how in hows for chunk in self.chunks(count)]
        if section == "reconstructions":
            units += [Unit(self.main, *chunk, strange=True) for chunk in self.chunks(self.few)]
        return units

    def all(self) -> list[Unit]:
        """Every unit once: the sections share some."""
        return list(dict.fromkeys(unit for section in SECTIONS if section in self.run.options.only for unit in self.of(section)))

    def chunks(self, count: int) -> list[tuple[int, int]]:
        """Those that hold the first `count` pictures; equal for every count, so that sections share them."""
        every = range(0, len(self.chosen), figures.AT_ONCE)
        return [(start, min(start + figures.AT_ONCE, len(self.chosen))) for start in every if start < count]

    def pictures(self, unit: Unit) -> list[Tensor]:
        return (self.photograph if unit.photograph else self.chosen).images[unit.start : unit.stop]

    def path(self, unit: Unit) -> Path:
        """The chunk's file; its name tells all that it depends on."""
        models = {name: value for name, value in self.run.pipe.models().items() if name != "pipeline"}
        digest = hashlib.blake2b(f"{FORMAT} {sorted(models.items())} {unit.inversion}".encode(), digest_size=8)
        if unit.strange:
            digest.update(f"strange, seed {self.run.options.seed}".encode())
            others = [(i + 1) % len(self.chosen) for i in range(unit.start, unit.stop)]
            unit = unit._replace(start=min(unit.start, *others), stop=max(unit.stop, *(i + 1 for i in others)))
        for image in self.pictures(unit):
            digest.update(image.contiguous().numpy().tobytes())
        kind = "photograph" if unit.photograph else f"{unit.start:03}" + "-strange" * unit.strange
        name = f"{unit.inversion.steps}-{unit.inversion.refine}-{unit.inversion.lowest}-{kind}-{digest.hexdigest()}.safetensors"
        return self.run.options.output / CHUNKS / name


def draw(run: Run) -> Drawn | None:
    part, parts = run.options.part
    plan = Plan(run)
    if not run.options.merge:
        # By pictures, so that a process finds the latents it needs among its own chunks.
        mine = [unit for unit in plan.all() if unit.start // figures.AT_ONCE % parts == part - 1]
        ready = [unit for unit in mine if load(plan.path(unit)) is not None]
        todo = [unit for unit in mine if unit not in ready]
        print(f"part {part} of {parts}: {len(ready)} chunks are there, {len(todo)} to compute", flush=True)
        with run.progress("inverting", sum(unit.evaluations for unit in todo), " evaluations", weigh=True) as bar:
            done = 0
            for unit in todo:
                save(plan.path(unit), (strange if unit.strange else reconstructed)(plan, unit))
                done += unit.evaluations
                bar.update(done - bar.n)  # the guess need not be exact
    missing = [plan.path(unit).name for unit in plan.all() if load(plan.path(unit)) is None]
    if missing and run.options.merge:
        raise ValueError(f"{len(missing)} chunks of {len(plan.all())} are not there, {missing[0]} first: run without --merge")
    if missing:
        print(f"{len(missing)} of {len(plan.all())} chunks are left to the other parts; the last one to end writes the numbers")
        return None
    return gathered(plan)


def reconstructed(plan: Plan, unit: Unit) -> dict[str, Any]:
    """Invert and draw again."""
    pictures = plan.pictures(unit)
    latent = plan.run.pipe.invert(pictures, unit.inversion)
    made = plan.run.pipe.reconstruct(latent, size=plan.run.small).images
    std = latent.x_t.double().flatten(1).std(1)
    value = {"psnr": figures.psnr(made, plan.run.fitted(pictures)), "std": std, "image": eight(made)}
    return {**value, "x_t": latent.x_t, "image_embed": latent.image_embed, "sampling": latent.sampling.to_json()}


def strange(plan: Plan, unit: Unit) -> dict[str, Any]:
    """The pictures with a random x_T, and with the next picture's z_i."""
    run, known = plan.run, unit._replace(strange=False)
    chunk = load(plan.path(known))
    if chunk is None:
        chunk = reconstructed(plan, known)
        save(plan.path(known), chunk)
    sampling = Sampling.from_json(chunk["sampling"])
    latent = Latent(chunk["image_embed"], chunk["x_t"], sampling, ("",) * len(chunk["x_t"]), run.pipe.models())
    noise = Noise.of(run.options.seed, range(unit.start, unit.stop)).at("inversion")
    others = [plan.chosen.images[(i + 1) % len(plan.chosen)] for i in range(unit.start, unit.stop)]
    embeds = torch.cat([run.pipe.clip.encode_image(image[None].to(run.pipe.device)).float().cpu() for image in others]).detach()
    truth = run.fitted(plan.pictures(unit))
    value: dict[str, Any] = {}
    for name, changed in {
        "random": replace(latent, x_t=noise.normal(latent.x_t.shape[1:])),
        "other": replace(latent, image_embed=embeds),
    }.items():
        made = run.pipe.reconstruct(changed, size=run.small).images
        value |= {f"psnr_{name}": figures.psnr(made, truth), f"image_{name}": eight(made)}
    return value


def gathered(plan: Plan) -> Drawn:
    """The numbers and pictures of all chunks."""
    only, numbers, files = plan.run.options.only, Numbers(), {}
    if "reconstructions" in only:
        good = column(plan, plan.main, "psnr", len(plan.chosen))
        numbers[f"{told(plan.main)}, {len(good)} pictures"] = {
            "PSNR, dB": figures.median(good),
            "pictures of 30 dB or more": figures.mean((good >= 30).double()),
            "standard deviation of x_T": figures.mean(column(plan, plan.main, "std", len(plan.chosen))),
        }
        numbers[f"{told(plan.main)}, the first {plan.few} of them"] = {
            "PSNR, dB": figures.median(good[: plan.few]),
            "PSNR with a random x_T, dB": figures.median(column(plan, plan.main, "psnr_random", plan.few, True)),
            "PSNR with the next picture's z_i, dB": figures.median(column(plan, plan.main, "psnr_other", plan.few, True)),
        }
        files[".png"] = reconstructions_sheet(plan, good)
    if "curve" in only:
        values = {how: figures.median(column(plan, how, "psnr", plan.few)) for how in plan.curve}
        numbers |= {f"curve, {told(how)}": {"PSNR, dB": value} for how, value in values.items()}
        files["_curve.png"] = curve_plot(plan, {how: value["median"] for how, value in values.items()})
    if "lowest" in only:
        for how in plan.lowest:
            numbers[f"read at timestep {how.lowest}, {told(how)}"] = {
                "standard deviation of x_T": figures.mean(column(plan, how, "std", plan.few)),
                "PSNR, dB": figures.median(column(plan, how, "psnr", plan.few)),
            }
    if "photograph" in only:
        chunks = {unit.inversion: chunk_of(plan, unit) for unit in plan.of("photograph")}
        numbers |= {
            f"photograph, {told(how)}": {
                "PSNR, dB": {"value": float(chunk["psnr"][0])},
                "standard deviation of x_T": {"value": float(chunk["std"][0])},
            }
            for how, chunk in chunks.items()
        }
        row = [plan.run.fitted(plan.photograph.images)[0], *(floats(chunk["image"])[0] for chunk in chunks.values())]
        labels = ["given", *(f"{told(how)}: {float(chunk['psnr'][0]):.1f} dB" for how, chunk in chunks.items())]
        files["_photograph.png"] = plan.run.sheet([row], [labels])
    about = {"pictures": plan.chosen.captions, "photograph": plan.photograph.keys, "lowest": plan.main.lowest}
    return Drawn(files, numbers, about)


def reconstructions_sheet(plan: Plan, good: Tensor) -> bytes:
    count = min(SHOWN, plan.few)
    images = {name: column(plan, plan.main, name, count, name != "image") for name in ("image", "image_random", "image_other")}
    rows = [list(row) for row in zip(plan.run.fitted(plan.chosen.images[:count]), *(floats(x) for x in images.values()))]
    labels = [
        [caption, f"reconstruction {value:.1f} dB", "random x_T", "the next picture's z_i"]
        for caption, value in zip(plan.chosen.captions, good.tolist())
    ]
    return plan.run.sheet(rows, labels[:count], f"{plan.run.pipe.name}: given, and drawn from its latent ({told(plan.main)})")


def curve_plot(plan: Plan, values: dict[Inversion, float]) -> bytes:
    """Median PSNR over steps, a line for each number of refinements."""
    from io import BytesIO

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for refine in sorted(set(plan.run.options.curve_refine)):
        points = sorted((int(how.steps), value) for how, value in values.items() if how.refine == refine)  # type: ignore[arg-type]
        axes.plot(*zip(*points), "o-", label=f"{refine} refinements")
    axes.set(xscale="log", xlabel="steps", ylabel=f"median PSNR, dB (n = {plan.few})", title=plan.run.pipe.name)
    axes.set_xticks(ticks := sorted(set(plan.run.options.curve_steps)), [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure).print_png(buffer := BytesIO(), metadata=plan.run.metadata)
    return buffer.getvalue()


def column(plan: Plan, how: Inversion, name: str, count: int, strange: bool = False) -> Tensor:
    """One of the chunks' tensors, over the first `count` pictures."""
    units = [Unit(how, *chunk, strange=strange) for chunk in plan.chunks(count)]
    return torch.cat([chunk_of(plan, unit)[name] for unit in units])[:count]


def chunk_of(plan: Plan, unit: Unit) -> dict[str, Any]:
    chunk = load(plan.path(unit))
    assert chunk is not None, unit
    return chunk


def save(path: Path, chunk: dict[str, Any]) -> None:
    from safetensors.torch import save as serialise

    tensors = {name: value.contiguous() for name, value in chunk.items() if isinstance(value, Tensor)}
    text = {name: value for name, value in chunk.items() if isinstance(value, str)}
    # Chunks are no results: wherever the folder lies, git leaves them alone.
    ignore = (path.parent / ".gitignore", b"*\n")
    write_files([ignore, (path, serialise(tensors, metadata={"format": FORMAT, **text}))])


def load(path: Path) -> dict[str, Any] | None:
    """A finished chunk; None when it is not there, or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return {**(file.metadata() or {}), **tensors}
    except (SafetensorError, OSError):
        return None


def photograph(file: Path | None) -> Path:
    if file is not None:
        return file
    try:
        from matplotlib import get_data_path
    except ImportError:
        raise ValueError("the photograph is one of matplotlib's, which is not installed: name one with --photograph") from None
    return Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"


def told(how: Inversion) -> str:
    return f"{how.steps} steps, {how.refine} refinements"


def eight(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def floats(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def _part(text: str) -> tuple[int, int]:
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError
    return part, parts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.parser(__doc__, n=100)
    parser.set_defaults(steps=250, refine=3)
    parser.add_argument("--few", type=int, default=20, help="pictures for everything but the main number (default: 20)")
    parser.add_argument("--curve-steps", type=int, nargs="+", default=[10, 25, 50, 100, 250], metavar="STEPS")
    parser.add_argument("--curve-refine", type=int, nargs="+", default=[0, 1, 2, 3], metavar="TIMES")
    parser.add_argument("--lowest", type=int, nargs="+", default=[1, 5, 10, 20, 40], metavar="TIMESTEP")
    parser.add_argument("--photograph", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="I/K", help="compute every K-th chunk only, from the I-th")
    parser.add_argument("--merge", action="store_true", help="compute nothing, gather what all parts have computed")
    figures.main("inversion", parser, draw, arguments)


if __name__ == "__main__":
    main()

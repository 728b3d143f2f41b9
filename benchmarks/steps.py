"""How few steps are enough on trained components, and which guidance: `python -m benchmarks.steps`.

Deterministic samplers by their RMS distance to a 1,000-step DDIM solution from the same noise; stochastic ones and guidance,
which have no such solution, by what the pictures of the whole chain are worth: nearest neighbour in RGB among all emoji, KID and
precision / recall with the judge of experiments/emoji.  Needs the prepared emoji.  Means with bootstrap 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.machine import header
from experiments.emoji.evaluation import judge as judges
from experiments.emoji.evaluation import measure, measure_upsamplers
from experiments.emoji.evaluation.measure import Numbers, Subject
from unclip.images import eight_bit
from unclip.metrics import Interval, interval, psnr, sharpness
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.types import Cond, best_of

PARTS = ("prior", "decoder", "upsamplers", "stochastic", "guidance")
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
INTERVALS = ((0, 800), (200, 1000), (200, 800), (400, 1000))
CROP = 64  # low-resolution pixels of an upsampler's test picture: a 1,000-step solution at 1024 would take minutes


class Row(NamedTuple):
    setting: str
    numbers: Numbers


class Table(NamedTuple):
    title: str
    rows: list[Row]


def solutions(
    name: str, sample: Callable[[Sampling], Tensor], own: Sampling, args: argparse.Namespace
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(setting, its result, the reference) for every deterministic sampler and number of steps; the reference itself first."""
    base = own.replace(eta=0.0)
    settings = {f"ddim {args.reference}": base.replace(sampler="ddim", steps=args.reference)}
    for sampler in ("ddim", "dpmpp_2m"):
        settings |= {f"{sampler} {steps}": base.replace(sampler=sampler, steps=steps) for steps in args.steps}
    reference = None
    for setting, sampling in tqdm(settings.items(), desc=name, file=sys.stderr, disable=None):
        x = sample(sampling)
        reference = x if reference is None else reference
        yield setting, x, reference


def rms(x: Tensor, reference: Tensor, unit: float = 1.0) -> Interval:
    """Over pictures, of the root mean square of their differences."""
    return interval(unit * (x - reference).square().flatten(1).mean(1).sqrt())


@torch.no_grad()
def prior(subject: Subject, args: argparse.Namespace) -> list[Table]:
    """Distances relative to the embedding's length; cosine to the true embedding, also of what is shipped and of ddpm."""
    rows = mixed(subject, args.captions)
    pipe, text = subject.pipe, subject.pipe.clip.encode_text(subject.captions(rows))
    true, noise = subject.embeddings.image_embed[rows], Noise.of(0, range(len(rows))).at("prior")
    own = pipe.prior.config.sampling  # type: ignore[attr-defined]

    def sample(sampling: Sampling) -> Tensor:
        return pipe.prior.sample(text, noise=noise, sampling=sampling)[:, 0].cpu()

    def cosine(x: Tensor) -> Interval:
        return interval(torch.cosine_similarity(x, true, dim=1))

    results = []
    for setting, x, reference in solutions("prior", sample, own, args):
        away = interval((x - reference).norm(dim=1) / reference.norm(dim=1))
        results.append(Row(setting, {"distance / length": away, "cosine to the true embedding": cosine(x)}))
    for steps in args.ddpm:
        sampling = own.replace(sampler="ddpm", eta=0.0, steps=steps)
        results.append(Row(f"ddpm {steps}, {sampling.variance}", {"cosine to the true embedding": cosine(sample(sampling))}))
    results.append(Row(f"shipped: {told(own)}", {"cosine to the true embedding": cosine(sample(own))}))
    return [Table(f"prior, {len(rows)} captions, one draw each", results)]


@torch.no_grad()
def decoder(subject: Subject, args: argparse.Namespace) -> list[Table]:
    """RMS in levels of 255, true embeddings, with the guidance that is shipped and without."""
    rows = mixed(subject, args.n)
    own, tables = decoder_sampling(subject), []
    cond = condition(subject, rows, subject.embeddings.image_embed[rows])
    for guidance in dict.fromkeys((own.guidance, 1.0)):
        base = own.replace(guidance=guidance, interval=own.interval if guidance != 1 else None)

        def sample(sampling: Sampling) -> Tensor:
            noise = Noise.of(0, range(len(rows))).at("decoder")
            return subject.pipe.decoder.sample(cond, noise=noise, sampling=sampling).cpu()

        results = [
            Row(setting, {"RMS, levels of 255": rms(x, reference, 127.5)})
            for setting, x, reference in solutions(f"decoder, guidance {guidance:g}", sample, base, args)
        ]
        tables.append(Table(f"decoder, guidance {guidance:g}, {len(rows)} captions", results))
    return tables


@torch.no_grad()
def upsamplers(subject: Subject, args: argparse.Namespace) -> list[Table]:
    """RMS in levels of 255, and PSNR and relative gradient magnitude against the truth, on crops of true pictures."""
    pipe, tables = subject.pipe, []
    for low_size, size, upsampler in zip(pipe.sizes, pipe.sizes[1:], pipe.upsamplers):
        lows: list[Tensor] = []
        truths: list[Tensor] = []
        for _, low, true in measure_upsamplers.pairs(max(2, args.n // 2), low_size, size):
            side, start = min(CROP, low_size), (low_size - min(CROP, low_size)) // 2
            for kept, picture, scale in ((lows, low, 1), (truths, true, upsampler.scale)):
                window = slice(start * scale, (start + side) * scale)
                kept.append(picture[..., window, window])
        low, truth = torch.cat(lows), torch.cat(truths)
        noise = Noise.of(0, range(len(low)))
        own = upsampler.config.sampling  # type: ignore[attr-defined]

        def sample(sampling: Sampling) -> Tensor:
            return upsampler.sample(low, noise=noise[:], sampling=sampling).cpu()  # noqa: B023

        results = []
        for setting, x, reference in solutions(f"upsampler {size}", sample, own, args):
            seen = eight_bit(x)
            numbers = {"RMS, levels of 255": rms(x, reference, 127.5), "PSNR dB": interval(psnr(seen, truth))}
            results.append(Row(setting, numbers | {"gradient / truth's": interval(sharpness(seen) / sharpness(truth))}))
        tables.append(Table(f"upsampler {size}, {len(low)} crops, shipped: {told(own)}", results))
    return tables


@torch.no_grad()
def stochastic(subject: Subject, args: argparse.Namespace) -> list[Table]:
    """ddpm and ddim with eta > 0 beside what is shipped."""
    own = decoder_sampling(subject)
    variance = "learned" if own.variance == "learned" else "small"
    settings = {f"shipped: {told(own)}": own}
    settings |= {f"ddpm {s}": own.replace(sampler="ddpm", steps=s, eta=0.0, variance=variance) for s in args.ddpm}
    for eta in (0.5, 1.0):
        settings[f"ddim 25, eta {eta:g}"] = own.replace(sampler="ddim", steps=25, eta=eta)
    return [worth(subject, settings, args, "noise in the decoder's steps")]


@torch.no_grad()
def guidance(subject: Subject, args: argparse.Namespace) -> list[Table]:
    """Scales, then intervals of timesteps outside of which nothing is guided (Kynkaanniemi et al. 2024)."""
    own = decoder_sampling(subject).replace(interval=None)
    T = subject.pipe.decoder.schedule.T  # type: ignore[attr-defined]
    settings = {f"guidance {scale:g}": own.replace(guidance=scale) for scale in SCALES}
    for scale in dict.fromkeys((own.guidance if own.guidance > 1 else 2.0, 3.0)):
        for low, high in INTERVALS:
            within = (low * T // 1000, high * T // 1000)
            settings[f"guidance {scale:g} within {within}"] = own.replace(guidance=scale, interval=within)
    return [worth(subject, settings, args, f"the decoder's guidance, {told(own)}")]


def worth(subject: Subject, settings: dict[str, Sampling], args: argparse.Namespace, title: str) -> Table:
    """What the chain's pictures are worth under each setting of the decoder; the embeddings are drawn once."""
    pipe, rows = subject.pipe, mixed(subject, args.captions)
    text = pipe.clip.encode_text(subject.captions(rows))
    noise = Noise.of(0, range(len(rows)))
    embed = best_of(pipe.prior.sample(text, noise=noise.at("prior"), n=pipe.candidates), text.embed).cpu()
    results = []
    for setting, sampling in tqdm(settings.items(), desc=title, file=sys.stderr, disable=None):
        start, pictures = time.perf_counter(), []
        for first in range(0, len(rows), measure.CHUNK):
            part = slice(first, first + measure.CHUNK)
            cond = condition(subject, rows[part], embed[part])
            pictures.append(pipe.decoder.sample(cond, noise=noise[part].at("decoder"), sampling=sampling).cpu())
        seconds = (time.perf_counter() - start) / len(rows)
        images = torch.cat(pictures)
        seen = measure.recognised(subject, images, rows, "") | measure.judged(subject, images, rows, "")
        numbers = {name.removeprefix(", "): value for name, value in seen.items()}
        results.append(Row(setting, numbers | {"seconds": Interval(seconds, seconds, seconds, 1)}))
    return Table(f"{title}: full chain, {len(rows)} captions, half of them held out", results)


def listed(text: str) -> int | str:
    """A number of steps, or sections of a schedule."""
    return int(text) if text.isdecimal() else text


def mixed(subject: Subject, n: int) -> list[int]:
    """Trained and held-out captions by hash, half of each."""
    return subject.rows("train", n - n // 2) + subject.rows("heldout", n // 2)


def condition(subject: Subject, rows: Sequence[int], embed: Tensor) -> Cond:
    takes_text = "text" in subject.pipe.decoder.takes
    return Cond(embed, subject.pipe.clip.encode_text(subject.captions(rows)) if takes_text else None)


def decoder_sampling(subject: Subject) -> Sampling:
    return subject.pipe.decoder.config.sampling  # type: ignore[attr-defined]


def told(sampling: Sampling) -> str:
    eta = f", eta {sampling.eta:g}" if sampling.eta else ""
    within = f" within {sampling.interval}" if sampling.interval else ""
    return f"{sampling.sampler} {sampling.steps}, guidance {sampling.guidance:g}{within}{eta}"


def markdown(table: Table) -> str:
    """One line a setting, "mean [low, high]" in the cells."""
    names = list(dict.fromkeys(name for row in table.rows for name in row.numbers))
    lines = [f"\n{table.title}\n", f"| setting | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for setting, numbers in table.rows:
        lines.append(f"| {setting} | {' | '.join(_cell(numbers.get(name)) for name in names)} |")
    return "\n".join(lines)


def _cell(value: Interval | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.3f}" if value.low == value.high else f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def main() -> None:
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="a shipped name or a folder")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--n", type=int, default=8, help="pictures for distances (upsamplers: half as many)")
    parser.add_argument("--captions", type=int, default=48, help="captions for KID, nearest neighbour and the prior")
    parser.add_argument(
        "--steps", type=listed, nargs="+", default=[5, 10, 15, 25, 50, 100, "9,6,4,3,3", "3,3,4,6,9"],
        help="numbers of steps, spread evenly, or sections of the schedule, the one nearest the data first",
    )  # fmt: skip
    parser.add_argument("--ddpm", type=int, nargs="+", default=[25, 50, 100], help="steps of ddpm")
    parser.add_argument("--reference", type=int, default=1000, help="steps of the solution that distances are to")
    parser.add_argument("--judge", type=Path, help=f"folder of the judging CLIP (default {judges.folder()})")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    if args.n < 2 or args.captions < 8:
        parser.error("--n must be at least 2 and --captions at least 8")
    machine = header()
    print(machine, flush=True)
    subject = Subject(args.model, judge=args.judge)
    if subject.judge is None and {"stochastic", "guidance"} & set(args.only):
        print(f"no judge, so no KID: `{judges.MAKE}` makes it")
    measures = {"prior": prior, "decoder": decoder, "upsamplers": upsamplers, "stochastic": stochastic, "guidance": guidance}
    results: dict[str, Any] = {"model": args.model, "weights": subject.weights, "machine": machine}
    for name in args.only:
        tables = measures[name](subject, args)
        for table in tables:
            print(markdown(table), flush=True)
        results[name] = [
            {"title": t.title, "rows": {row.setting: {k: v._asdict() for k, v in row.numbers.items()} for row in t.rows}}
            for t in tables
        ]
    print(f"\nmeasured in {time.perf_counter() - start:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

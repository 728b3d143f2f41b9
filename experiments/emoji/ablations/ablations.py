"""What each setting of a recipe is worth: trainings of equal CPU time that differ from the recipe in one thing.

    python -m experiments.emoji.ablations [--only decoder] [--run-dir runs/ablations] [--seconds 600] [--variants eps v ...]
    python -m experiments.emoji.ablations --only decoder --table

Every variant is trained from scratch on one thread at a constant rate, then measured on the same pictures with the same noise.
A finished one is added to FOLDER/ablations_<stage>.json at once; the same command goes on where it was cut off, and started
twice it takes turns.  More --seconds continue the same trainings, for another FOLDER.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from experiments.emoji.ablations import table as ablations_table
from experiments.emoji.ablations.equal_time import train_for
from experiments.emoji.ablations.table import BASELINE
from experiments.emoji.data.emoji_data import EmojiData, embeddings_path
from experiments.emoji.evaluation import measure_parts
from experiments.emoji.evaluation.measure_parts import Cost, Ground, Values
from experiments.figures.common import FOLDER, commit
from experiments.machine import describe
from unclip.files import write_files
from unclip.metrics import interval
from unclip.runs import Training
from unclip.runs.recipes import find

# Beside the recipe, for all alike: a constant rate, for the clock ends the training, and no pictures on the way.
COMMON = ("train.decay=constant", "train.warmup=30", "train.sample_every=null", "train.save_every=86400s", "train.keep=1")
# In the order of how much they are likely to tell.
DECODER = {
    BASELINE: (),
    "eps": ("model.predicts=eps",),
    "v": ("model.predicts=v",),
    "seed_1": ("train.seed=1",),  # what chance alone does
    "patch_2": ("model.unet.patch=2",),
    "batch_16": ("train.batch=16",),
    "batch_64": ("train.batch=64",),
    "unweighted": ("model.weighting=none",),
    "no_text": ("model.conditions.text=null",),
    "channels_64": ("model.unet.channels=64",),
    "augmented": ("data.shift=2", "data.zoom=0.05"),
    "channels_192": ("model.unet.channels=192",),
    "min_snr": ("model.weighting=min_snr",),
    "patch_2_channels_64": ("model.unet.patch=2", "model.unet.channels=64"),  # about the recipe's time per picture
    "batch_16_lr": ("train.batch=16", "train.lr=2.83e-4"),
    "batch_64_lr": ("train.batch=64", "train.lr=5.66e-4"),  # times the root of 2
    "eps_unweighted": ("model.predicts=eps", "model.weighting=none"),  # DDPM's own loss
    "no_image_drop": ("model.conditions.image_embed.drop=0.0",),
    "text_drop_10": ("model.conditions.text.drop=0.1",),
    "patch_8": ("model.unet.patch=8",),
    "v_unweighted": ("model.predicts=v", "model.weighting=none"),
    "depth_1": ("model.unet.depth=1",),
    "lr_half": ("train.lr=2e-4",),
    "lr_twice": ("train.lr=8e-4",),
    "float32": ("train.precision=float32",),
    "channels_first": ("train.channels_last=false",),
}
UPSAMPLER = {
    BASELINE: (),
    "residual": ("model.output=residual",),
    "l1": ("model.norm=l1",),  # without the differences of neighbouring pixels
    "l2": ("model.norm=l2",),
    "unweighted": ("model.weighting=none",),
    "no_blur": ("model.corruption.probability=0.0",),
}


class Stage(NamedTuple):
    recipe: str
    variants: dict[str, tuple[str, ...]]
    measure: Callable[[Any, argparse.Namespace], tuple[Values, Cost]]


def measure_decoder(model: Any, options: argparse.Namespace) -> tuple[Values, Cost]:
    return measure_parts.decoder(ground(options.seed), model, options.n, options.steps)


def measure_upsampler(model: Any, options: argparse.Namespace) -> tuple[Values, Cost]:
    return measure_parts.upsampler(options.seed, model, options.n, 64, 256)


def ground(seed: int) -> Ground:
    return Ground(EmojiData("all", 64, embeddings=embeddings_path()), EmojiData("train", 64).keys, seed)


STAGES = {
    "decoder": Stage("emoji.decoder", DECODER, measure_decoder),
    "upsampler_256": Stage("emoji.upsampler_256", UPSAMPLER, measure_upsampler),
}


def ablate(options: argparse.Namespace) -> None:
    """Train and measure what is asked for and not there yet."""
    stage, path, runs = STAGES[options.only], options.output / f"ablations_{options.only}.json", options.run_dir / options.only
    base, names = find(stage.recipe).override(*COMMON), options.variants or list(stage.variants)
    if unknown := [name for name in names if name not in stage.variants]:
        raise ValueError(f"no variant {', '.join(unknown)} of {options.only}; there are {', '.join(stage.variants)}")
    about = {
        "experiment": f"ablations_{options.only}",
        "stage": options.only,
        "CPU seconds": options.seconds,
        "n": options.n,
        "sampling steps": options.steps if options.only == "decoder" else None,
        "seed": options.seed,
        "recipe": json.loads(base.to_json()),
    }
    for i, name in enumerate(names):
        with claimed(runs / name / "lock") as free:
            if not free:
                print(f"{name}: another process is at it", flush=True)
            elif name in read(path, about)["variants"]:
                print(f"{name}: done", flush=True)
            else:
                print(f"{name} ({i + 1} of {len(names)}): {' '.join(stage.variants[name]) or 'the recipe'}", flush=True)
                results = variant(base.override(*stage.variants[name]), stage, runs / name, options)
                results["settings"] = list(stage.variants[name])
                with claimed(runs / "lock", wait=True):
                    record = read(path, about)
                    record["variants"][name] = results
                    store(path, record)
                print(f"{name}: {summary(results)}", flush=True)


def variant(training: Training, stage: Stage, run_dir: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Trained and measured: what stands in the record."""
    try:
        task, spent = train_for(training, options.seconds, run_dir)
    except FloatingPointError as error:
        return {"failed": str(error), "commit": commit()}
    model: Any = task.model
    pictures = spent.steps * training.train.batch
    values, cost = stage.measure(model, options)
    return {
        "commit": commit(),
        "machine": describe(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "updates": spent.steps,
        "pictures": pictures,
        "CPU seconds": round(spent.seconds, 1),
        "ms per picture": round(1000 * spent.seconds / pictures, 2),
        "ms per evaluation": round(1000 * cost.seconds / cost.evaluations, 2),
        "numbers": {
            split: {name: interval(x)._asdict() | {"values": [round(v, 5) for v in x.tolist()]} for name, x in rows.items()}
            for split, rows in values.items()
        },
    }


def read(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The record so far; ValueError when it was made with other settings."""
    if not path.exists():
        return {**about, "variants": {}}
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a record of this command: {error}") from None
    for key, value in about.items():
        if record.get(key) != value:
            text = "another recipe" if key == "recipe" else f"{key} {record.get(key)}, not {value}"
            raise ValueError(f"{path} was measured with {text}: keep it and name another folder with -o")
    return record


def store(path: Path, record: dict[str, Any]) -> None:
    order = list(STAGES[record["stage"]].variants)
    record["variants"] = dict(sorted(record["variants"].items(), key=lambda item: order.index(item[0])))
    text = json.dumps(record, indent=1, allow_nan=False)
    text = re.sub(r"\[[-\s\d.,e+]*\]", lambda match: " ".join(match[0].split()), text)  # a line for a row of numbers
    write_files([(path, f"{text}\n".encode())])


@contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone has the lock file, which falls free when its process ends, however it ends."""
    import fcntl  # not on Windows

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def summary(found: dict[str, Any]) -> str:
    if "failed" in found:
        return str(found["failed"])
    text = [f"{found['updates']} updates, {found['pictures']} pictures in {found['CPU seconds']:.0f} s"]
    return ", ".join(text + [f"{name} {row['mean']:.3f}" for name, row in found["numbers"]["heldout"].items()])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.emoji.ablations", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=STAGES, default="decoder", help="the stage (default: decoder)")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="default: all, the most telling first")
    parser.add_argument("--seconds", type=float, default=600, help="of CPU time for each training (default: 600)")
    parser.add_argument("--n", type=int, default=60, help="pictures of each split to measure on (default: 60)")
    parser.add_argument("--steps", type=int, default=10, help="of the decoder's sampling (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of what is measured; the trainings have the recipe's")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/ablations"), help="of the trainings (default: runs/ablations)")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER, metavar="FOLDER", help="default: experiments/results")
    parser.add_argument("--table", action="store_true", help="train nothing: print what is there as Markdown")
    options = parser.parse_args(arguments)
    try:
        if options.n < 2 or options.steps < 1 or not options.seconds > 0:
            raise ValueError("--n must be at least 2, --steps at least 1 and --seconds above 0")
        if not options.table:
            torch.set_num_threads(1)  # else CPU time would count what two threads wait for each other
            ablate(options)
        print(ablations_table.markdown(options.output / f"ablations_{options.only}.json"))
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None

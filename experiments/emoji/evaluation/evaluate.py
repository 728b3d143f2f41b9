"""The numbers of an emoji pipeline, each with its n and a bootstrap 95 % interval.

    python -m experiments.emoji.evaluation [MODEL] [--n 100] [--pictures 20] [--draws 8] [--json FILE]
    python -m experiments.emoji.evaluation [MODEL] --only upsamplers full_size --json a.json      # parts, maybe side by side,
    python -m experiments.emoji.evaluation --merge a.json b.json --json all.json                  # and their sum

Train and held-out captions are kept apart; the held-out ones entered no training.  Two judges that did not draw: plain RGB
distance of 64-pixel pictures, and a CLIP of another seed (experiments.emoji.evaluation.judge makes it; without it its numbers
are left out).  Ablations: "decoder alone" has the true embedding in place of the prior's, "upsamplers alone" the true small
picture in place of the decoder's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.emoji.evaluation import judge as judges
from experiments.emoji.evaluation import measure, measure_upsamplers
from experiments.emoji.evaluation.measure import Numbers, Subject
from unclip.files import write_files

SECTIONS = ("clip", "prior", "pictures", "wording", "diversity", "upsamplers", "full_size", "tiles", "cost")
BLOCKS = {"train": "trained captions", "heldout": "held-out captions", "all": "the command"}


def evaluate(subject: Subject, options: argparse.Namespace) -> dict[str, Numbers]:
    """The chosen sections' numbers by block."""
    found: dict[str, Numbers] = {}
    for split in ("train", "heldout"):
        rows = subject.rows(split, options.n)
        sections: dict[str, Callable[[], Numbers]] = {
            "clip": lambda: measure.retrieval(subject.embeddings, subject.members[split], subject.twins),  # noqa: B023
            "prior": lambda: measure.prior_cosines(subject, rows),  # noqa: B023
            "pictures": lambda: measure.pictures(subject, split, rows),  # noqa: B023
            "wording": lambda: measure.other_words(subject, rows),  # noqa: B023
            "diversity": lambda: measure.diversity(subject, rows[: options.captions], options.draws),  # noqa: B023
        }
        if split == "heldout":
            sections |= {
                "upsamplers": lambda: measure_upsamplers.upsampling(subject, options.pictures),
                "full_size": lambda: measure_upsamplers.full_size(subject, options.pictures),
                "tiles": lambda: measure_upsamplers.tiling(subject, options.pictures),
            }
        found[split] = {}
        for name, section in sections.items():
            if name in options.only:
                found[split] |= section()
    if "cost" in options.only:
        found["all"] = measure.cost(options.model)
    return {block: numbers for block, numbers in found.items() if numbers}


def record(subject: Subject, numbers: dict[str, Numbers], options: argparse.Namespace) -> dict[str, Any]:
    """What goes into the file: the numbers and what they belong to."""
    where = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(where, capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "model": options.model,
        "weights": subject.weights,
        "commit": commit.stdout.strip() or "unknown",
        "seed": options.seed,
        "sections": [name for name in SECTIONS if name in options.only],
        "judge": subject.judge is not None,
        **{block: {name: value._asdict() for name, value in rows.items()} for block, rows in numbers.items()},
    }


def merge(files: Sequence[Path]) -> dict[str, Any]:
    """One record of several; they must be of the same weights."""
    records = []
    for path in files:
        try:
            records.append(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as numbers of this command: {error}") from None
    merged: dict[str, Any] = {"sections": []}
    for path, one in zip(files, records):
        for key in ("weights", "seed"):
            if one.get(key) != records[0].get(key):
                raise ValueError(f"{path} has the {key} {one.get(key)}, {files[0]} has {records[0].get(key)}: measure one model")
        for key, value in one.items():
            if isinstance(value, dict):
                merged[key] = merged.get(key, {}) | value
            elif key == "sections":
                merged[key] = [name for name in SECTIONS if name in {*merged[key], *value}]
            elif key == "commit" and merged.get(key, value) != value:
                merged[key] = f"{merged[key]}, {value}"
            else:
                merged[key] = merged.get(key, True) and value if key == "judge" else value
    return merged


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['model']}, seed {result['seed']}, commit {result['commit']}: mean, bootstrap 95 % interval, n"]
    for block, title in BLOCKS.items():
        if block in result:
            width = max(map(len, result[block]))
            lines += ["", title]
            for name, row in result[block].items():
                lines.append(f"  {name:{width}} {row['mean']:8.3f}  [{row['low']:.3f}, {row['high']:.3f}]  n = {row['n']}")
    if not result["judge"] and {"pictures", "diversity"} & set(result["sections"]):
        lines += ["", f"KID, precision, recall, CLIP score and the diversity it sees need the judge: `{judges.MAKE}` makes it"]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.emoji.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="emoji", help="a shipped name or a folder (default emoji)")
    parser.add_argument("--n", type=int, default=100, help="captions per split (default 100; 205 are held out)")
    parser.add_argument("--pictures", type=int, default=20, help="held-out pictures for the upsamplers (default 20)")
    parser.add_argument("--draws", type=int, default=8, help="pictures per caption for diversity (default 8)")
    parser.add_argument("--captions", type=int, default=20, help="captions per split for diversity (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judge", type=Path, help=f"folder of the judging CLIP (default {judges.folder()})")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--merge", nargs="+", type=Path, metavar="FILE", help="measure nothing: join files written by --json")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_intermixed_args(arguments)
    try:
        if min(options.n, options.pictures, options.captions) < 2:
            raise ValueError("--n, --pictures and --captions must be at least 2")
        if options.merge:
            result = merge(options.merge)
        else:
            subject = Subject(options.model, options.seed, options.judge)
            result = record(subject, evaluate(subject, options), options)
        print(table(result))
        if options.json:
            write_files([(options.json, (json.dumps(result, indent=2) + "\n").encode())])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None

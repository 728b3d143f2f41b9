"""From run folders to the shipped pipeline.

    python -m experiments.emoji.ship embed RUNS                   # the newest CLIP's answers, which the other stages train on
    python -m experiments.emoji.ship assemble RUNS DEST           # averaged weights in float16, with provenance

RUNS holds the run folders clip, paraphrase, prior, ar_prior, decoder, upsampler_256 and upsampler_1024 of the recipes `emoji.*`;
runs need not have ended: the newest complete state of each is taken.  The CLIP is that of `paraphrase`; `embed` takes that of
`clip` as long as there is no other.  A run that was started from another's weights (`--start`) keeps that one beside it as
decoder_1, decoder_2, ..., so that the provenance can tell of every training run, and of the settings in which it was unlike the
recipe.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.emoji.data import source
from experiments.emoji.data.emoji_data import EmojiData, embeddings_path
from experiments.emoji.evaluation.siblings import TONE
from prior import DiffusionPrior
from unclip import __version__
from unclip.data.embeddings import Embeddings, precompute
from unclip.editing.pca import PCA
from unclip.pipelines.glossary import FILE as GLOSSARY
from unclip.pipelines.unclip import UnCLIP
from unclip.randomness import Noise
from unclip.runs.components import RECORD, averaged
from unclip.runs.recipes import find
from unclip.training import read_log

STAGES = ("clip", "paraphrase", "prior", "ar_prior", "decoder", "upsampler_256", "upsampler_1024")
PARENTS = {"paraphrase": "clip", "upsampler_1024": "upsampler_256"}  # whose weights a stage starts from

WEIGHTLESS = {"train.log_every", "train.sample_every", "train.save_every", "train.keep", "train.validate_every", "train.best"}
WEIGHTLESS |= {"train.validation_samples", "model.sampling", "held_out", "clip", "start"}
TOLD = ("step", "samples", "loss", "seconds")  # of a run's last line


def embed(runs: Path) -> Embeddings:
    """All 3,664 pictures and captions, held-out ones too: the training splits leave those out by key."""
    path = embeddings_path()
    newest: Any = averaged(runs / ("paraphrase" if (runs / "paraphrase").exists() else "clip"))
    return precompute(newest, EmojiData("all", 64), path)


def assemble(runs: Path, dest: Path) -> None:
    parts: dict[str, Any] = {stage: averaged(runs / stage) for stage in STAGES if stage != "clip"}
    measure(parts["prior"])
    pipe = UnCLIP(
        parts["paraphrase"],
        parts["prior"],
        parts["decoder"],
        [parts["upsampler_256"], parts["upsampler_1024"]],
        candidates=2,
        name="emoji",
        provenance=provenance(runs),
        pca=components(),
    )
    pipe.save_pretrained(dest, torch.float16, ar_prior=parts["ar_prior"])
    (dest / GLOSSARY).write_text(captions_text(), encoding="utf-8")


def captions_text() -> str:
    """What the model can draw, for people who search it: the training captions, those of a skin tone under the one without."""
    captions = EmojiData("train", None).captions
    return "".join(f"{caption}\n" for caption in captions if not TONE.search(caption) or not TONE.sub("", caption).strip())


def components() -> PCA:
    """Principal components of what the trained CLIP says of the training pictures."""
    return PCA.fit(Embeddings.load(embeddings_path()).select(EmojiData("train", 64).keys).image_embed)


def measure(prior: DiffusionPrior, n: int = 256) -> None:
    """The analytic variance at every timestep, so that any number of steps may be sampled, on n training captions."""
    data = EmojiData("train", 64, embeddings=embeddings_path())
    assert data.embeddings is not None
    some = data.embeddings.select(data.keys[:: max(1, len(data) // n)][:n])
    assert some.text is not None
    prior.measure_variance(some.image_embed, some.text, prior.schedule.T, Noise.of(0, range(len(some))).at("measure"))


def provenance(runs: Path) -> dict[str, Any]:
    """Where the weights come from: data, code, settings, how long."""
    stages: dict[str, Any] = {}
    for stage in STAGES:
        parent = {"started_from": PARENTS[stage]} if stage in PARENTS else {}
        stages[stage] = {"recipe": f"emoji.{stage}", **parent, "training_runs": training_runs(runs, stage, f"emoji.{stage}")}
    return {
        "data": f"{source.PACKAGE} (graphics CC-BY 4.0), {len(EmojiData('train', 64))} of 3,664 captioned emoji; "
        "205 held out of every training",
        "captions": "CLDR short names",
        "licence": "weights CC-BY 4.0, as the pictures they were trained on",
        **origin(),
        "stages": stages,
    }


def origin() -> dict[str, Any]:
    """The code and the machine."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "code": {"unclip": __version__, "commit": commit.stdout.strip() or "unknown", "torch": torch.__version__},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def training_runs(runs: Path, stage: str, recipe: str) -> list[dict[str, Any]]:
    """How long each training run of a stage was, and in what its settings were unlike the recipe."""
    trained = []
    for folder in [*sorted(runs.glob(f"{stage}_[0-9]")), runs / stage]:
        rows = [row for row in read_log(folder) if "loss" in row and "event" not in row]
        run: dict[str, Any] = {name: rows[-1][name] for name in TOLD if name in rows[-1]}
        if (folder / RECORD).exists():
            told = json.loads((folder / RECORD).read_text())
            run["settings"] = unlike(told, json.loads(find(recipe).to_json()))
        trained.append(run)
    return trained


def unlike(told: dict[str, Any], recipe: dict[str, Any], above: str = "") -> dict[str, Any]:
    """What a run was told otherwise than the recipe says now, by the names of settings: {"train.lr": 0.0005}.

    Left out is what makes no other weights.
    """
    found: dict[str, Any] = {}
    for name, value in told.items():
        own, path = recipe.get(name), f"{above}{name}"
        if path in WEIGHTLESS:
            continue
        if isinstance(value, dict) and isinstance(own, dict):
            found |= unlike(value, own, f"{path}.")
        elif value != own:
            found[path] = value
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.emoji.ship", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("embed", help="compute and store the CLIP embeddings of all emoji")
    verb.add_argument("runs", type=Path)
    verb = verbs.add_parser("assemble", help="put the stages together into a new folder")
    verb.add_argument("runs", type=Path)
    verb.add_argument("dest", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.verb == "embed":
            print(f"{len(embed(options.runs))} embeddings in {embeddings_path()}")
        else:
            assemble(options.runs, options.dest)
            print(options.dest)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()

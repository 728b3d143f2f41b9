"""From the run folders of the recipes `emoji2.*` to a pipeline.

    python -m experiments.emoji.ship2 RUNS DEST [--upsamplers emoji]

RUNS holds clip, prior and decoder; runs need not have ended: the newest complete state of each is taken.  Earlier runs of a stage
may lie beside it as decoder_1, decoder_2, ...; the provenance tells of all.  The upsamplers are those of another pipeline.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.emoji.data import drawings, motifs, packages, styled, words
from experiments.emoji.data.styled import StyledEmoji
from experiments.emoji.ship import origin, training_runs
from prior import DiffusionPrior
from unclip.clip import CLIP
from unclip.data.embeddings import Embeddings
from unclip.editing.pca import PCA
from unclip.pipelines.glossary import FILE as GLOSSARY
from unclip.pipelines.unclip import UnCLIP
from unclip.randomness import Noise
from unclip.runs.components import averaged, open_component

STAGES = ("clip", "prior", "decoder")
UPSAMPLERS = ("upsampler_256", "upsampler_1024")
MEASURED = 256  # training drawings for the prior's variance


def assemble(runs: Path, dest: Path, upsamplers: str = "emoji") -> None:
    """Averaged weights in float16, with provenance."""
    parts: dict[str, Any] = {stage: averaged(runs / stage) for stage in STAGES}
    embeddings = Embeddings.load(styled.embeddings_path()).select(StyledEmoji("train", None).keys)
    measure(parts["prior"], parts["clip"], embeddings)
    pipe = UnCLIP(
        parts["clip"],
        parts["prior"],
        parts["decoder"],
        [open_component(f"{upsamplers}:{name}") for name in UPSAMPLERS],
        candidates=2,
        name="emoji2",
        provenance=provenance(runs, upsamplers),
        pca=PCA.fit(embeddings.image_embed),
    )
    pipe.save_pretrained(dest, torch.float16)
    (dest / GLOSSARY).write_text(captions_text(), encoding="utf-8")


def captions_text() -> str:
    """What the model can draw, for people who search it: trained names without skin tones, and words in all languages behind."""
    known = words.cached(styled.cache_folder(), styled.npm_folder())
    trained = {one.row.key: one.row.name for one in motifs.pictures() if one.tier == "train" and not words.is_toned(one.row.key)}
    lines = []
    for key, name in trained.items():
        others = dict.fromkeys(word for of in known.values() for word in (of[key].name, *of[key].keywords) if word != name)
        lines.append(f"{name}\t{', '.join(others)}\n")
    return "".join(lines)


@torch.no_grad()
def measure(prior: DiffusionPrior, clip: CLIP, embeddings: Embeddings) -> None:
    """The analytic variance at every timestep, on training drawings under captions as training says them."""
    data = StyledEmoji("train", None, embeddings=embeddings)
    rows = range(0, len(data), max(1, len(data) // MEASURED))
    batch = data.batch(rows, Noise.of(0, rows))
    assert batch.image_embed is not None and batch.captions is not None
    noise = Noise.of(0, range(len(batch.keys))).at("measure")
    prior.measure_variance(batch.image_embed, clip.encode_text(batch.captions), prior.schedule.T, noise)


def provenance(runs: Path, upsamplers: str) -> dict[str, Any]:
    """Where the weights come from: data with licences, what was held out, code, settings, how long."""
    every = motifs.pictures()
    tiers, drawn = Counter(one.tier for one in every), Counter(one.style for one in every)
    return {
        "data": {style: f"{one} (graphics {one.licence}), {drawn[style]} drawings" for style, one in drawings.PACKAGES.items()},
        "captions": f"names and keywords in en, de, fr, es, zh: {packages.EMOJIBASE}, {packages.EMOJILIB} (MIT)",
        "held_out": {tier: f"{tiers[tier]} drawings" for tier in motifs.HELD_OUT},
        "licence": "weights CC-BY 4.0, as the strictest of what they were trained on",
        **origin(),
        "stages": {
            stage: {"recipe": f"emoji2.{stage}", "training_runs": training_runs(runs, stage, f"emoji2.{stage}")}
            for stage in STAGES
        }
        | {
            name: f"of {upsamplers}; trained on Twemoji without captions, on drawings that are held out here too"
            for name in UPSAMPLERS
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.emoji.ship2", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("dest", type=Path)
    parser.add_argument("--upsamplers", default="emoji", help="the pipeline whose upsamplers are taken (default emoji)")
    options = parser.parse_args(arguments)
    try:
        assemble(options.runs, options.dest, options.upsamplers)
        print(options.dest)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()

"""What a model of four styles has learnt, tier by tier, and how it takes captions of people.

    python -m experiments.emoji.evaluation.tiers --clip RUN_OR_FOLDER [--n 200] [--json FILE]     # its CLIP alone: a minute
    python -m experiments.emoji.evaluation.tiers [MODEL] [--n 50] [--json FILE]                   # the whole chain

Captions of tiers are "name, style style".  Right motif and right style are told apart; tones and genders of a motif are one.
"Of its style" looks among the drawings of the caption's style alone.  Baselines draw nothing: the same motif in a trained style
and, in whatever style, the trained drawing whose caption the CLIP finds nearest.  Captions of people (`spoken.jsonl`) are right
if what was meant is among the first motifs of all drawings in all styles.  Two eyes that did not draw look at pictures: plain RGB
distance, and EfficientNet-Lite0 where its weights are installed (`lite0`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from experiments.emoji.data import motifs
from experiments.emoji.data.spoken import read_spoken
from experiments.emoji.data.styled import StyledEmoji
from experiments.emoji.evaluation import lite0
from experiments.emoji.evaluation.drawings import Drawings, first_motifs, hits, sample, within
from experiments.emoji.evaluation.measure import Numbers
from unclip.checkpoint import fingerprint
from unclip.clip import CLIP
from unclip.data.embeddings import precompute
from unclip.files import write_files
from unclip.metrics import interval
from unclip.pipelines.unclip import UnCLIP
from unclip.runs.components import averaged

CHUNK = 25  # captions drawn between two steps of a progress bar
Scores = Float[Tensor, "n m"]  # of pictures against all drawings, higher is nearer


def judged(scores: Scores, rows: Sequence[int], drawings: Drawings, name: str) -> Numbers:
    """Right motif, right style, both: of what was drawn for the captions of the drawings `rows`."""
    meant = [{int(drawings.motifs[i])} for i in rows]
    styles = drawings.styles[list(rows)]
    among_all, of_style = first_motifs(scores, drawings.motifs, 5), within(scores, drawings.styles, styles)
    in_style, best = first_motifs(of_style, drawings.motifs, 5), scores.argmax(1)
    own = of_style >= of_style.gather(1, torch.tensor(rows)[:, None])
    return {
        f"{name}, right motif, top-1": interval(hits(among_all, meant, 1)),
        f"{name}, right motif, top-5": interval(hits(among_all, meant, 5)),
        f"{name}, right style": interval((drawings.styles[best] == styles).double()),
        f"{name}, right motif of its style, top-1": interval(hits(in_style, meant, 1)),
        f"{name}, right motif of its style, top-5": interval(hits(in_style, meant, 5)),
        f"{name}, the very drawing of its style, top-5": interval((own.sum(1) <= 5).double()),
    }


@torch.no_grad()
def text_embeds(clip: CLIP, captions: Sequence[str]) -> Float[Tensor, "n d"]:
    """Directions."""
    rows = [clip.encode_text(list(captions[i : i + 64])).embed.float().cpu() for i in range(0, len(captions), 64)]
    return normalize(torch.cat(rows), dim=-1)


def text_scores(clip: CLIP, captions: Sequence[str], image_embed: Float[Tensor, "m d"]) -> Scores:
    """Cosines of captions with all drawings."""
    return text_embeds(clip, captions) @ normalize(image_embed, dim=-1).T


def spoken_numbers(scores: Scores, drawings: Drawings, name: str) -> Numbers:
    """scores: of what was made of each caption of `spoken.jsonl`."""
    spoken = read_spoken()
    meant = [{drawings.number[motif] for motif in one.motifs} for one in spoken]
    first, found = first_motifs(scores, drawings.motifs, 5), {}
    for k in (1, 5):
        hit = hits(first, meant, k)
        for told, of in (("English", {"en"}), ("other languages", {one.language for one in spoken} - {"en"})):
            found[f"{name}, {told}, top-{k}"] = interval([x for x, one in zip(hit, spoken) if one.language in of])
    return found


def seen(images: Float[Tensor, "n 3 s s"], drawings: Drawings) -> Iterator[tuple[str, Scores]]:
    """By each eye."""
    yield "pixels", drawings.closeness(images)
    if lite0.weights() is not None:
        yield "EfficientNet", drawings.likeness(lite0.network(), images)


def baselines(clip: CLIP, rows: Sequence[int], drawings: Drawings) -> Numbers:
    """What copying earns: drawings that were trained, in place of what was asked for."""
    found: Numbers = {}
    relatives = [(i, drawings.trained_relative(i)) for i in rows]
    kept = [(i, other) for i, other in relatives if other is not None]
    if kept:
        for eye, scores in seen(drawings.images([other for _, other in kept]), drawings):
            found |= judged(scores, [i for i, _ in kept], drawings, f"copy of the motif in a trained style by {eye}")
    trained = drawings.tier("train")
    captions = text_embeds(clip, [drawings.data.captions[i] for i in rows])
    known = text_embeds(clip, [drawings.data.captions[i] for i in trained])
    copied = [trained[j] for j in (captions @ known.T).argmax(1).tolist()]
    for eye, scores in seen(drawings.images(copied), drawings):
        found |= judged(scores, rows, drawings, f"copy of the nearest trained caption by {eye}")
    return found


def draw(pipe: UnCLIP, captions: Sequence[str], seed: int, title: str) -> Float[Tensor, "n 3 s s"]:
    """The chain's 64-pixel pictures; picture k is that of seed and `first` k, whatever the chunk."""
    images = []
    with tqdm(total=len(captions), desc=title, file=sys.stderr, disable=None) as bar:
        for start in range(0, len(captions), CHUNK):
            part = list(captions[start : start + CHUNK])
            images.append(pipe.generate(part, seed=seed, first=start, size=pipe.decoder.image_size).images.cpu())
            bar.update(len(part))
    return torch.cat(images)


def evaluate(clip: CLIP, pipe: UnCLIP | None, options: argparse.Namespace, drawings: Drawings) -> dict[str, Numbers]:
    """The chosen sections' numbers by block: the tiers and "spoken"."""
    image_embed = precompute(clip, StyledEmoji("all", clip.image_size)).image_embed
    found: dict[str, Numbers] = {}
    sections: Sequence[str] = options.only
    if "tiers" in sections:
        for tier in motifs.TIERS:
            rows = sample(drawings.tier(tier), drawings, options.n)
            captions = [drawings.data.captions[i] for i in rows]
            found[tier] = judged(text_scores(clip, captions, image_embed), rows, drawings, "CLIP")
            if pipe is not None:
                for eye, scores in seen(draw(pipe, captions, options.seed, tier), drawings):
                    found[tier] |= judged(scores, rows, drawings, f"chain by {eye}")
            found[tier] |= baselines(clip, rows, drawings)
    if "spoken" in sections:
        captions = [one.caption for one in read_spoken()]
        found["spoken"] = spoken_numbers(text_scores(clip, captions, image_embed), drawings, "CLIP")
        if pipe is not None:
            for eye, scores in seen(draw(pipe, captions, options.seed, "spoken"), drawings):
                found["spoken"] |= spoken_numbers(scores, drawings, f"chain by {eye}")
    return found


def table(found: dict[str, Any]) -> str:
    lines = []
    for block, rows in found.items():
        width = max(map(len, rows))
        lines += [
            "",
            block,
            *(f"  {name:{width}} {x.mean:6.3f}  [{x.low:.3f}, {x.high:.3f}]  n = {x.n}" for name, x in rows.items()),
        ]
    return "\n".join(lines[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    prog = "python -m experiments.emoji.evaluation.tiers"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="emoji", help="a shipped name or a folder (default emoji)")
    parser.add_argument("--clip", type=Path, help="evaluate this CLIP alone: a run folder or a component's")
    parser.add_argument("--n", type=int, default=100, help="captions per tier (default 100; 0 = all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=("tiers", "spoken"), default=("tiers", "spoken"), metavar="SECTION")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_intermixed_args(arguments)
    try:
        pipe = None if options.clip else UnCLIP.from_pretrained(options.model)
        clip: Any = open_clip(options.clip) if pipe is None else pipe.clip
        found = evaluate(clip, pipe, options, Drawings())
        print(table(found))
        if options.json:
            told = {"model": str(options.clip or options.model), "clip": fingerprint(clip), "seed": options.seed}
            numbers = {block: {name: value._asdict() for name, value in rows.items()} for block, rows in found.items()}
            write_files([(options.json, (json.dumps(told | numbers, indent=2) + "\n").encode())])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def open_clip(path: Path) -> Any:
    """A CLIP by its run folder, averaged weights of the newest state, or by its own."""
    read: Callable[[Path], Any] = averaged if (path / "log.jsonl").exists() else CLIP.from_pretrained
    return read(path).eval()


if __name__ == "__main__":
    main()

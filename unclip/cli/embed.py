"""`unclip embed`: a CLIP's answers for a whole source, computed once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .common import Device, Errors, Variant
from .data import Source


def embed(
    source: Source,
    folder: Annotated[Path, typer.Argument(help="New, or one that an earlier run of the same began.")],
    model: Annotated[str, typer.Option(help='The CLIP: of a pipeline, a folder, a run, or "open_clip:NAME:TAG".')] = "emoji",
    per_shard: Annotated[int, typer.Option(help="Pictures in a shard: the piece of work that a process takes.", min=1)] = 1024,
    batch: Annotated[int, typer.Option(help="Pictures, and captions, encoded at once.", min=1)] = 64,
    dtype: Annotated[str, typer.Option(help="What is stored: float32, or float16 for half the disk.")] = "float32",
    threads: Annotated[int, typer.Option(help="That read and decode at once, in each process.", min=1)] = 4,
    device: Device = "cpu",
    variant: Variant = None,
) -> None:
    """Precompute CLIP image and text embeddings, in shards; the same command goes on where it was cut off.

    On several processes: torchrun --nproc_per_node=8 -m unclip.cli embed SOURCE FOLDER --device cuda.  Priors and decoders
    then train with embeddings=FOLDER beside their pictures.
    """
    with Errors(model, "encode fewer at once (--batch)"):
        from tqdm import tqdm

        from unclip.checks import device_of
        from unclip.data.embed import check_claim
        from unclip.data.embed import embed as run
        from unclip.data.open import open_source
        from unclip.data.reader import Reader
        from unclip.data.source import Source as DataSource
        from unclip.runs import load_clip

        if dtype not in ("float32", "float16"):
            raise ValueError(f"no dtype {dtype!r}; embeddings are stored in float32 or float16")
        check_claim(folder)
        # What torchrun tells each process; they share the work without ever talking to each other.
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if device == "cuda" and "LOCAL_RANK" in os.environ:
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        opened = open_source(source)
        if not isinstance(opened, DataSource):
            raise ValueError(f"{source} holds embeddings already; give the pictures")
        data = Reader(opened, None)
        place = device_of(device)
        clip = load_clip(model, variant).to(place)
        disable = True if rank else None
        with tqdm(desc="embed", total=-(-len(data) // world), unit="picture", file=sys.stderr, disable=disable) as bar:
            done = run(
                clip,
                data,
                folder,
                source=source,
                per_shard=per_shard,
                batch=batch,
                rank=rank,
                world=world,
                dtype="float16" if dtype == "float16" else "float32",
                readers=threads,
                progress=bar.update,
            )
        process = f"process {rank + 1} of {world}: " if world > 1 else ""
        broken = f", {done.broken} broken ones left out" if done.broken else ""
        new = f"{len(done.written)} shards written with {done.pictures} pictures{broken}"
        typer.echo(f"{process}{new}, {len(done.skipped)} there already")

"""`unclip data check` and `unclip data pack`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from unclip.progress import Bars

from .common import Errors, Overwrite

app = typer.Typer(no_args_is_help=True, help="Look at training data, and write them as tar shards.")

Source = Annotated[
    str,
    typer.Argument(
        help="Folder (pictures with .txt files, a captions table or tar shards in it), a table (.jsonl .csv .tsv .parquet), or"
        " shards: x.tar, 'x-{000..127}.tar', 's3://bucket/*.tar'."
    ),
]


Labels = Annotated[
    str | None,
    typer.Option(help='Where the class stands: "folder" (the top-level one), a column, a field of the .json, or "cls".'),
]


@app.command()
def check(
    source: Source,
    labels: Labels = None,
    json: Annotated[Path | None, typer.Option("--json", help="Also write the whole report, as JSON.")] = None,
    threads: Annotated[int, typer.Option(help="That read and decode at once.", min=1)] = 4,
    overwrite: Overwrite = False,
) -> None:
    """Read everything once: counts, sizes, caption lengths, classes, duplicates, broken files by name.

    Status 1 when a picture, a caption or a shard is broken, 2 when the source cannot be read at all.
    """
    with Errors(source):
        from unclip.data.check import check as run
        from unclip.files import check_files, check_output, write_files

        if json is not None:
            check_files([check_output(json, (".json",), folder=False)], overwrite, [source])
        with Bars() as bars:
            report = run(source, labels=labels, threads=threads, progress=partial(bars.show, "check"))
        if json is not None:
            write_files([(json, report.to_json().encode())], overwrite)
        for line in report.lines():
            typer.echo(line)
    if not report.fine:
        raise typer.Exit(1)


@app.command()
def pack(
    source: Source,
    folder: Annotated[Path, typer.Argument(help="A new folder for 00000.tar, 00001.tar, ...")],
    samples_per_shard: Annotated[int, typer.Option(help="At most so many pictures in a shard.", min=1)] = 10_000,
    size_per_shard: Annotated[int, typer.Option(help="At most so many MiB in a shard.", min=1)] = 1024,
    size: Annotated[int | None, typer.Option(help="Make square PNGs of this side; else the files as they are.", min=1)] = None,
    labels: Labels = None,
    overwrite: Overwrite = False,
) -> None:
    """Write captioned pictures as tar shards in the webdataset convention; broken ones are named and left out.

    With --labels the shards have them in their .json: read them with labels="label".
    """
    with Errors(source):
        from unclip.data.open import open_source
        from unclip.data.pack import SHARDS
        from unclip.data.pack import pack as run
        from unclip.data.source import Source as DataSource
        from unclip.files import check_folder

        check_folder(folder, overwrite, SHARDS, [source])
        opened = open_source(source, labels)
        if not isinstance(opened, DataSource):
            raise ValueError(f"{source} holds embeddings; pictures are what is packed")
        with Bars() as bars:
            packed = run(
                opened,
                folder,
                samples_per_shard=samples_per_shard,
                bytes_per_shard=size_per_shard * 2**20,
                size=size,
                overwrite=overwrite,
                progress=partial(bars.show, "pack"),
            )
        left = f", {len(packed.broken)} broken ones left out" if packed.broken else ""
        typer.echo(f"{packed.samples} pictures in {len(packed.shards)} shards{left}")
        typer.echo(folder)

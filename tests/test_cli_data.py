"""`unclip data check`, `unclip data pack` and `unclip embed`: what they print and write, their status, and two processes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_data
import torch
import typer
from typer.testing import CliRunner

from unclip.cli import data, embed
from unclip.data.check import CheckReport
from unclip.data.embedding_shards import EmbeddingShards
from unclip.data.open import open_data

ROOT = Path(__file__).parents[1]
app = typer.Typer(pretty_exceptions_enable=False)
app.add_typer(data.app, name="data")
app.command()(embed.embed)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: Any, status: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == status, done.output
    return done


def test_check_prints_and_writes_what_it_finds(here: Path) -> None:
    tiny_data.folder(here / "pictures", 5)
    done = call("data", "check", "pictures", "--json", "report.json")
    assert "pictures: 5 captioned pictures, 5 readable" in done.stdout and done.stderr == ""
    report = CheckReport.load(here / "report.json")
    assert report.fine and report.samples == 5 and report.short_side is not None and report.short_side.most == 4


def test_check_ends_with_status_1_when_something_is_broken(here: Path) -> None:
    tiny_data.folder(here / "pictures", 3)
    (here / "pictures" / "p001.png").write_bytes(b"oh")
    done = call("data", "check", "pictures", "--threads", 2, "--json", "report.json", status=1)
    assert re.search(r"broken +pictures/p001\.png cannot be decoded as a picture", done.stdout)
    assert list(json.loads((here / "report.json").read_text())["broken"]) == ["p001"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "absent"), "error: absent is not there: expected a folder"),
        (("check", "pictures", "--json", "report.txt"), "error: this is written as .json"),
        (("pack", "pictures", "full"), "exists already and is not an empty folder"),
        (("pack", "x-{3..1}.tar", "new"), "runs backwards"),
    ],
)
def test_what_cannot_work_is_one_line_and_status_2(here: Path, arguments: tuple[str, ...], message: str) -> None:
    tiny_data.folder(here / "pictures", 2)
    tiny_data.folder(here / "full", 1)
    done = call("data", *arguments, status=2)
    assert message in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


def test_pack_writes_shards_that_are_the_same_data(here: Path) -> None:
    tiny_data.folder(here / "pictures", 5)
    (here / "pictures" / "p003.png").write_bytes(b"oh")
    done = call("data", "pack", "pictures", "shards", "--samples-per-shard", 2)
    assert done.stdout.splitlines() == ["4 pictures in 2 shards, 1 broken ones left out", "shards"]
    assert "warning: pictures/p003.png cannot be decoded" in done.stderr
    old, new = open_data("pictures", 4), open_data("shards/{00000..00001}.tar", 4)
    assert new.keys == ["p000", "p001", "p002", "p004"]
    a, b = old.batch([4, 0]), new.batch([3, 0])
    assert a.captions == b.captions and torch.equal(a.images, b.images)  # type: ignore[arg-type]
    call("data", "pack", "shards", "small", "--size", 2)
    assert open_data("small", 2).batch([0]).images is not None
    call("data", "check", "small")


def test_embed_goes_on_where_it_was_cut_off(here: Path) -> None:
    tiny_data.folder(here / "pictures", 5)
    tiny.pipeline().save_pretrained(here / "model")
    command = ("embed", "pictures", "embeds", "--model", "model", "--per-shard", 2)
    assert "3 shards written with 5 pictures, 0 there already" in call(*command).stdout
    (here / "embeds" / "00001.safetensors").write_bytes(b"")
    done = call(*command)
    assert "1 shards written with 2 pictures, 2 there already" in done.stdout
    assert "warning: embeds/00001.safetensors has 0 bytes instead of" in done.stderr
    batch = open_data("pictures", 4, embeddings="embeds").batch([4])
    assert batch.image_embed is not None and batch.image_embed.shape == (1, tiny.EMBED)
    call("data", "check", "embeds")
    (here / "embeds" / "00001.safetensors").write_bytes(bytes((here / "embeds" / "00001.safetensors").stat().st_size))
    assert "has changed" in call("data", "check", "embeds", status=1).stdout

    # A CLIP alone is enough, and the one of another pipeline is refused.
    tiny.clip().save_pretrained(here / "clip")
    assert "3 shards written" in call("embed", "pictures", "more", "--model", "clip", "--per-shard", 2).stdout
    tiny.clip(seed=1).save_pretrained(here / "other")
    assert "holds embeddings of another CLIP" in call(*command[:3], "--model", "other", "--per-shard", 2, status=2).stderr
    assert "no dtype 'int8'" in call("embed", "pictures", "new", "--dtype", "int8", status=2).stderr
    assert "cannot be used here" in call("embed", "pictures", "new", "--model", "clip", "--device", "cuda:77", status=2).stderr


def test_two_processes_write_the_files_of_one(here: Path) -> None:
    tiny_data.folder(here / "pictures", 7)
    tiny.clip().save_pretrained(here / "clip")
    call("embed", "pictures", "one", "--model", "clip", "--per-shard", 2)
    (here / "run.py").write_text("import typer\nfrom unclip.cli.embed import embed\ntyper.run(embed)\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "run.py"]
    done = subprocess.run(
        [*launch, "pictures", "two", "--model", "clip", "--per-shard", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())},  # equal threads, equal bits
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = sorted(line for line in done.stdout.splitlines() if line.startswith("process"))
    assert told == [
        "process 1 of 2: 2 shards written with 4 pictures, 0 there already",
        "process 2 of 2: 2 shards written with 3 pictures, 0 there already",
    ]
    one, two = ({path.name: path.read_bytes() for path in (here / name).iterdir()} for name in ("one", "two"))
    assert one == two and len(EmbeddingShards(here / "two")) == 7

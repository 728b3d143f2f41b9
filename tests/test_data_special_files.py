"""Pipes, devices and sockets where data are expected: one line at once, and never a reader that waits for ever."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_data

from unclip.data.embed import embed
from unclip.data.embedding_shards import EmbeddingShards
from unclip.data.embeddings import Embeddings
from unclip.data.open import open_data, open_source
from unclip.data.reader import Reader
from unclip.editing.latent import Latent
from unclip.editing.pca import PCA
from unclip.editing.sources import source_images


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # its path is short
    server = socket.socket(socket.AF_UNIX)
    server.bind(path.name)
    server.close()
    os.chdir(before)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")  # which never ends


def promptly(call: Callable[[], Any]) -> Exception:
    """What a call raises, within seconds."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it waits"
    assert raised, "it was taken"
    return raised[0]


@pytest.mark.parametrize("make", [fifo, unix_socket, device])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("x.safetensors", Embeddings.load),
        ("x.safetensors", lambda path: open_data(str(path), None)),
        ("x.safetensors", Latent.load),
        ("x.safetensors", PCA.load),
        ("x.tar", open_source),
        ("x.parquet", open_source),
        ("x.csv", open_source),
        ("x.jsonl", open_source),
        ("x.png", source_images),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, make: Callable[[Path], None], name: str, read: Callable[[Any], Any]) -> None:
    make(tmp_path / name)
    error = promptly(lambda: read(str(tmp_path / name)))
    assert isinstance(error, ValueError) and name in str(error) and "\n" not in str(error)


@pytest.mark.filterwarnings("ignore:the caption", "ignore:.*made anew")
@pytest.mark.parametrize("make", [fifo, unix_socket, device])
@pytest.mark.parametrize("name", ["embeddings.json", "00000.json", "00000.safetensors"])
def test_folders_of_embeddings(tmp_path: Path, make: Callable[[Path], None], name: str) -> None:
    tiny_data.folder(tmp_path / "pictures", 2)
    data = Reader(open_source(tmp_path / "pictures"), None)
    embed(tiny.clip(), data, tmp_path / "made")
    (tmp_path / "made" / name).unlink()
    make(tmp_path / "made" / name)
    error = promptly(lambda: EmbeddingShards(tmp_path / "made"))
    assert isinstance(error, ValueError) and "\n" not in str(error)
    if name != "embeddings.json" and make != device:  # a link is replaced
        error = promptly(lambda: embed(tiny.clip(), data, tmp_path / "made"))
        assert isinstance(error, ValueError) and f"cannot write {tmp_path / 'made'}" in str(error)


def test_escape_codes_in_a_models_story(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from unclip.cli import app

    story = {"by\x1b[2J": "me\x1b]0;title\x07", "steps": [{"a": "\x1b[31m"}]}
    tiny.pipeline(provenance=story).save_pretrained(tmp_path / "model")
    done = CliRunner().invoke(app, ["info", str(tmp_path / "model")])
    assert done.exit_code == 0 and r"by\x1b[2J: me\x1b]0;title\x07" in done.stdout and "\x1b" not in done.stdout

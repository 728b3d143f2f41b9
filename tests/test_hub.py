"""Where models are looked for: names, folders and the hub, whose repositories may be pinned to a revision."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny

from unclip import checkpoint, hub
from unclip.pipelines.unclip import UnCLIP


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    tiny.pipeline().save_pretrained(folder)
    return folder


def test_names(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SHIPPED", tmp_path)
    with pytest.raises(ValueError, match="no model 'emoij': shipped are none; otherwise give a folder or a hub id"):
        UnCLIP.from_pretrained("emoij")
    shutil.copytree(saved, tmp_path / "emoji")
    (tmp_path / "rest").mkdir()
    assert checkpoint.find("emoji") == tmp_path / "emoji"
    for name in ("emoij", "../emoij", "/no/where", "a/b/c", "rest/", ""):
        with pytest.raises(ValueError, match="shipped are emoji;|holds no pipeline"):
            UnCLIP.from_pretrained(name)


def test_the_hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[Any] = []
    answers: list[Any] = [saved, tmp_path]
    answers += [LocalEntryNotFoundError("An error happened\nwhile trying"), ConnectionError(), TypeError("odd")]

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert UnCLIP.from_pretrained("owner/name").name == "tiny"
    assert asked == [("owner/name", ["*.json", "*.safetensors"])]  # no pickles
    with pytest.raises(ValueError, match="owner/name holds no pipeline"):
        UnCLIP.from_pretrained("owner/name")
    while answers:
        with pytest.raises(ValueError, match="^owner/name is no folder here, and the Hugging Face hub did not give it: [^\n]+$"):
            UnCLIP.from_pretrained("owner/name")


def test_the_hub_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's own library, told that there is no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="owner/name is no folder here, and the Hugging Face hub did not give it: .+") as error:
        UnCLIP.from_pretrained("owner/name")
    assert "\n" not in str(error.value)


def test_names_that_are_no_paths() -> None:
    for name in ("n" * 5000, "a\0b", "\x1b[2J", "~nobody-has-this-name/x", "owner/name@", "owner/name@a b", "@x", "a/b/c@d"):
        with pytest.raises(ValueError, match="no model") as error:
            checkpoint.open_pipeline(name)
        assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_the_home_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(saved.parent))
    monkeypatch.setenv("USERPROFILE", str(saved.parent))
    assert UnCLIP.from_pretrained("~/tiny").name == "tiny" and checkpoint.find("~/tiny") == saved
    assert type(tiny.clip()).from_pretrained("~/tiny/clip").config == tiny.clip().record()


@pytest.fixture
def cached(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub's cache that holds one commit and no branch, without a network: its name."""
    from huggingface_hub import constants

    commit = "b" * 40
    shutil.copytree(saved, tmp_path / "models--acme--pinned" / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return commit


def test_revisions(cached: str) -> None:
    assert checkpoint.open_pipeline(f"acme/pinned@{cached}").name == "tiny"
    assert checkpoint.open_pipeline("acme/pinned", revision=cached).name == "tiny"
    assert checkpoint.open_pipeline(f"acme/pinned@{cached}", revision=cached).name == "tiny"
    with pytest.raises(ValueError, match="names a revision, and revision is 'v2': give one of them"):
        checkpoint.open_pipeline(f"acme/pinned@{cached}", revision="v2")
    with pytest.raises(ValueError, match="acme/pinned is no folder here, and the .* hub did not give it"):
        checkpoint.open_pipeline("acme/pinned")
    with pytest.raises(ValueError, match="acme/pinned at v2 is no folder here"):
        checkpoint.open_pipeline("acme/pinned@v2")


def test_folders_have_no_revisions(saved: Path) -> None:
    with pytest.raises(ValueError, match="revision is 'v2', but .*tiny is a folder here: only repositories of the hub"):
        checkpoint.open_pipeline(saved, revision="v2")
    assert os.path.isdir(saved)


def test_the_name_of_a_pinned_repository() -> None:
    assert hub.repository("kakaobrain/karlo-v1-alpha@abc") == "kakaobrain/karlo-v1-alpha"
    assert hub.repository("emoji") == "emoji" and hub.repository("/a/b@c/d") == "/a/b@c/d"

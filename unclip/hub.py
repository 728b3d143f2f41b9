"""Locate a model: shipped with the package, in a folder, or on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .checks import path_of
from .config import visible

CONFIG, INDEX = "config.json", "unclip.json"
SHIPPED = Path(__file__).parent / "assets"
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?")


def locate(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a shipped name, a folder ("~" is the home folder) or a hub id "owner/name", downloaded once.

    revision: a branch, tag or commit of the hub's repository, also as "owner/name@revision".
    """
    shipped = sorted(path.parent.name for path in SHIPPED.glob(f"*/{INDEX}"))
    if str(source) in shipped:
        folder = SHIPPED / str(source)
    else:
        try:
            folder = path_of(source)
            there = folder.is_dir()
        except (OSError, ValueError) as error:  # too long, a zero byte in it, no such home
            raise ValueError(f"no model {visible(source)!r}: {getattr(error, 'strerror', None) or error}") from None
        if not there:
            return _from_hub(str(source), revision, shipped)
    if revision is not None:
        raise ValueError(f"revision is {revision!r}, but {source} is a folder here: only repositories of the hub have revisions")
    return folder


def _from_hub(source: str, revision: str | None, shipped: list[str]) -> Path:
    match = _HUB_ID.fullmatch(source)
    if not match:
        known = ", ".join(shipped) or "none"
        expected = "otherwise give a folder or a hub id owner/name, also owner/name@revision"
        raise ValueError(f"no model {visible(source)!r}: shipped are {known}; {expected}")
    name, pinned = match.groups()
    if pinned and revision not in (None, pinned):
        raise ValueError(f"{source} names a revision, and revision is {revision!r}: give one of them")
    revision = revision or pinned
    folder = download(name, ["*.json", "*.safetensors"], revision)
    # Old repositories hold pickles only; unclip.convert reads their tensors without running anything in them.
    bare = [
        subfolder.name
        for subfolder in folder.iterdir()
        if (subfolder / CONFIG).is_file() and not any(subfolder.glob("*.safetensors"))
    ]
    return download(name, [f"{subfolder}/*.bin" for subfolder in sorted(bare)], revision) if bare else folder


def repository(source: str) -> str:
    """A hub id without its revision; any other source as it is."""
    match = _HUB_ID.fullmatch(source)
    return match[1] if match else source


def download(name: str, patterns: list[str], revision: str | None = None) -> Path:
    """The folder of a hub repository's files that match, from the cache where they are there."""
    from huggingface_hub import snapshot_download

    pinned: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **pinned))
    except Exception as error:  # of the hub's, the HTTP library's and the system's own kinds
        reason = visible((str(error).strip() or type(error).__name__).splitlines()[0], 500)
        which = f"{name} at {revision}" if revision else name
        problem = f"{which} is no folder here, and the Hugging Face hub did not give it: {reason}"
        raise ValueError(f"{problem} (without a network, give the path of a folder that holds its files)") from None

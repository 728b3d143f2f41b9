"""All files below a folder, linked folders among them, each folder once."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import NamedTuple

from .naming import KNOWN, Grouped, group, is_litter, split_suffix
from .source import clean


class Listing(NamedTuple):
    """`files`: paths by their names below the folder, with / and in order.  `lost`: what is wrong -> names."""

    files: dict[str, str]
    lost: dict[str, list[str]]
    grouped: Grouped


def list_folder(folder: str | Path) -> Listing:
    """Files that may be data, by name, and which are samples.

    Links are followed; a folder that two ways lead to is read by the one without a link.  Hidden files and what tools leave
    behind are passed over; what is named like data and is no file is told in `lost`.
    """
    files: dict[str, str] = {}
    lost: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    plain: deque[tuple[str, str]] = deque([("", str(folder))])
    linked: deque[tuple[str, str]] = deque()
    while plain or linked:
        name, path = (plain or linked).popleft()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            if not name:
                raise ValueError(f"{folder} cannot be read: {error.strerror or error}") from None
            lost.setdefault("folders cannot be read", []).append(name)
            continue
        for entry in entries:
            if is_litter(entry.name):
                continue
            below = f"{name}/{clean(entry.name)}" if name else clean(entry.name)
            if os.path.isdir(entry.path):
                (linked if entry.is_symlink() else plain).append((below, entry.path))
            elif os.path.isfile(entry.path):
                files[below] = entry.path
            elif split_suffix(entry.name)[1] in KNOWN:
                dead = entry.is_symlink() and not os.path.exists(entry.path)
                lost.setdefault("links lead nowhere" if dead else "names are those of pipes or devices", []).append(below)
    files = dict(sorted(files.items()))
    return Listing(files, lost, group(files))

"""The other system's environment for `training.py`: a venv with dalle2-pytorch that shares this one's torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.dalle2_pytorch.settings import PACKAGE, VERSION


def environment(folder: Path) -> Path:
    """The Python of their environment, which is made if it is missing."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    by_hand = f"remove it, or name another folder with --theirs; {PACKAGE}=={VERSION} is then installed there"
    if not folder.exists():
        print(f"making {folder} for {PACKAGE} {VERSION}", flush=True)
        _make(folder, python)
    if not python.exists():
        raise ValueError(f"{folder} is not a virtual environment: it has no {python.relative_to(folder)}; {by_hand}")
    ask = f"import importlib.metadata as m, torch; print(m.version({PACKAGE!r}), torch.__version__)"
    asked = subprocess.run([str(python), "-c", ask], capture_output=True, text=True)
    if asked.returncode:
        raise ValueError(f"{folder} has no {PACKAGE}, or no torch: {_last(asked.stderr)}; {by_hand}")
    import torch

    version, torch_version = asked.stdout.split()
    if (version, torch_version) != (VERSION, torch.__version__):
        have, want = f"{PACKAGE} {version} and torch {torch_version}", f"{VERSION} and {torch.__version__}"
        raise ValueError(f"{folder} has {have}; compared are {want}: {by_hand}")
    return python


def _make(folder: Path, python: Path) -> None:
    import torch

    commands = [[sys.executable, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", f"{PACKAGE}=={VERSION}"]]
    for command in commands:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise ValueError(f"`{' '.join(command)}` failed: {_last(done.stdout)}; remove {folder} before trying again")
        if command is commands[0]:
            # After its own packages the environment looks here: for torch, the same build, and what both need.  pip leaves
            # alone what lies outside of it, and installs what must differ (open_clip_torch 2) beside.
            purelib = subprocess.run(
                [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
            )
            here = Path(torch.__file__).resolve().parents[1]
            (Path(purelib.stdout.strip()) / "torch_of_unclip.pth").write_text(f"{here}\n")


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def versions(python: Path) -> str:
    ask = "import importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in "
    names = f"('{PACKAGE}', 'open_clip_torch', 'ema-pytorch', 'accelerate')))"
    theirs = subprocess.run([str(python), "-c", ask + names], capture_output=True, text=True).stdout.strip()
    from unclip import __version__

    return f"ours: unclip {__version__}; theirs: {theirs}"

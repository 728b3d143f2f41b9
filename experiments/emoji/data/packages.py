"""What the emoji are made from: packages of npm, each at one version, told by the SHA-512 that npm itself records.

Tarballs are kept in $UNCLIP_CACHE/emoji/npm; where there is no npm, put them there by hand (`Package.url` says from where).
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    name: str
    version: str
    sha512: str  # base64, as in npm's `dist.integrity`
    licence: str  # of what is taken from it

    @property
    def file(self) -> str:
        """The name of the tarball, as `npm pack` writes it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def url(self) -> str:
        return f"https://registry.npmjs.org/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


TWEMOJI = Package(
    "@twemoji/svg", "15.0.0",
    "ZSPef2B6nBaYnfgdTbAy4jgW95o7pi2xPGwGCU+WMTxo7J6B1lMPTWwSq/wTuiMq+N0khQ90CcvYp1wFoQpo/w==", "CC-BY-4.0",
)  # fmt: skip
NOTO = Package(
    "@iconify-json/noto", "1.2.9",
    "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==", "Apache-2.0",
)  # fmt: skip
FLUENT = Package(
    "@lobehub/fluent-emoji-flat", "1.1.0",
    "lPYCg8+N56MIj+iOgeBeH6AF0tneXxJCvgi41rOTjAWpA5rU2WUcmU1fiIXouEe8GrSTarWCYLY2ML+rdLRHsg==", "MIT",
)  # fmt: skip
EMOJITWO = Package(
    "@iconify-json/emojione", "1.2.3",
    "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==", "CC-BY-4.0",
)  # fmt: skip
EMOJIBASE = Package(
    "emojibase-data", "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==", "MIT",
)  # fmt: skip
EMOJILIB = Package(
    "emojilib", "4.0.3",
    "KbWiYre9aRSaPbHrHZIz9zmoM+21LAsK1VFJtnTh1VCtWE/rNMDviGhQTmselFl95dhqtGlY22iH0leG5BuW0g==", "MIT",
)  # fmt: skip


def fetch(package: Package, folder: Path) -> Path:
    """The checked tarball in `folder`, which npm brings where it is missing."""
    path = folder / package.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".npm.", dir=folder) as aside:
            made = _npm_pack(package, Path(aside), path)
            check(package, made)
            os.replace(made, path)
    check(package, path)
    return path


def check(package: Package, path: Path) -> None:
    """ValueError unless the file is the package, byte for byte."""
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != package.sha512:
        told = f"{path} has SHA-512 {found[:12]}…, {package} has {package.sha512[:12]}…"
        raise ValueError(f"{told}: remove it and get it again, from {package.url}")


def read(tarball: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The files of a tarball whose name inside the package is `wanted`, by that name.  No path of it reaches the disk."""
    found = {}
    try:
        with tarfile.open(tarball) as tar:
            for member in tar:
                name = member.name.partition("/")[2]
                if member.isfile() and wanted(name):
                    file = tar.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{tarball} cannot be read as a tarball of npm: {error}") from None
    return dict(sorted(found.items()))


def _npm_pack(package: Package, aside: Path, path: Path) -> Path:
    by_hand = f"download {package.url} and put it there as {path}"
    if shutil.which("npm") is None:
        raise ValueError(f"there is no npm here: {by_hand}")
    done = subprocess.run(["npm", "pack", str(package), "--silent"], cwd=aside, capture_output=True, text=True)
    made = aside / package.file
    if done.returncode or not made.exists():
        raise ValueError(f"`npm pack {package}` failed ({done.stderr.strip()[-400:] or 'it wrote no .tgz'}): {by_hand}")
    return made

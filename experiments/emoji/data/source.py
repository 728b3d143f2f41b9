"""Where the emoji come from: 3,720 Twemoji SVGs from npm; the 3,664 with a CLDR name get a caption and a split."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

PACKAGE = "@twemoji/svg@15.0.0"
SVG_COUNT, CAPTION_COUNT, HELDOUT_COUNT = 3720, 3664, 205
# Over "name NUL svg NUL" of every file by name: the tarball and an unpacked folder are checked alike.
SVG_SHA256 = "7927b1ab0503a65fe6bf5afd73945cf252d5e09f4423a0da1534c2850353ded6"
CAPTIONS = Path(__file__).parents[1] / "captions.jsonl"


class Row(NamedTuple):
    """One emoji: `key` is its code points in hex joined by "-", which is also the name of its SVG."""

    key: str
    caption: str
    split: str  # "train" | "heldout"


def cache_folder() -> Path:
    """Where pictures are kept: $UNCLIP_CACHE/emoji, or ~/.cache/unclip/emoji."""
    return Path(os.environ.get("UNCLIP_CACHE") or Path.home() / ".cache" / "unclip").expanduser() / "emoji"


def read_captions(path: Path = CAPTIONS) -> list[Row]:
    """The committed table, in its order (by key); the order is what the rows of a picture cache mean."""
    with path.open(encoding="utf-8") as lines:
        rows = [Row(**json.loads(line)) for line in lines]
    heldout = sum(row.split == "heldout" for row in rows)
    if (len(rows), heldout) != (CAPTION_COUNT, HELDOUT_COUNT):
        raise ValueError(
            f"{path} has {len(rows)} captions, {heldout} of them held out; it must have {CAPTION_COUNT}"
            f" and {HELDOUT_COUNT}: restore it from git"
        )
    return rows


def is_heldout(caption: str) -> bool:
    """The rule of the split: one skin-toned emoji in ten or so, chosen by the caption alone.  Never trained on."""
    return "skin tone" in caption and sum(map(ord, caption)) % 10 == 0


def make_captions(keys: list[str]) -> list[Row]:
    """Name every key that has a CLDR short name.  Needs the package `emoji`."""
    try:
        from emoji import EMOJI_DATA
    except ImportError:
        raise ValueError("making captions needs the package emoji: pip install 'unclip[emoji]'") from None

    # File names keep some variation selectors (fe0f) and drop others, so both sides are compared without them.
    names = {
        "-".join(f"{ord(c):x}" for c in text if c != "\ufe0f"): entry["en"].strip(":").replace("_", " ")
        for text, entry in EMOJI_DATA.items()
    }
    rows = []
    for key in sorted(keys):
        caption = names.get("-".join(point for point in key.split("-") if point != "fe0f"))
        if caption is not None:
            rows.append(Row(key, caption, "heldout" if is_heldout(caption) else "train"))
    return rows


def captions_text(rows: list[Row]) -> str:
    return "".join(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)


def prepare(folder: Path, source: Path | None = None) -> Path:
    """Put the checked SVGs into `folder`/svg and return that.  source: a .tgz or folder of SVGs; None = `npm pack`."""
    target = folder / "svg"
    if target.is_dir() and source is None:
        check(read_svgs(target), target)
        return target
    with tempfile.TemporaryDirectory() as download:
        source = source or _npm_pack(Path(download))
        svgs = read_svgs(source)
    check(svgs, source)

    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix="svg.", dir=folder))
    aside.chmod(0o755)
    for key, svg in svgs.items():
        (aside / f"{key}.svg").write_bytes(svg)
    if target.exists():  # a folder cannot be renamed over a full one
        shutil.rmtree(target)
    os.replace(aside, target)
    return target


def read_svgs(source: Path) -> dict[str, bytes]:
    """Key -> SVG, sorted by key, from the npm tarball or a folder."""
    if source.is_dir():
        return {key: (source / f"{key}.svg").read_bytes() for key in sorted(path.stem for path in source.glob("*.svg"))}
    if not source.is_file():
        raise ValueError(f"{source} is neither a .tgz of {PACKAGE} nor a folder of SVGs")
    svgs = {}
    try:
        with tarfile.open(source) as tar:
            for member in tar:
                path = Path(member.name)
                if member.isfile() and path.suffix == ".svg":
                    file = tar.extractfile(member)
                    assert file is not None
                    svgs[path.stem] = file.read()  # only the stem is used: no path of the archive reaches the disk
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{source} cannot be read as a tarball of {PACKAGE}: {error}") from None
    return dict(sorted(svgs.items()))


def check(svgs: dict[str, bytes], source: Path) -> None:
    digest = hashlib.sha256(b"".join(key.encode() + b"\0" + svg + b"\0" for key, svg in svgs.items())).hexdigest()
    if len(svgs) != SVG_COUNT or digest != SVG_SHA256:
        raise ValueError(
            f"{source} has {len(svgs)} SVGs with SHA-256 {digest[:12]}…; {PACKAGE} has {SVG_COUNT} with"
            f" {SVG_SHA256[:12]}…: get it with `npm pack {PACKAGE}` and pass it as --source"
        )


def _npm_pack(folder: Path) -> Path:
    if shutil.which("npm") is None:
        raise ValueError(f"there is no npm here: get the tarball of {PACKAGE} elsewhere and pass it as --source FILE.tgz")
    done = subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, capture_output=True, text=True)
    packed = sorted(folder.glob("*.tgz"))
    if done.returncode or not packed:
        raise ValueError(f"`npm pack {PACKAGE}` failed: {done.stderr.strip()[-400:] or 'it wrote no .tgz'}; pass --source")
    return packed[0]

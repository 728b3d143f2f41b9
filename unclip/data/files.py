"""Files here or behind a URL: which there are, whether one has changed, a range of its bytes, a copy in the cache."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from unclip.files import regular_file, visible

from .parquet_images import MAGIC as PARQUET
from .parquet_images import copy_images
from .unpack import LONGEST, copy_unpacked, kind

T = TypeVar("T")
TRIES = 3  # of a read from afar


class Packing(NamedTuple):
    reason: str
    copy: Callable[[Any, Any], str | None]  # from an open file to another; what is wrong behind what could be copied


class Stamp(NamedTuple):
    """What tells that a file has changed: its size, and its time of change or the server's tag for it."""

    size: int
    tag: str


def cache_folder() -> Path:
    """$UNCLIP_CACHE, or ~/.cache/unclip."""
    return Path(os.environ.get("UNCLIP_CACHE") or Path.home() / ".cache" / "unclip").expanduser()


def is_url(where: str) -> bool:
    return "://" in where and not where.startswith("file://")


def expand(pattern: str) -> list[str]:
    """The files that a path, a glob or brace ranges name: `a-{000..127}.tar`, `{train,more}/*.tar`, `s3://bucket/*.tar`.

    In the order of the braces, matches of a glob sorted.  ValueError: a glob without a match, a local file that is absent.
    """
    if pattern.startswith("pipe:"):
        raise ValueError(f"{pattern!r} would run a command; give paths or URLs of the shards")
    places: list[str] = []
    for name in _braces(os.path.expanduser(pattern.removeprefix("file://"))):
        matches = [name]
        wild = re.search(r"[*?\[]", name.partition("?")[0] if name.startswith("http") else name)
        if wild and not (Path(name).is_file() and not is_url(name)):
            matches = sorted(_remote_glob(name) if is_url(name) else glob.glob(name, recursive=True))
            if not matches:
                raise ValueError(f"no file matches {name!r}")
        places += matches
    missing = [name for name in places if not is_url(name) and not Path(name).is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(places)} files of {pattern!r} are not there, the first is {missing[0]}")
    return places


def stamp(where: str) -> Stamp:
    """ValueError when there is no such file."""
    if not is_url(where):
        try:
            status = os.stat(where)
        except OSError as error:
            raise ValueError(f"{where} cannot be read: {error.strerror or error}") from None
        return Stamp(status.st_size, str(status.st_mtime_ns))
    fs, path = _filesystem(where)
    try:
        info = _patiently(lambda: fs.info(path), where)
    except FileNotFoundError:
        raise ValueError(f"there is no {where}") from None
    tags = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created", "md5Hash", "blob_id")
    return Stamp(int(info.get("size") or -1), next((str(info[tag]) for tag in tags if info.get(tag)), ""))


def read_file(path: str | Path, most: int) -> bytes:
    """A whole file that lies here.  ValueError: it is absent, no regular file, or of more than `most` bytes."""
    try:
        size = regular_file(path).stat().st_size
        if size > most:
            raise ValueError(f"{visible(path)} is too large: it has {size} bytes, {most} are expected at most")
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{visible(path)} cannot be read: {error.strerror or error}") from None


def read_range(where: str, start: int, size: int) -> bytes:
    """`size` bytes from byte `start` on.  ValueError: the file ends before; OSError: it cannot be reached."""
    if not is_url(where):
        with open(where, "rb") as file:
            file.seek(start)
            data = file.read(size)
    else:
        fs, path = _filesystem(where)
        data = _patiently(lambda: fs.cat_file(path, start=start, end=start + size), where)
    if len(data) != size:
        raise ValueError(f"{where} has {len(data)} instead of {size} bytes from byte {start} on: has it changed?")
    return data


def read_url(where: str) -> bytes:
    """A small file behind a URL.  ValueError whatever goes wrong: among links some are always dead."""
    try:
        fs, path = _filesystem(where)
        return bytes(_patiently(lambda: fs.cat_file(path), where))
    except (ValueError, OSError) as error:
        raise ValueError(f"{where} cannot be read: {error}") from None


def open_file(where: str) -> Any:
    """For reading from begin to end, with seeks ahead."""
    if not is_url(where):
        return open(regular_file(where), "rb")
    fs, path = _filesystem(where)
    return fs.open(path, "rb")


def has_ranges(where: str) -> bool:
    """Whether parts of the file can be read.  Only web servers may refuse that."""
    if not where.startswith(("http://", "https://")):
        return True
    fs, path = _filesystem(where)
    if (fs.info(path).get("size") or 0) < 2:
        return False
    return len(_patiently(lambda: fs.cat_file(path, start=0, end=1), where)) == 1


def packing(where: str) -> Packing | None:
    """Whether a file has to be unpacked before its members can be read in any order, as its first bytes tell."""
    with open_file(where) as file:
        start = file.read(LONGEST)
    if start.startswith(PARQUET):
        return Packing("is a table with pictures in it", copy_images)
    return Packing("is compressed", copy_unpacked) if kind(start) else None


def copy_path(where: str, stamped: Stamp) -> Path:
    """Where the cache has, or would have, an uncompressed copy of that state of the file."""
    digest = hashlib.blake2b(f"{_absolute(where)} {stamped}".encode(), digest_size=12).hexdigest()
    return cache_folder() / "shards" / f"{digest}.tar"


def copy_here(where: str, stamped: Stamp) -> tuple[Path, str | None]:
    """Copy a file into the cache, as a tar, as far as it can be unpacked; and what is wrong behind that."""
    path = copy_path(where, stamped)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    packed = packing(where)
    copy = packed.copy if packed else copy_unpacked
    try:
        with open_file(where) as source, open(aside, "wb") as target:
            problem = copy(source, target)
        try:
            os.replace(aside, path)
        except PermissionError:  # Windows, where somebody reads the copy that another process has made meanwhile
            if not path.is_file():
                raise
    except OSError as error:
        free = shutil.disk_usage(path.parent).free // 2**20
        raise ValueError(f"{where} could not be copied to {path} ({free} MiB are free there): {error}") from None
    except ValueError as error:
        raise ValueError(f"{where} cannot be read: {error}") from None
    finally:
        aside.unlink(missing_ok=True)
    return path, problem


def _braces(pattern: str) -> list[str]:
    """{000..012} keeps its zeros, {a,b} lists; several multiply, the last one fastest."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[piece] if i % 2 == 0 else _choices(piece, pattern) for i, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
    if spec := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = spec.groups()
        if int(first) > int(last):
            raise ValueError(f"the range {{{inside}}} in {pattern!r} runs backwards")
        width = len(first) if first.startswith("0") else 0
        return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    if "," in inside:
        return inside.split(",")
    raise ValueError(f"cannot read {{{inside}}} in {pattern!r}: write a range such as {{000..127}} or a list {{a,b}}")


def _remote_glob(url: str) -> list[str]:
    fs, path = _filesystem(url)
    return [fs.unstrip_protocol(name) for name in _patiently(lambda: fs.glob(path), url)]


def _filesystem(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(url)
    except ImportError as error:
        remedy = "pip install 'unclip[remote]'" if url.startswith("http") else f"{error}"
        raise ValueError(f"{url} needs a package that is not installed: {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{url} cannot be opened: {error}") from None
    return fs, path


def _patiently(read: Callable[[], T], where: str) -> T:
    """Networks fail now and then.  OSError after the last try; FileNotFoundError at once."""
    for attempt in range(TRIES):
        try:
            return read()
        except FileNotFoundError:
            raise
        except Exception as error:  # of fsspec's file systems, each has its own kinds
            if attempt == TRIES - 1:
                raise OSError(f"{where} could not be read in {TRIES} tries: {type(error).__name__} {error}") from error
            time.sleep(0.2 * 4**attempt)
    raise AssertionError


def _absolute(where: str) -> str:
    return where if is_url(where) else str(Path(where).resolve())

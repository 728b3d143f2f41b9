"""Check arguments: the number, type or device that is meant, or one line that tells what was given and expected."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import Any

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that networks compute in
NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


def check_int(name: str, value: Any, least: int | None = None, what: str = "") -> int:
    """A whole number of any library as Python's own; ValueError for anything else.  `what` it stands for, for the message."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = int(operator.index(value))
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        within = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name} is {value!r}; it must be a whole number{within}{what and f': {what}'}")
    return number


def rows_of_index(which: Any, count: int) -> slice:
    """`x[k]` or `x[i:j]` of `count` rows as a slice; IndexError beyond them."""
    if isinstance(which, slice):
        return which
    k = operator.index(which)
    if not -count <= k < count:
        raise IndexError(f"there is no picture {k}: there are {count}, counted from 0")
    return slice(k % count, k % count + 1)


def path_of(value: Any) -> Path:
    """A path, "~" being the home folder; ValueError for what is none."""
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"a path is expected, as text or pathlib.Path, not {value!r}")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"{str(value)!r} begins with a home folder that is not known here") from None


def dtype_of(value: Any) -> torch.dtype:
    """A type of floating point numbers, also by its name, as "bfloat16"; ValueError for anything else."""
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return value
    dtype = NAMES.get(value.removeprefix("torch.")) if isinstance(value, str) else None
    if dtype is None:
        raise ValueError(f"no dtype {value!r}; there are {', '.join(NAMES)}")
    return dtype


def device_of(value: Any) -> torch.device:
    """A device that is there and computes, also by its name, as "cuda:1"; ValueError for any other."""
    try:
        device = torch.device(value)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # of torch builds that know the kind of device, or do not
        raise ValueError(f"device {str(value)!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device

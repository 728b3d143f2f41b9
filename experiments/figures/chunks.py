"""Drawn pictures kept on disk, so that a long measurement goes on where it was cut off, and several processes share it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from experiments.figures.common import Run
from unclip.files import write_files
from unclip.weights import read_tensors, to_bytes

FORMAT = "unclip-drawn-1"


def drawn(run: Run, what: object, inputs: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """The pictures of `make`, once: FOLDER/<script>_chunks/<digest>.safetensors, whose name is of all that they depend on.

    what: the settings, as their repr tells them.  inputs: the pictures that were given.
    """
    models = {name: value for name, value in run.pipe.models().items() if name != "pipeline"}
    digest = hashlib.blake2b(f"{FORMAT} {sorted(models.items())} {run.options.seed} {what!r}".encode(), digest_size=16)
    digest.update(inputs.contiguous().numpy().tobytes())
    path = run.options.output / f"{run.name}_chunks" / f"{digest.hexdigest()}.safetensors"
    if not path.exists():
        write_files([(path, to_bytes({"images": make().contiguous()}, {"format": FORMAT}))])
    images = read_tensors(path, {})["images"]
    assert images.dtype == torch.float32
    return images

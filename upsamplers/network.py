"""The upsampler's network: a UNet over the channels of the noisy picture and the resized low-resolution one."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unclip.nn.embeddings import TimestepEmbedding
from unclip.nn.unet import UNet, UNetConfig

from .filters import Resize, reflect_pad, resize

LastStep = Literal["shared", "own"]


class UpsamplerNetwork(nn.Module):
    """(x_t, t, encoded) -> raw output, at any size: what the UNet cannot divide is mirrored at the right and bottom.

    output "residual": the UNet's output is added to the resized picture, so an untrained network returns that.
    last_step "own": what starts at t = 1, the step to the finished picture, goes through a second UNet (Karlo).
    """

    def __init__(
        self,
        unet: UNetConfig,
        scale: int,
        output: Literal["image", "residual"],
        mode: Resize,
        first_timestep: int = 1,
        last_step: LastStep = "shared",
    ):
        super().__init__()
        self.scale, self.output, self.mode = scale, output, mode
        self.time = TimestepEmbedding(unet.channels, unet.emb, first_timestep)
        self.unet = UNet(unet)
        self.last_time = TimestepEmbedding(unet.channels, unet.emb, first_timestep) if last_step == "own" else None
        self.last_unet = UNet(unet) if last_step == "own" else None

    def encode(self, low_res: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 H W"]:
        """The low-resolution picture at the target size: what does not change over the steps."""
        return resize(low_res, (low_res.shape[-2] * self.scale, low_res.shape[-1] * self.scale), self.mode)

    def forward(
        self, x_t: Float[Tensor, "b 3 H W"], t: Int[Tensor, " b"], encoded: Float[Tensor, "b 3 H W"]
    ) -> Float[Tensor, "b 3 H W"]:
        height, width = x_t.shape[-2:]
        bottom, right = -height % self.unet.multiple_of, -width % self.unet.multiple_of
        x = torch.cat([x_t, encoded.to(x_t.dtype)], dim=1).to(self.unet.input.weight.dtype)
        out = self._run(reflect_pad(x, 0, bottom, 0, right), t)[..., :height, :width]
        return encoded + out if self.output == "residual" else out

    def _run(self, x: Tensor, t: Tensor) -> Tensor:
        """Every row through the network that its timestep asks for; in sampling all rows have one timestep."""
        last = (t == 1).to(x.device)
        if self.last_time is None or self.last_unet is None or not last.any():
            return self.unet(x, self.time(t))
        if last.all():
            return self.last_unet(x, self.last_time(t))
        out = self.unet(x, self.time(t))
        return out.masked_scatter(last[:, None, None, None], self.last_unet(x[last], self.last_time(t.to(x.device)[last])))

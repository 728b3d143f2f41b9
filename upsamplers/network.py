"""The upsampler's network: a UNet over the channels of the noisy picture and the resized low-resolution one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from unclip.conditions import ConditionEncoder, Drops
from unclip.nn.embeddings import TimestepEmbedding
from unclip.nn.unet import UNet
from unclip.types import Cond

from .config import CANDIDATES, UpsamplerConfig
from .filters import reflect_pad, resize


class Encoded(NamedTuple):
    """What the network sees beside x_t, the same over all steps: the low-resolution picture, and conditions."""

    resized: Float[Tensor, "b 3 H W"]
    low_res: Float[Tensor, "b 3 h w"]
    emb: Float[Tensor, "b e"] | None = None  # added to the timestep embedding
    context: list[Tensor] | None = None  # keys and values of every attention layer (b, l, 2 width)
    mask: Bool[Tensor, "b l"] | None = None
    channels: Float[Tensor, "b c H W"] | None = None  # between the noisy and the resized picture's


class UpsamplerNetwork(nn.Module):
    """(x_t, t, encoded) -> raw output, at any size: what the UNet cannot divide is mirrored at the right and bottom.

    output "residual": the UNet's output is added to the resized picture, so an untrained network returns that.
    output "mixture": each pixel is a mixture of that sum and of the 3 x 3 low-resolution pixels around it, in parts that the
    UNet tells, too (convex upsampling, Teed & Deng 2020).  What is flat there stays flat, beside edges as well, where a
    resized picture rings.  An untrained network is 94 % the resized picture.
    last_step "own": what starts at t = 1, the step to the finished picture, goes through a second UNet (Karlo).
    """

    def __init__(self, config: UpsamplerConfig):
        super().__init__()
        self.scale, self.output, self.mode = config.scale, config.output, config.resize

        def unet() -> UNet:
            return UNet(config.unet, config.in_channels, config.out_channels, config.conditions.context_width)

        def time() -> TimestepEmbedding:
            return TimestepEmbedding(config.unet.sinusoid, config.unet.emb, config.first_timestep)

        has_last = config.last_step == "own"
        self.time, self.unet = time(), unet()
        self.last_time, self.last_unet = time() if has_last else None, unet() if has_last else None
        self.conditions = ConditionEncoder(config.conditions, config.unet.emb, "upsampler")
        if config.output == "mixture":
            _prefer_first(self.unet)
            if self.last_unet is not None:
                _prefer_first(self.last_unet)

    def encode(self, low_res: Float[Tensor, "b 3 h w"], cond: Cond | None = None, drops: Drops | None = None) -> Encoded:
        """The low-resolution picture, at the target size too, and conditions: what does not change over the steps."""
        size = (low_res.shape[-2] * self.scale, low_res.shape[-1] * self.scale)
        resized = resize(low_res, size, self.mode)
        share = self.conditions(cond or Cond(), len(low_res), size, drops)
        context = None if share.tokens is None else self.unet.encode_context(share.tokens)
        channels = None if share.channels is None else share.channels.to(resized)
        return Encoded(resized, low_res, share.emb, context, share.mask, channels)

    def forward(self, x_t: Float[Tensor, "b 3 H W"], t: Int[Tensor, " b"], encoded: Encoded) -> Float[Tensor, "b c H W"]:
        height, width = x_t.shape[-2:]
        bottom, right = -height % self.unet.multiple_of, -width % self.unet.multiple_of
        beside = [encoded.resized] if encoded.channels is None else [encoded.channels, encoded.resized]
        x = torch.cat([x_t, *(y.to(x_t.dtype) for y in beside)], dim=1).to(self.unet.input.weight.dtype)  # (b, 6 + c, H, W)
        out = self._run(reflect_pad(x, 0, bottom, 0, right), t, encoded)[..., :height, :width]
        if self.output == "image":
            return out
        image = encoded.resized + out[:, :3]
        return image if self.output == "residual" else mixture(image, encoded.low_res, out[:, 3:])

    def _run(self, x: Tensor, t: Tensor, encoded: Encoded) -> Tensor:
        """Every row through the network that its timestep asks for; in sampling all rows have one timestep."""
        if self.last_time is None or self.last_unet is None:
            emb = self.time(t)
            emb = emb if encoded.emb is None else emb + encoded.emb
            return self.unet(x, emb, encoded.context, encoded.mask)
        last = (t == 1).to(x.device)  # (b)
        both = self.training and torch.is_grad_enabled() or any(map(_is_sharded, self.last_unet.parameters()))
        if not both and not last.any():
            return self.unet(x, self.time(t))
        if not both and last.all():
            return self.last_unet(x, self.last_time(t))
        # Processes that train together need the same parameters in every step, whatever their rows ask for: of an idle
        # network's output nothing is taken, which gives it gradients of zero.
        rows = last if last.any() else torch.arange(len(x), device=x.device) == 0
        out = self.unet(x, self.time(t))
        return out.masked_scatter(last[:, None, None, None], self.last_unet(x[rows], self.last_time(t.to(x.device)[rows])))


def mixture(
    image: Float[Tensor, "b 3 H W"], low_res: Float[Tensor, "b 3 h w"], logits: Float[Tensor, "b 10 H W"]
) -> Float[Tensor, "b 3 H W"]:
    """Each pixel a mixture (softmax) of `image`'s and of 3 x 3 pixels of `low_res`, row by row, in whose middle it lies."""
    height, width = image.shape[-2:]
    scale = height // low_res.shape[-2]
    # Weights and pictures in float32: rounded weights would not sum up to 1.
    weights = logits.float().softmax(1)  # (b, 10, H, W)
    around = interpolate(pad(low_res.float(), (1, 1, 1, 1), mode="replicate"), scale_factor=scale, mode="nearest")
    out = weights[:, :1] * image.float()
    for k in range(CANDIDATES - 1):
        y, x = (scale * i for i in divmod(k, 3))
        out = torch.addcmul(out, weights[:, k + 1 : k + 2], around[..., y : y + height, x : x + width])
    return out


def _is_sharded(parameter: Tensor) -> bool:
    """Gathered from all processes when it is used (FSDP2)."""
    return hasattr(parameter, "device_mesh")


@torch.no_grad()
def _prefer_first(unet: UNet) -> None:
    """Let a mixture begin with the corrected picture, by the bias of its logits, which pixel shuffle has yet to spread."""
    assert isinstance(unet.output.bias, Tensor)
    unet.output.bias.view(-1, unet.config.patch**2)[3] = 5.0

"""A 3 x 3 convolution that, in inference on the CPU, also has three shorter ways to the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, pad

from .switch import onednn_linear, plain
from .winograd import winograd

# Pixels of one picture: which way is taken, and so the last bit, does not depend on the batch.
SMALL, HEAVY = 256, 2**22  # up to so many pixels, from so many weights one matrix product is faster
LARGE, WIDE = 1024, 256  # pixels, channels from which transforming the weights pays,
PER_PIXEL = 4096  # if they are at most so many for each pixel


class Conv3x3(nn.Conv2d):
    """Convolution that keeps height and width; same weights, names and numbers as nn.Conv2d(.., 3, padding=1).

    Over few pixels oneDNN spends most of its time on bringing the weights into its own order, every time anew.  There the
    pixels' surroundings and the weights as they lie (channels_last) make one matrix product, which reads them once.  On two
    AMD cores, float32, 2 x 8 x 8 pixels, 2560 -> 1280 channels: 61 ms by conv2d, 20 ms so.  Over many pixels and channels it is
    Winograd's: 256 x 256 pixels, 640 -> 640 channels: 1,128 ms by conv2d, 757 ms so, with a third of its error.  That
    only in float32: in half precision the transformed would be rounded.
    """

    def __init__(self, width_in: int, width: int):
        super().__init__(width_in, width, 3, padding=1)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        product = onednn_linear(input.dtype) if self._bare(input) else None
        if product is not None and self._as_product(input):
            return self._surroundings(input, product)
        if product is not None and self._many(input):
            assert self.bias is not None
            return winograd(input, self.weight, self.bias, product)
        return super().forward(input)

    def doubled(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o 2*h 2*w"]:
        """The convolution of `input` at twice its size (nearest neighbour).

        A pixel and its copies meet several of the nine weights, so these can be added up before: each of the four pixels that
        come of one sees 2 x 2 pixels of the input, 4/9 of the products.
        """
        b, _, h, w = input.shape
        if h * w < LARGE or not self._bare(input):
            return self(interpolate(input, scale_factor=2, mode="nearest"))
        assert self.bias is not None
        fours = conv2d(input, _phases(self.weight), self.bias.repeat(4), padding=1).permute(0, 2, 3, 1)  # (b, h + 1, w + 1, 4 o)
        out = fours.new_empty(b, 2 * h, 2 * w, self.out_channels)
        for i, four in enumerate(fours.split(self.out_channels, dim=-1)):
            y, x = divmod(i, 2)
            out[:, y::2, x::2] = four[:, y : y + h, x : x + w]
        return out.permute(0, 3, 1, 2)  # (b, o, 2 h, 2 w)

    def _surroundings(self, x: Tensor, product: Callable[..., Tensor]) -> Tensor:
        b, c, h, w = x.shape
        padded = pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (b, h + 2, w + 2, c)
        row, column = padded.stride(1), padded.stride(2)
        around = padded.as_strided((b, h, w, 3, 3 * c), (padded.stride(0), row, column, row, 1))
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)  # (o, 9 c)
        out = product(around.reshape(b * h * w, 9 * c), weight, self.bias, "none", [], "")
        return out.view(b, h, w, -1).permute(0, 3, 1, 2)  # (b, o, h, w)

    def _as_product(self, x: Tensor) -> bool:
        return x.shape[2] * x.shape[3] <= SMALL and self.weight.numel() >= HEAVY

    def _many(self, x: Tensor) -> bool:
        _, c, h, w = x.shape
        even = h % 2 == 0 and w % 2 == 0 and x.dtype == torch.float32
        return even and h * w >= LARGE and min(c, self.out_channels) >= WIDE and self.weight.numel() <= PER_PIXEL * h * w

    def _bare(self, x: Tensor) -> bool:
        """Inference on the CPU, in the weights' own type, which lie channels_last."""
        return plain(x) and x.dtype == self.weight.dtype and self.weight.permute(0, 2, 3, 1).is_contiguous()


def _phases(weight: Float[Tensor, "o c 3 3"]) -> Float[Tensor, "4*o c 2 2"]:
    """The weights that the pixels above left, above right, below left and below right of a doubled one see."""
    at_least = torch.promote_types(weight.dtype, torch.float32)
    w = weight.permute(0, 2, 3, 1).to(at_least)  # as it lies in memory; sums are rounded once
    o, _, _, c = w.shape
    out = weight.new_empty(2, 2, o, 2, 2, c)
    first, middle, last = w.unbind(1)
    for y, rows in enumerate(((first, middle + last), (first + middle, last))):
        for i, (left, centre, right) in enumerate(row.unbind(1) for row in rows):
            out[y, 0, :, i, 0], out[y, 1, :, i, 1] = left, right
            torch.add(centre, right, out=out[y, 0, :, i, 1])
            torch.add(left, centre, out=out[y, 1, :, i, 0])
    return out.flatten(0, 2).permute(0, 3, 1, 2)

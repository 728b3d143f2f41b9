"""Winograd's minimal filtering F(2 x 2, 3 x 3): a 3 x 3 convolution with 4/9 of the products (Lavin and Gray 2015, 4.1)."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

TILES = 1024  # of 2 x 2 pixels at a time: what lies between the two transforms stays in the cache


def winograd(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "o c 3 3"],
    bias: Float[Tensor, " o"],
    product: Callable[..., Tensor],
) -> Float[Tensor, "b o h w"]:
    """The convolution with padding 1 of pictures of even height and width; x, weight and result lie channels_last.

    Tiles of 4 x 4 pixels that overlap by 2 are transformed, so are the weights; each of the 16 places is then one matrix
    product over channels, and what comes of it is transformed back to 2 x 2 pixels.  `product` is `onednn_linear(torch.float32)`.
    """
    b, c, h, w = x.shape
    filters = transformed(weight)
    padded = pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (b, h + 2, w + 2, c)
    out = x.new_empty(b, h, w, len(weight))
    rows = 2 * min(h // 2, max(1, TILES // (w // 2)))  # of pixels, at a time
    for image, made in zip(padded, out):
        for top in range(0, h, rows):
            bottom = min(top + rows, h)
            _strip(image[top : bottom + 2], filters, bias, made[top:bottom], product)
    return out.permute(0, 3, 1, 2)


def transformed(weight: Float[Tensor, "o c 3 3"]) -> Float[Tensor, "4 4 o c"]:
    """G g G^T."""
    g = weight.permute(2, 3, 0, 1)
    out = g.new_empty(4, 4, *g.shape[2:])
    for y, row in enumerate(_filter(*g.unbind(0))):  # (3, o, c)
        for x, place in enumerate(_filter(*row.unbind(0))):
            out[y, x] = place
    return out


def _filter(first: Tensor, middle: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """G along one axis."""
    ends, half = (first + last).mul_(0.5), middle * 0.5
    return first, ends + half, ends.sub_(half), last


def _strip(
    image: Float[Tensor, "h_2 w_2 c"],
    filters: Float[Tensor, "4 4 o c"],
    bias: Float[Tensor, " o"],
    out: Float[Tensor, "h w o"],
    product: Callable[..., Tensor],
) -> None:
    """Some rows of a picture; `image` has one pixel more on every side."""
    h, w, o = out.shape
    a, b, c, d = (image[i : i + h : 2] for i in range(4))  # (h / 2, w + 2, c)
    columns = []  # of the result's transform, along y: what the four rows make of the left and of the right pixels
    for row, places in zip((a - c, b + c, c - b, b - d), filters):
        a_, b_, c_, d_ = (row[:, i : i + w : 2] for i in range(4))
        tiles = (a_ - c_, b_ + c_, c_ - b_, b_ - d_)  # (h / 2, w / 2, c)
        p, q, r, s = (product(t.flatten(0, 1), u, None, "none", [], "") for t, u in zip(tiles, places))
        columns.append((p.add_(q).add_(r), q.sub_(r).sub_(s)))
    for x, (p, q, r, s) in enumerate(zip(*columns)):
        out[0::2, x::2] = p.add_(q).add_(r).add_(bias).view(h // 2, w // 2, o)
        out[1::2, x::2] = q.sub_(r).sub_(s).add_(bias).view(h // 2, w // 2, o)

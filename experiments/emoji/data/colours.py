"""Which colours a drawing has, in words."""

from __future__ import annotations

import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "gray", "white")
RED, ORANGE, YELLOW, GREEN, BLUE, PURPLE, PINK, BROWN, BLACK, GRAY, WHITE = range(len(COLOURS))


def colours(pictures: np.ndarray, least: float = 0.25) -> list[tuple[str, ...]]:
    """pictures: uint8 (n, 3, s, s).  Of each the colours of at least `least` of its ink, the largest share first, two at most.

    Ink is what is not the white ground; a drawing without other ink is white.
    """
    step = max(1, pictures.shape[-1] // 16)
    shares = np.stack([np.bincount(_names(p[:, ::step, ::step]).ravel(), minlength=len(COLOURS)) for p in pictures])
    found = []
    for counts in shares:
        ink = counts.copy()
        ink[WHITE] = 0
        total = ink.sum()
        order = [int(i) for i in np.argsort(-ink, kind="stable")[:2] if total and ink[i] >= least * total]
        found.append(tuple(COLOURS[i] for i in order) or ("white",))
    return found


def _names(picture: np.ndarray) -> np.ndarray:
    """(3, h, w) to the number of a colour for each pixel."""
    r, g, b = picture.astype(np.float32) / 255
    high, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    spread = high - low
    safe = np.where(spread > 0, spread, 1)
    hue = np.where(high == r, (g - b) / safe % 6, np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4)) * 60
    names = np.select(
        [hue < 18, hue < 37, hue < 68, hue < 165, hue < 258, hue < 295, hue < 345],
        [RED, ORANGE, YELLOW, GREEN, BLUE, PURPLE, PINK],
        default=RED,
    )
    names = np.where((names == RED) & (low > 0.45), PINK, names)
    dark = (high > 0.25) & (high < 0.72) & (low < 0.45) & (spread > 0.12)
    names = np.where(((names == ORANGE) | (names == RED)) & dark, BROWN, names)
    saturation = spread / np.maximum(high, 1e-6)
    grey = (saturation < 0.2) | (spread < 0.1)
    names = np.where(grey, np.where(high > 0.9, WHITE, np.where(high < 0.28, BLACK, GRAY)), names)
    return np.where(high < 0.2, BLACK, names)

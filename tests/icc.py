"""Colour profiles of every kind, small enough to be written down: ICC version 2."""

from __future__ import annotations

from struct import pack

import numpy as np

P3 = [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)]
ADOBE = [(0.640, 0.330), (0.210, 0.710), (0.150, 0.060)]
SRGB = [(0.640, 0.330), (0.300, 0.600), (0.150, 0.060)]
D65, D50 = (0.3127, 0.3290), (0.9642, 1.0, 0.8249)


def rgb(primaries: list[tuple[float, float]], gamma: float) -> bytes:
    """A matrix profile with one gamma for all channels; its primaries adapted from D65 by Bradford."""
    xyz = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    white = np.array((D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]))
    columns = xyz * np.linalg.solve(xyz, white)
    bradford = np.array([(0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296)])
    scale = np.diag(bradford @ np.array(D50) / (bradford @ white))
    columns = np.linalg.inv(bradford) @ scale @ bradford @ columns
    tags = {f"{name}XYZ".encode(): _xyz(*columns[:, i]) for i, name in enumerate("rgb")}
    return _profile(b"RGB ", b"XYZ ", tags | {f"{name}TRC".encode(): _curve(gamma) for name in "rgb"})


def grey(gamma: float) -> bytes:
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk() -> bytes:
    """A table of two steps a channel: lightness falls with all inks, cyan goes to green and blue, magenta to red, ..."""
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(16, 4)
    lightness = np.clip(100 - inks @ np.array([40, 45, 10, 80]), 5, 100)
    a, b = inks @ np.array([-35, 70, -5, 0]), inks @ np.array([-45, -5, 90, 0])
    table = np.stack([lightness * 2.55, a + 128, b + 128], -1).round().astype(np.uint8)
    same = bytes(range(256))
    head = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    return _profile(b"CMYK", b"Lab ", {b"A2B0": head + same * 4 + table.tobytes() + same * 3})


def _xyz(x: float, y: float, z: float) -> bytes:
    return b"XYZ " + bytes(4) + pack(">3i", *(round(value * 65536) for value in (x, y, z)))


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + pack(">IH", 1, round(gamma * 256)) + bytes(2)


def _profile(space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"desc": b"desc" + bytes(4) + pack(">I", 5) + b"test\0" + bytes(78 + 3), b"wtpt": _xyz(*D50)} | tags
    start, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + pack(">II", start + len(body), len(data))
        body += data
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = pack(">I4s", start + len(body), bytes(4)) + bytes([2, 0x40, 0, 0]) + kind + space + pcs
    head += pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + pack(">3i", *(round(v * 65536) for v in D50))
    return head.ljust(128, b"\0") + pack(">I", len(tags)) + table + body

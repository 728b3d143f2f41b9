import hashlib
import math

import pytest
import torch

from experiments.emoji.evaluate import by_hash, interval, nearest, psnr, retrieval, sharpness
from unclip.data.embeddings import Embeddings
from unclip.types import Batch, Text


def test_interval_covers_the_mean_and_narrows_with_n():
    few, many = interval([0.0, 1.0] * 20), interval([0.0, 1.0] * 500)
    assert few["mean"] == many["mean"] == 0.5 and (few["n"], many["n"]) == (40, 1000)
    assert few["low"] < 0.5 < few["high"]
    # a fair coin's mean has a standard error of 0.5 / sqrt(n)
    assert many["high"] - many["low"] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(1000), rel=0.15)


def test_by_hash_orders_by_sha1_of_the_caption():
    captions = ["a", "b", "c", "d"]
    order = by_hash(captions, captions, 3)
    assert len(order) == 3
    hashes = [hashlib.sha1(captions[i].encode()).hexdigest() for i in order]
    assert hashes == sorted(hashes)


def test_psnr_and_sharpness():
    x = torch.zeros(1, 3, 8, 8)
    assert psnr(x, x + 0.2) == pytest.approx(20.0, abs=1e-4)  # 0.1 of a unit range: 20 dB
    ramp = torch.linspace(-1, 1, 9).expand(1, 3, 9, 9)
    assert sharpness(ramp) == pytest.approx(0.125, abs=1e-6)  # 0.25 across, 0 down


class Colours:
    """Five flat pictures."""

    def __len__(self):
        return 5

    def batch(self, rows):
        images = torch.stack([torch.full((3, 4, 4), i / 5) for i in rows])
        return Batch(keys=[str(i) for i in rows], images=images)


def test_nearest_ranks_the_true_picture():
    drawn = torch.stack([torch.full((3, 4, 4), 0.41), torch.full((3, 4, 4), 0.41)])
    assert nearest(drawn, Colours(), [2, 4]).tolist() == [0, 3]


def test_retrieval_counts_better_pictures():
    images = torch.eye(4)
    texts = torch.tensor([[1.0, 0, 0, 0], [1.0, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    text = Text(list("abcd"), torch.zeros(4, 1).long(), texts, torch.zeros(4, 1, 4), torch.ones(4, 1).bool())
    found = retrieval(Embeddings(list("abcd"), images, text), range(4))
    assert found["text to image, top-1"]["mean"] == 0.75
    assert found["text to image, top-5"]["mean"] == 1.0

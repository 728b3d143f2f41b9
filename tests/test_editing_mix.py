"""Mixing: the mean on the sphere, against slerp and against what defines it, and the pictures of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch.nn.functional import cosine_similarity, normalize

from unclip import UnCLIP, slerp
from unclip.editing.mix import _shares
from unclip.editing.slerp import spherical_mean
from unclip.images import to_pil
from unclip.randomness import Noise


@pytest.fixture(scope="module")
def pipe() -> UnCLIP:
    return tiny.pipeline()


def vectors(k: int, d: int = 8, seed: int = 0) -> torch.Tensor:
    return Noise.of(seed, range(k)).normal((d,)) * torch.arange(1, k + 1)[:, None]


def test_two_vectors_are_slerped() -> None:
    a, b = vectors(2)
    for weights in ([1.0, 1.0], [3.0, 1.0], [0.0, 2.0], [1.0, 0.0]):
        w = torch.tensor(weights)
        assert torch.equal(spherical_mean(torch.stack([a, b]), w), slerp(a[None], b[None], float(w[1] / w.sum()))[0])
    third = torch.cat([vectors(2), vectors(2)[1:]])  # one of the two twice: the iteration, which has to end where slerp does
    mean = spherical_mean(third, torch.tensor([0.5, 0.25, 0.25]))
    assert torch.allclose(mean, slerp(a[None], b[None], 0.5)[0], atol=1e-6)


def test_the_ways_from_the_mean_to_all_directions_sum_up_to_nothing() -> None:
    x, w = vectors(5).double(), torch.tensor([1.0, 2, 3, 0, 4]).double()
    mean = spherical_mean(x, w)
    m, u = normalize(mean, dim=0), normalize(x, dim=1)
    cos = u @ m
    ways = (torch.acos(cos) / (1 - cos**2).sqrt())[:, None] * (u - cos[:, None] * m)
    assert (w @ ways).norm() < 1e-9 and mean.norm() == pytest.approx(float(w @ x.norm(dim=1) / w.sum()))
    assert torch.allclose(spherical_mean(x[[4, 2, 0, 1]], w[[4, 2, 0, 1]] * 7), mean)  # of the ratios, in any order
    turned = torch.linalg.qr(Noise.of(9).normal((8, 8))[0].double()).Q
    assert torch.allclose(spherical_mean(x @ turned, w), mean @ turned)
    assert torch.allclose(spherical_mean(x[:3] * 0 + x[0], w[:3]), x[0])
    assert torch.isfinite(spherical_mean(torch.cat([x[:2], -x[:1]]), torch.ones(3))).all()  # opposite ones


def test_a_mixture_lies_on_the_path_of_an_interpolation(pipe: UnCLIP) -> None:
    captions = tiny.CAPTIONS[:2]
    made = pipe.mix(captions, [3.0, 1.0], n=2, seed=4, size=16)
    ends = pipe.generate(captions, seed=4, size=16).latent.image_embed
    assert torch.allclose(made.latent.image_embed, slerp(ends[:1], ends[1:], 0.25).expand(2, -1), atol=1e-5)
    assert made.labels[0] == "0.75 a red heart + 0.25 a cat with a hat" and made.columns == 2 and made.verb == "mix"
    assert (made.images[0] - made.images[1]).abs().max() > 0.01
    assert (pipe.mix(captions, [3.0, 1.0], seed=4, first=1, size=16).images[0] - made.images[1]).abs().max() < 0.02
    first = pipe.mix(captions, [1.0, 0.0], n=2, seed=4, size=16).latent.image_embed
    assert torch.equal(first, ends[:1].expand(2, -1))


def test_captions_pictures_latents_and_what_was_drawn(pipe: UnCLIP, tmp_path: Path) -> None:
    picture, drawn = Noise.of(0).uniform((3, 20, 24))[0] - 0.5, pipe.generate(tiny.CAPTIONS[2], size=16, seed=1)
    to_pil(picture).save(tmp_path / "x.png")
    latent = pipe.generate(tiny.CAPTIONS[1], size=16).latent
    latent.save(tmp_path / "z.safetensors")
    made = pipe.mix([tiny.CAPTIONS[0], tmp_path / "x.png", drawn, latent], size=64)
    same = pipe.mix([tiny.CAPTIONS[0], str(tmp_path / "x.png"), drawn.latent, str(tmp_path / "z.safetensors")], size=64)
    assert torch.equal(made.images, same.images) and made.images.shape == (1, 3, 64, 64)
    embeds = torch.cat(
        [
            pipe.generate(tiny.CAPTIONS[0], size=16).latent.image_embed,
            pipe.clip.encode_image((((picture + 1) * 127.5).round() / 127.5 - 1)[None]),
            drawn.latent.image_embed,
            latent.image_embed,
        ]
    )
    near = cosine_similarity(made.latent.image_embed, embeds)
    assert (near > 0).all() and near.min() > cosine_similarity(embeds[:1], embeds[1:]).min()
    assert len(pipe.vary(made, n=1, size=16)) == 1  # a latent like others
    without = UnCLIP(pipe.clip, None, pipe.decoder)
    assert len(without.mix([picture, latent], [1.0, 2.0])) == 1


@pytest.mark.parametrize(
    ("sources", "weights", "told"),
    [
        (["a", "b"], [0.0, 0.0], r"weights are \[0.0, 0.0\]; they are at least 0, finite, and not all 0"),
        (["a", "b"], [1.0, -1.0], "at least 0"),
        (["a", "b"], [1.0, float("nan")], "finite"),
        (["a", "b"], [1.0], "1 weights came with 2 sources"),
        (["a"], None, "1 source was given; a mixture is of two or more"),
        ("a", None, "1 source was given"),
        (["a", "b.png"], None, "there is no picture file"),
        (["a", torch.zeros(2, 3, 16, 16)], None, "a source holds 2 pictures"),
    ],
)
def test_bad_input(pipe: UnCLIP, sources: Any, weights: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        if weights is not None:
            _shares(weights, len(sources))
        pipe.mix(sources, size=16)

"""Edits through the latent pair, against a decoder whose exact answer is known: pictures N(mu(z_i), S^2) per pixel."""

from __future__ import annotations

import inspect
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from decoder import Decoder
from unclip import PCA, Inversion, Latent, Sampling, UnCLIP, slerp
from unclip.data.images import load_image
from unclip.editing import edits as manipulate
from unclip.editing.edits import NoisePath, check_choice
from unclip.editing.sources import _is_caption
from unclip.randomness import Noise
from unclip.types import Cond, Denoise, Prediction, Step

S, SIZE = 0.3, 16
EXACT = Inversion(steps=250, refine=3, lowest=1)
MAP = Noise.of(11, range(tiny.EMBED)).normal((3, SIZE, SIZE)) * 0.1


def mu(image_embed: Tensor) -> Tensor:
    return torch.einsum("bd,dchw->bchw", normalize(image_embed, dim=-1), MAP)


class OracleDecoder(Decoder):
    """The DDIM path of a Gaussian leads from x_T to mu(z_i) + S x_T.  Guidance 2 doubles mu."""

    def denoise(self, cond: Cond, count: int, sampling: Sampling, negative: Cond | None = None) -> Denoise:
        assert cond.image_embed is not None and len(cond.image_embed) == count
        mean = mu(cond.image_embed) * sampling.guidance

        def at(x_t: Tensor, t: Tensor) -> Prediction:
            alpha, sigma = self.schedule.at(t, x_t)
            x0 = mean + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x_t - alpha * mean)
            return Prediction(x0, (x_t - alpha * x0) / sigma)

        return at


@pytest.fixture(scope="module")
def pipe() -> UnCLIP:
    config = tiny.decoder(text=False).config.replace(sampling=Sampling(sampler="ddim", steps=100, guidance=1.0))
    return UnCLIP(tiny.ForeignEncoder(), tiny.ForeignPrior(), OracleDecoder(config.replace(inversion=EXACT)), name="oracle")


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return Noise.of(3, range(2)).normal((3, SIZE, SIZE)).mul(0.3).clamp(-1, 1)


@pytest.fixture(scope="module")
def latent(pipe: UnCLIP, pictures: Tensor) -> Latent:
    return pipe.invert(pictures)


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def near(a: Tensor, b: Tensor) -> bool:
    """Equal up to what another batch size does to the last bits."""
    return torch.allclose(a, b, atol=1e-4)


# slerp


def test_slerp_turns_each_sample_in_its_own_plane() -> None:
    a = torch.tensor([[2.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    b = torch.tensor([[0, 4.0, 0], [0, 1, 1], [-1, 1e-3, 0]])
    half = slerp(a, b, 0.5)
    r = 3 / math.sqrt(2)
    assert torch.allclose(half[0], torch.tensor([r, r, 0]))  # the norm half way between 2 and 4
    assert torch.allclose(cosine_similarity(half[1], a[1], dim=0), torch.tensor(math.cos(math.pi / 8)))
    assert half[2, 1] > 0.99 and abs(half[2, 0]) < 1e-3
    turned = slerp(a, b, torch.tensor([0.0, 1.0, 1.0]))
    assert torch.allclose(turned, torch.stack([a[0], b[1], b[2]]), atol=1e-6)
    images = slerp(a.view(3, 1, 3, 1), b.view(3, 1, 3, 1), 0.5)
    assert torch.equal(images.view(3, 3), half)  # of any shape


def test_slerp_of_equal_nearly_equal_opposite_and_zero_vectors() -> None:
    a = Noise.of(0, range(3)).normal((6,))
    assert torch.allclose(slerp(a, a, 0.3), a, atol=1e-6)
    assert torch.allclose(slerp(a, 2 * a, 0.5), 1.5 * a, atol=1e-6)
    near = a + 1e-6 * a.roll(1, 0)
    assert torch.allclose(slerp(a, near, 0.5), (a + near) / 2, atol=1e-6)
    for fraction, cos in ((0.0, 1.0), (0.25, math.sqrt(0.5)), (0.5, 0.0), (1.0, -1.0)):
        turned = slerp(a, -3 * a, fraction)
        assert torch.allclose(cosine_similarity(turned, a), torch.full((3,), cos), atol=1e-5)
        assert torch.allclose(turned.norm(dim=1), a.norm(dim=1) * (1 + 2 * fraction), rtol=1e-5)
    zero = torch.zeros_like(a)
    assert torch.allclose(slerp(zero, a, 0.5), a / 2) and torch.allclose(slerp(a, zero, 0.5), a / 2)
    assert torch.equal(slerp(zero, zero, 0.5), zero)


# The latent


def test_inversion_finds_the_noise_that_the_picture_came_from(pipe: UnCLIP, pictures: Tensor, latent: Latent) -> None:
    assert torch.equal(latent.image_embed, pipe.clip.encode_image(pictures))
    expected = (pictures - mu(latent.image_embed)) / S
    assert rms(latent.x_t - expected) < 0.01 * rms(expected)
    assert latent.t == 1000 and latent.timesteps[-1] == 1 and latent.captions == ("", "")
    assert rms(pipe.reconstruct(latent).images - pictures) < 1e-4
    other = replace(latent, image_embed=latent.image_embed.flip(0))
    assert rms(pipe.reconstruct(other).images - pictures) > 0.1
    assert rms(pipe.reconstruct(replace(latent, x_t=latent.x_t.flip(0))).images - pictures) > 0.1


def test_a_picture_does_not_depend_on_its_neighbours(pipe: UnCLIP, pictures: Tensor, latent: Latent) -> None:
    alone = pipe.invert(pictures[1])
    assert torch.allclose(alone.x_t, latent.x_t[1:], atol=1e-5)
    assert torch.equal(latent.rows(slice(1, 2)).x_t, latent.x_t[1:])


def test_a_saved_latent_gives_the_same_picture(pipe: UnCLIP, latent: Latent, tmp_path: Path) -> None:
    latent.save(tmp_path / "l.safetensors")
    again = pipe.reconstruct(tmp_path / "l.safetensors")
    assert torch.equal(again.images, pipe.reconstruct(latent).images) and again.latent.models == latent.models


def test_the_latent_of_another_model_is_refused(pipe: UnCLIP, latent: Latent) -> None:
    for part in ("clip", "decoder"):
        foreign = replace(latent, models={**latent.models, part: "0123456789abcdef"})
        for verb in (pipe.reconstruct, pipe.vary, lambda z: pipe.text_diff(z, "a cat"), lambda z: pipe.interpolate([z, latent])):
            with pytest.raises(ValueError, match=f"made with another {part} .0123456789abcdef.*invert the picture again"):
                verb(foreign)
    moved = tiny.pipeline()
    made = moved.generate("a red heart", size=16)
    moved.clip_identity = {"answers": "with other last digits, as on another machine"}
    moved.reconstruct(made, size=16)
    with torch.no_grad():
        next(moved.clip.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="another clip"):
        moved.reconstruct(made, size=16)
    other = UnCLIP(pipe.clip, pipe.prior, tiny.decoder(text=False), name="other")
    with pytest.raises(ValueError, match="another decoder"):
        other.reconstruct(latent)


def test_from_the_lowest_listed_timestep_and_back(pipe: UnCLIP, pictures: Tensor) -> None:
    latent = pipe.invert(pictures, Inversion(steps=50, refine=3, lowest=30))
    assert latent.timesteps[-1] == 30 and min(latent.timesteps[:-1]) > 30
    assert rms(pipe.reconstruct(latent).images - pictures) < 1e-4
    plain = pipe.reconstruct(pipe.invert(pictures, Inversion(steps=50, refine=0, lowest=30))).images
    assert rms(plain - pictures) > 5 * rms(pipe.reconstruct(latent).images - pictures)


# Variations


def test_eta_0_is_the_picture_itself_and_larger_ones_spread(pipe: UnCLIP, pictures: Tensor, latent: Latent) -> None:
    same = pipe.vary(latent, n=3, eta=0.0)
    assert same.columns == 3 and torch.equal(same.images[:3], same.images[:1].expand(3, -1, -1, -1))
    assert near(same.images[::3], pipe.reconstruct(latent).images)
    spread = [rms(pipe.vary(latent, n=8, eta=eta).images.unflatten(0, (2, 8)).std(1)) for eta in (0.2, 0.5, 1.0)]
    assert spread[0] < 0.8 * spread[1] and spread[1] < spread[2]
    drawn = pipe.vary(latent, n=64, eta=1.0).images.unflatten(0, (2, 64))
    assert abs(rms(drawn.std(1)) / S - 1) < 0.1  # ddpm's own spread: the source's x_T is forgotten
    assert rms(drawn.mean(1) - mu(latent.image_embed)) < 0.1


def test_variation_k_is_made_again_alone(pipe: UnCLIP, latent: Latent) -> None:
    for x_t in ("kept", "fresh"):
        many = pipe.vary(latent, n=3, seed=4, x_t=x_t)  # type: ignore[arg-type]
        alone = pipe.vary(latent.rows(slice(1, 2)), n=1, seed=4, first=5, x_t=x_t)  # type: ignore[arg-type]
        assert torch.allclose(alone.images[0], many.images[5], atol=1e-5)
        assert rms(many.images[5] - many.images[4]) > 0.1


def test_a_fresh_start_needs_no_inversion(pipe: UnCLIP, pictures: Tensor, latent: Latent, monkeypatch: Any) -> None:
    expected = pipe.vary(latent, n=2, x_t="fresh").images
    monkeypatch.setattr(pipe.decoder, "invert", None)
    assert torch.equal(pipe.vary(pictures, n=2, x_t="fresh").images, expected)


def test_a_generation_knows_its_latent() -> None:
    pipe = tiny.pipeline()
    made = pipe.generate("a red heart", n=2, seed=3, size=16)
    assert made.latent.sampling == pipe.decoder.resolve()  # guided, as it was drawn
    assert torch.equal(pipe.vary(made, n=1, eta=0.0, size=16).images, made.images)
    assert torch.equal(pipe.reconstruct(made.latent, size=16).images, made.images)
    assert rms(pipe.vary(made, n=1, eta=1.0, size=16).images - made.images) > 0.05
    stochastic = pipe.generate("a red heart", size=16, decoder=Sampling(sampler="ddpm", steps=3, variance="small"))
    assert pipe.reconstruct(stochastic, size=16).latent.sampling.sampler == "ddim"  # what noise ddpm drew, no latent knows


def test_what_vary_refuses(pipe: UnCLIP, latent: Latent) -> None:
    for changes, message in (
        ({"n": 0}, "n is 0"),
        ({"eta": -0.1}, "eta is -0.1; it runs from 0"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"first": -1}, "first is -1; it must be"),
        ({"size": 17}, "size is 17; this pipeline makes pictures of 16 pixels"),
        ({"guidance": -1.0}, "guidance is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.vary(latent, **changes)  # type: ignore[arg-type]


# Interpolations


def test_a_path_has_its_sources_on_it(pipe: UnCLIP, pictures: Tensor, latent: Latent) -> None:
    path = pipe.interpolate([pictures[0], latent.rows(slice(1, 2)), pictures[0]], steps=3)
    assert len(path) == 5 and path.labels == ("0.00", "0.50", "1.00", "1.50", "2.00")
    for k, source in ((0, 0), (2, 1), (4, 0)):
        assert rms(path.images[k] - pictures[source]) < 1e-3
    z = slerp(latent.image_embed[:1], latent.image_embed[1:], 0.5)
    x_t = slerp(latent.x_t[:1], latent.x_t[1:], 0.5)
    assert rms(path.images[1] - (mu(z) + S * x_t)) < 0.01
    assert near(pipe.interpolate([latent], steps=3).images[1], path.images[1])  # a latent of two pictures is two sources


def test_the_pictures_of_a_path_are_inverted_together(pipe: UnCLIP, pictures: Tensor, latent: Latent) -> None:
    told: list[Step] = []
    sources = [pictures[0], latent.rows(slice(0, 1)), pictures]
    path = pipe.interpolate(sources, steps=2, callback=told.append)
    climb = [step for step in told if step.stage == "invert"]
    assert {(step.rows.start, step.rows.stop, step.total) for step in climb} == {(0, 3, 3)}
    assert [step.step for step in climb] == list(range(1, climb[0].steps + 1))
    assert near(path.images, pictures[[0, 0, 0, 1]])


def test_a_path_with_one_fixed_noise(pipe: UnCLIP, pictures: Tensor, monkeypatch: Any) -> None:
    monkeypatch.setattr(pipe.decoder, "invert", None)  # whose x_T nobody would look at
    path = pipe.interpolate(list(pictures), steps=4, x_t="fixed", seed=2)
    assert (path.latent.x_t == path.latent.x_t[:1]).all() and path.latent.t == 1000
    assert rms(path.images - (mu(path.latent.image_embed) + S * path.latent.x_t).clamp(-1, 1)) < 0.01
    assert not torch.equal(path.latent.x_t, pipe.interpolate(list(pictures), x_t="fixed", steps=4, seed=3).latent.x_t)


def test_captions_are_drawn_first() -> None:
    pipe = tiny.pipeline()
    path = pipe.interpolate(["a red heart", "two dogs"], steps=2, size=16)
    drawn = pipe.generate(["a red heart", "two dogs"], size=16).latent
    assert torch.allclose(path.latent.image_embed, drawn.image_embed, atol=1e-5) and path.latent.captions == ("", "")
    assert torch.allclose(path.latent.x_t, drawn.x_t, atol=1e-5) and path.latent.sampling == drawn.sampling
    mixed = pipe.interpolate(["a red heart", Image.new("RGB", (20, 20), "red")], steps=2, size=16, inversion=Inversion(steps=3))
    assert mixed.latent.sampling.guidance == 1  # among pictures a drawn one is inverted too
    made = pipe.generate("two dogs", size=16)
    among_drawn = pipe.interpolate(["a red heart", made], steps=2, size=16)
    assert among_drawn.latent.sampling == drawn.sampling and torch.equal(among_drawn.latent.x_t[:1], drawn.x_t[:1])
    ddim = pipe.generate("two dogs", size=16, decoder=Sampling(sampler="ddim", steps=3))  # drawn, but in another way
    with pytest.raises(ValueError, match="drawn by different samplings"):
        pipe.interpolate(["a red heart", ddim], steps=2, size=16, inversion=Inversion(steps=4))
    with pytest.raises(ValueError, match="no picture file 'heart.png'"):
        pipe.interpolate(["heart.png", "two dogs"])


def test_a_typing_error_in_a_path_does_not_become_a_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my photos").mkdir()
    paths = ("my photo.png", "My Photo.JPG", "my latent.safetensors", "my photos", str(tmp_path), "photo.pgn")
    assert not any(map(_is_caption, paths))
    assert all(map(_is_caption, ("", " ", "two dogs", "e.g", "a cat, e.g", "a dog. Good boy", "no. 5", "long " * 2000)))
    pipe = tiny.pipeline()
    for path, message in (("my photo.png", "no picture file 'my photo.png'"), ("my photos", "my photos.* it is a folder")):
        with pytest.raises(ValueError, match=message):
            pipe.interpolate(["two dogs", path])


def test_what_interpolate_refuses(pipe: UnCLIP, pictures: Tensor, latent: Latent) -> None:
    with pytest.raises(ValueError, match="1 picture was given"):
        pipe.interpolate([pictures[0]])
    with pytest.raises(ValueError, match="1 picture was given"):
        pipe.interpolate(pictures[:1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps is 1"):
        pipe.interpolate(list(pictures), steps=1)
    with pytest.raises(ValueError, match="x_t is 'lerp'; it must be one of slerp, fixed"):
        check_choice("x_t", "lerp", NoisePath)  # the type checker of the tests would be quicker
    other = pipe.invert(pictures[0], Inversion(steps=10))
    with pytest.raises(ValueError, match="drawn by different samplings"):
        pipe.interpolate([latent.rows(slice(0, 1)), other])


# Text diffs


@pytest.mark.parametrize("source", ["a photo", "", None])
def test_the_embedding_turns_by_a_part_of_the_angle_and_keeps_its_norm(pipe: UnCLIP, latent: Latent, source: str | None) -> None:
    edit = pipe.text_diff(latent, "a cat", source, theta=0.5, steps=3)
    assert edit.columns == 3 and edit.labels[:3] == ("theta 0.00", "theta 0.25", "theta 0.50")
    assert torch.equal(edit.latent.image_embed[::3], latent.image_embed)
    assert near(edit.images[::3], pipe.reconstruct(latent).images)
    texts = normalize(pipe.clip.encode_text(["a cat"] if source is None else ["a cat", source]).embed, dim=-1)
    z_d = texts[0] if source is None else texts[0] - texts[1]
    z = edit.latent.image_embed.unflatten(0, (2, 3))
    assert torch.allclose(z.norm(dim=-1), latent.image_embed.norm(dim=-1, keepdim=True).expand(2, 3), rtol=1e-5)
    angles = torch.acos(cosine_similarity(z, z_d[None, None], dim=-1).double())
    assert torch.allclose(angles[:, 1] / angles[:, 0], torch.full((2,), 0.75, dtype=torch.double), atol=1e-4)
    assert torch.allclose(angles[:, 2] / angles[:, 0], torch.full((2,), 0.5, dtype=torch.double), atol=1e-4)
    expected = mu(edit.latent.image_embed) + S * latent.x_t.repeat_interleave(3, 0)
    assert rms(edit.images - expected.clamp(-1, 1)) < 0.01


def test_guidance_is_an_option(pipe: UnCLIP, latent: Latent) -> None:
    guided = pipe.text_diff(latent, "a cat", guidance=2.0, steps=2)
    assert guided.latent.sampling.guidance == 2
    assert rms(guided.images[::2] - pipe.reconstruct(latent).images) > 0.05


def test_a_captioned_latent_is_edited_by_its_embedding_alone() -> None:
    pipe = tiny.pipeline()
    made = pipe.generate("a red heart", size=16)
    edit = pipe.text_diff(made, "two dogs", steps=2, size=16)
    bare = replace(made.latent, captions=("",))
    assert near(edit.images[:1], pipe.reconstruct(bare, size=16).images) and edit.latent.captions == ("", "")


def test_what_text_diff_refuses(pipe: UnCLIP, latent: Latent) -> None:
    for changes, message in (
        ({"theta": 0.0}, "theta is 0.0; it is the fraction of the angle"),
        ({"theta": 1.1}, "theta is 1.1"),
        ({"steps": 1}, "steps is 1"),
        ({"target": " "}, "the target caption is empty"),
        ({"source": "a cat"}, "'a cat' and 'a cat' mean the same"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.text_diff(latent, **{"target": "a cat", **changes})


def test_settings_of_a_wrong_kind_are_refused_before_any_work(pipe: UnCLIP, latent: Latent) -> None:
    asked: list[tuple[Any, tuple[Any, ...]]] = [
        (manipulate.invert, ()),
        (manipulate.reconstruct, ()),
        (manipulate.vary, ()),
        (manipulate.text_diff, ("a cat",)),
    ]
    for verb, arguments in asked:  # asked directly: the type checker of the tests would be quicker
        with pytest.raises(ValueError, match="inversion is 10; it must be an Inversion"):
            inspect.unwrap(verb)(pipe, latent, *arguments, inversion=10)
        if verb is not manipulate.invert:
            with pytest.raises(ValueError, match="seed is 1.7; it must be a whole number"):
                inspect.unwrap(verb)(pipe, latent, *arguments, seed=1.7)
    with pytest.raises(ValueError, match="inversion is 10"):
        inspect.unwrap(manipulate.interpolate)(pipe, [latent], inversion=10)
    with pytest.raises(ValueError, match="seed is None"):
        inspect.unwrap(manipulate.interpolate)(pipe, [latent], seed=None)
    with pytest.raises(ValueError, match="seed is 'a'"):
        inspect.unwrap(manipulate.reconstruct_pca)(pipe, latent, [1], seed="a")
    for target, source in ((None, None), ("a cat", 5)):
        with pytest.raises(ValueError, match=f"the target is {target!r} and the source {source!r}: both are captions"):
            inspect.unwrap(manipulate.text_diff)(pipe, latent, target, source)
    assert inspect.unwrap(manipulate.reconstruct)(pipe, latent, seed=torch.tensor(3)).metadata["seed"] == "3"


# Principal components


def test_reconstructions_from_principal_components(pipe: UnCLIP, pictures: Tensor, latent: Latent) -> None:
    pca = PCA.fit(Noise.of(5, range(40)).normal((tiny.EMBED,)) * torch.linspace(2, 0.1, tiny.EMBED))
    edit = pipe.reconstruct_pca(pictures, [1, 4, tiny.EMBED], pca)
    assert edit.columns == 3 and edit.labels[:3] == ("1 components", "4 components", f"{tiny.EMBED} components")
    assert torch.allclose(edit.latent.image_embed[2::3], latent.image_embed, atol=1e-5)  # all of them: nothing is lost
    assert (edit.latent.x_t == edit.latent.x_t[:1]).all()
    assert rms(edit.images - (mu(edit.latent.image_embed) + S * edit.latent.x_t).clamp(-1, 1)) < 0.01
    with pytest.raises(ValueError, match="came without principal components"):
        pipe.reconstruct_pca(pictures, [1])
    with pytest.raises(ValueError, match="k is 13; of these components 0 to 12 can be kept"):
        pipe.reconstruct_pca(pictures, [1, 13], pca)
    with pytest.raises(ValueError, match="no numbers of components"):
        pipe.reconstruct_pca(pictures, [], pca)


# Pictures that come in


def test_pictures_of_every_kind(pipe: UnCLIP, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    plain = Image.fromarray(pixels)
    expected = pipe.vary(plain, n=1, x_t="fresh")
    plain.save(tmp_path / "a.png")
    clear = Image.fromarray(np.dstack([pixels, np.full((16, 16), 255, np.uint8)]))
    tensor = load_image(plain)
    for same in (tmp_path / "a.png", str(tmp_path / "a.png"), clear, tensor, tensor[None]):
        assert torch.equal(pipe.vary(same, n=1, x_t="fresh").images, expected.images)
    wide = Image.new("RGB", (48, 16), "black")
    wide.paste(plain, (16, 0))
    cropped = pipe.vary(wide, n=1, x_t="fresh").sources  # what the decoder would see: cropped, not squashed
    assert expected.sources is not None and cropped is not None and torch.equal(cropped, expected.sources)
    assert len(pipe.vary([plain, wide], n=2, x_t="fresh")) == 4


def test_pictures_that_are_none(pipe: UnCLIP, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for source, message in (
        (tmp_path / "absent.png", "no picture file"),
        (tmp_path / "text.png", "cannot be decoded"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (Image.new("RGB", (7, 500)), "7 x 500 pixels shows nothing; its shorter side must have 8"),
        ([], "no picture was given"),
        (torch.full((3, 9, 9), 200.0), "use x / 127.5 - 1"),
        (tmp_path / "absent.safetensors", "cannot be read as a latent"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.reconstruct(source)  # type: ignore[arg-type]


def test_of_an_animation_the_first_frame_is_used_and_said(pipe: UnCLIP, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="the first of its 2 frames"):
        animated = pipe.invert(tmp_path / "a.gif", Inversion(steps=5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(animated.x_t, pipe.invert(frames[0], Inversion(steps=5)).x_t)


def test_what_cannot_be_drawn_is_refused_before_the_inversion(pipe: UnCLIP, pictures: Tensor, monkeypatch: Any) -> None:
    monkeypatch.setattr(pipe.decoder, "invert", None)
    for changes in ({"size": 17}, {"guidance": -1.0}):
        for verb in (pipe.vary, lambda x, **k: pipe.text_diff(x, "a cat", **k), lambda x, **k: pipe.interpolate([x], **k)):
            with pytest.raises(ValueError, match="size is 17|guidance is -1"):
                verb(pictures, **changes)  # type: ignore[operator]


def test_values_of_an_inversion(pipe: UnCLIP, pictures: Tensor) -> None:
    with pytest.raises(ValueError, match="lowest is 1000, .*must lie below 1000"):
        pipe.invert(pictures, Inversion(lowest=1000))
    for changes, message in (
        ({"steps": 1}, "steps is 1"),
        ({"steps": None}, "steps is None"),
        ({"refine": -1}, "refine is -1"),
        ({"refine": 1.5}, "refine is 1.5; it must be a whole number"),
        ({"lowest": 0}, "lowest is 0"),
        ({"lowest": 1.5}, "lowest is 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            Inversion(**changes)

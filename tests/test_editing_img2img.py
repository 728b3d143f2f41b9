"""Image to image, against a decoder whose exact answer is known, and on whole tiny pipelines of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import karlo
import pytest
import tiny
import torch
from PIL import Image
from test_editing_edits import MAP, SIZE, OracleDecoder, S, mu
from test_pipelines_cascade import adm, glide  # noqa: F401 (fixtures)

from unclip import Cascade, Sampling, UnCLIP
from unclip.editing.init_image import check_strength
from unclip.images import to_pil
from unclip.randomness import Noise

CAPTION = tiny.CAPTIONS[0]


@pytest.fixture(scope="module")
def pipe() -> UnCLIP:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def oracle() -> UnCLIP:
    config = tiny.decoder(text=False).config.replace(sampling=Sampling(sampler="ddim", steps=100, guidance=1.0))
    return UnCLIP(tiny.ForeignEncoder(), tiny.ForeignPrior(), OracleDecoder(config))


@pytest.fixture(scope="module")
def karlo_pipe(tmp_path_factory: pytest.TempPathFactory) -> UnCLIP:
    """Karlo's layout with random weights; one of its two sizes, and fewer steps."""
    return UnCLIP.from_pretrained(karlo.save_diffusers(tmp_path_factory.mktemp("karlo") / "both", "both"))


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return Noise.of(3, range(2)).normal((3, SIZE, SIZE)).mul(0.3).clamp(-1, 1)


def test_strength_1_is_generate_to_the_last_bit(pipe: UnCLIP, pictures: torch.Tensor) -> None:
    asked: dict[str, Any] = {"n": 2, "seed": 5, "first": 3}
    made, drawn = pipe.img2img(pictures, CAPTION, 1.0, **asked), pipe.generate([CAPTION] * 2, **asked)
    assert all(torch.equal(made.stages[size], drawn.stages[size]) for size in (16, 64, 256))
    assert torch.equal(made.latent.x_t, drawn.latent.x_t) and made.columns == 2 and len(made) == 4
    assert (pipe.img2img(pictures, CAPTION, 0.9, **asked, size=16).images - drawn.stages[16]).abs().max() > 0.05


@pytest.mark.parametrize(("strength", "taken"), [(0.25, 25), (0.4, 40), (0.404, 40), (1e-9, 1), (0.99, 99)])
def test_the_picture_is_noised_to_a_listed_timestep_and_drawn_from_there(
    strength: float, taken: int, oracle: UnCLIP, pictures: torch.Tensor
) -> None:
    """A Gaussian's DDIM path keeps the noise's place: x0 = mu + S (x_t - alpha mu) / sqrt(alpha^2 S^2 + sigma^2)."""
    pipe = oracle
    made = pipe.img2img(pictures, ["a red heart", "two dogs"], strength, seed=1)
    latent = made.latent
    t = latent.t
    assert latent.timesteps == pipe.decoder.resolve().steps[100 - taken :]
    alpha, sigma = float(pipe.decoder.schedule.alpha[t]), float(pipe.decoder.schedule.sigma[t])
    noise = Noise.of(1, range(2)).at("decoder").at("x_T").normal((3, SIZE, SIZE))
    assert torch.allclose(latent.x_t, alpha * pictures + sigma * noise, atol=1e-6)
    mean = mu(latent.image_embed)
    exact = mean + S * (latent.x_t - alpha * mean) / (alpha**2 * S**2 + sigma**2) ** 0.5
    assert (made.images - exact.clamp(-1, 1)).abs().max() < 0.03 and MAP.std() > 0.05
    again = pipe.reconstruct(latent)  # x_t and z_i are all that it came from
    assert torch.allclose(again.images, made.images, atol=1e-5)


def test_more_strength_leads_further_away(oracle: UnCLIP, pictures: torch.Tensor) -> None:
    def distance(strength: float) -> float:
        made = oracle.img2img(pictures, CAPTION, strength, n=6).images
        return float((made - pictures.repeat_interleave(6, 0)).square().mean())

    far = [distance(strength) for strength in (0.05, 0.3, 0.6, 1.0)]
    assert far == sorted(far) and far[0] < 0.2 * far[-1]


def test_every_kind_of_picture(pipe: UnCLIP, tmp_path: Path) -> None:
    photo = Image.effect_noise((50, 30), 80).convert("RGB")
    photo.save(tmp_path / "photo.jpg")
    by_file = pipe.img2img(tmp_path / "photo.jpg", CAPTION, 0.5)
    assert by_file.images.shape == (1, 3, 256, 256) and by_file.sources.shape == (1, 3, 256, 256)
    made = pipe.img2img(pipe.generate(CAPTION, size=64), "two dogs", 0.5, size=64)  # what was drawn, and what was made of it
    assert pipe.img2img(made, CAPTION, 0.5, size=64).images.shape == (1, 3, 64, 64)
    labels = pipe.img2img(made, ["two dogs", CAPTION], 0.5, size=16).labels  # one picture, several captions
    assert labels == ("two dogs, strength 0.5", f"{CAPTION}, strength 0.5")


def test_cascades(glide: Cascade, adm: Cascade, pictures: torch.Tensor) -> None:  # noqa: F811
    for cascade, what in ((glide, {"caption": "a cat"}), (adm, {"labels": "dog"}), (adm, {"labels": ["dog", 2]}), (glide, {})):
        made = cascade.img2img(pictures, **what, strength=0.5, n=2, seed=2)
        assert made.latent is None and made.images.shape == (4, 3, 64, 64) and made.sheet().width > 3 * 64
        whole = cascade.img2img(pictures, **what, strength=1.0, n=2, seed=2)
        asked = {"captions": what["caption"]} if "caption" in what else what
        assert not torch.allclose(made.images, whole.images, atol=0.05)
        if len(asked.get("labels", [])) == 2:
            assert torch.equal(whole.images, cascade.generate(**asked, n=2, seed=2).images)


def test_each_picture_is_made_again_alone(pipe: UnCLIP, pictures: torch.Tensor) -> None:
    made = pipe.img2img(pictures, ["two dogs", CAPTION], 0.6, n=2, seed=4, size=64)
    alone = pipe.img2img(pictures[1], CAPTION, 0.6, seed=4, first=3, size=64)
    assert (alone.images[0] - made.images[3]).abs().max() < 0.02


def test_karlo(karlo_pipe: UnCLIP) -> None:
    picture = to_pil(Noise.of(0).uniform((3, 20, 20))[0] * 2 - 1)
    made = karlo_pipe.img2img(picture, "a red heart", 0.5, n=2, seed=1)
    assert made.images.isfinite().all() and made.latent.t < 1000
    whole = karlo_pipe.img2img(picture, "a red heart", 1.0, n=2, seed=1)
    assert torch.equal(whole.images, karlo_pipe.generate("a red heart", n=2, seed=1).images)


def test_bad_input(pipe: UnCLIP, pictures: torch.Tensor, tmp_path: Path) -> None:
    latent = pipe.generate(CAPTION, size=16).latent
    latent.save(tmp_path / "x.safetensors")

    def ask(picture: Any = pictures, caption: Any = CAPTION, **options: Any) -> Any:
        return pipe.img2img(picture, caption, **options)

    for call, told in (
        (lambda: ask(strength=0.0), "strength is 0.0; .* above 0, at which nothing would be drawn"),
        (lambda: ask(strength=1.5), "strength is 1.5"),
        (lambda: ask(strength=float("nan")), "strength is nan"),
        (lambda: ask(caption=["a", "b", "c"]), "2 pictures came with 3 captions"),
        (lambda: ask(caption=None), "no caption was given"),
        (lambda: ask(size=17), "size is 17"),
        (lambda: ask(latent), "a latent is no picture"),
        (lambda: ask(tmp_path / "x.safetensors"), "a latent is no picture"),
        (lambda: ask([]), "no picture was given"),
        (lambda: check_strength("0.5"), "strength is '0.5'"),
        (lambda: check_strength(True), "strength is True"),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    with pytest.raises(TypeError, match="negativ"):
        ask(negativ="blurry")
    foreign = UnCLIP(tiny.ForeignEncoder(), tiny.ForeignPrior(), tiny.ForeignDecoder())
    with pytest.raises(ValueError, match="the decoder, a ForeignDecoder, has no `schedule`"):
        foreign.img2img(pictures[..., :8, :8], CAPTION, 0.5)
    assert len(foreign.img2img(pictures[..., :8, :8], CAPTION, 1.0)) == 2

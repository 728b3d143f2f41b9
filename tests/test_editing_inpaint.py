"""Inpainting: what is kept stays to the last bit, what is in a hole does not matter, and the rest is drawn to fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from test_editing_img2img import karlo_pipe  # noqa: F401 (a fixture)
from test_pipelines_cascade import adm, glide  # noqa: F401 (fixtures)
from torch import Tensor

from decoder import Decoder
from unclip import Cascade, Edit, Sampling, UnCLIP
from unclip.clip.preprocess import fit_square
from unclip.conditions import Conditions, ImageEmbedding, Known
from unclip.data.images import load_image
from unclip.editing.inpaint import inpaint_sampling
from unclip.images import to_pil
from unclip.randomness import Noise
from unclip.types import Cond, Denoise, Prediction, Step
from upsamplers import UpsamplerConfig

CAPTION, SIZES = tiny.CAPTIONS[0], (16, 64, 256)


@pytest.fixture(scope="module")
def pipe() -> UnCLIP:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return Noise.of(3, range(2)).uniform((3, 256, 256)) * 1.6 - 0.8


@pytest.fixture(scope="module")
def hole() -> Tensor:
    hole = torch.zeros(256, 256, dtype=torch.bool)
    hole[70:200, 100:] = True
    return hole


def kept(made: Edit, pictures: Tensor, hole: Tensor) -> dict[int, bool]:
    """Whether at every size all pixels that touch no hole are those of the picture brought to that size, far from the hole."""
    equal = {}
    for size, drawn in made.stages.items():
        step = 256 // size
        near = torch.nn.functional.max_pool2d(hole[None, None].float(), step)  # (1, 1, size, size)
        margin = 0 if size == 256 else 2  # where a resized picture looks over the border
        near = torch.nn.functional.max_pool2d(near, 2 * margin + 1, 1, margin)[0, 0] > 0
        assert 0 < near.float().mean() < 1
        rows = len(drawn) // len(pictures)
        equal[size] = torch.equal(drawn[..., ~near], fit_square(pictures, size).repeat_interleave(rows, 0)[..., ~near])
    return equal


def test_kept_pixels_are_the_given_ones_to_the_last_bit_at_every_size(pipe: UnCLIP, pictures: Tensor, hole: Tensor) -> None:
    made = pipe.inpaint(pictures, ["two dogs", CAPTION], mask=hole, n=2, seed=1)
    assert kept(made, pictures, hole) == dict.fromkeys(SIZES, True) and made.latent is None and len(made) == 4
    assert (made.images - pictures.repeat_interleave(2, 0))[..., hole].abs().mean() > 0.1
    other = pipe.inpaint(pictures, ["two dogs", CAPTION], keep=~hole, n=2, seed=1)
    assert all(torch.equal(other.stages[size], made.stages[size]) for size in SIZES)
    small = pipe.inpaint(pictures, ["two dogs", CAPTION], mask=hole, n=2, seed=1, size=16)
    assert torch.equal(small.images, made.stages[16])
    assert torch.equal(made.sources[..., hole], torch.zeros_like(made.sources[..., hole])) and made.sheet().width > 3 * 256


@pytest.mark.parametrize(
    "options", [{}, {"repaint": True}, {"repaint": (2, 2)}, {"feather": 9}, {"guidance": 1.0}, {"caption": None}]
)
def test_what_is_in_the_hole_does_not_matter(options: dict[str, Any], pipe: UnCLIP, pictures: Tensor, hole: Tensor) -> None:
    """Nor what is blended with it; with the caption or, without one, by what CLIP sees."""
    asked = {"caption": CAPTION, "mask": hole, "seed": 2, **options}
    soft = torch.nn.functional.max_pool2d(hole[None].float(), 19, 1, 9)[0] > 0 if "feather" in options else hole
    made = pipe.inpaint(pictures[0], **asked)
    same = pipe.inpaint(torch.where(hole, pictures[1], pictures[0]), **asked)
    assert all(torch.equal(made.stages[size], same.stages[size]) for size in SIZES)
    assert kept(made, pictures[:1], soft)[256]


def test_feather_blends_drawn_and_kept_pixels_between_the_hole_and_the_rest(pipe: UnCLIP, pictures: Tensor, hole: Tensor) -> None:
    flat = torch.full_like(pictures[:1], -0.9)
    made = pipe.inpaint(flat, CAPTION, mask=hole, feather=40, seed=1).images[0, 0]
    rise = (made[:70, 150:250] + 0.9).abs().mean(1)  # above the hole, towards it
    assert torch.equal(made[:30, 150:250], flat[0, 0, :30, 150:250]) and rise[30] < 0.1 * rise[69] and rise[69] > 0.05
    hard = pipe.inpaint(flat, CAPTION, mask=hole, seed=1).images[0, 0]
    assert torch.equal(hard[69, 150:250], flat[0, 0, 69, 150:250])


def test_a_result_is_the_next_picture(pipe: UnCLIP, pictures: Tensor, hole: Tensor) -> None:
    once = pipe.inpaint(pictures[0], CAPTION, mask=hole, seed=1)
    below = torch.zeros_like(hole)
    below[220:] = True
    twice = pipe.inpaint(once, "two dogs", mask=below, seed=2)
    assert all(
        torch.equal(twice.stages[size][..., : 13 * size // 16, :], once.stages[size][..., : 13 * size // 16, :]) for size in SIZES
    )
    assert not torch.equal(twice.images[..., 220:, :], once.images[..., 220:, :])
    assert len(pipe.vary(twice, n=1, x_t="fresh", size=16)) == 1  # has no latent, is a picture like any other
    assert pipe.inpaint(pipe.generate(CAPTION, size=64), mask=hole[::4, ::4], size=64).images.shape == (1, 3, 64, 64)


def test_photographs_are_cropped_with_their_masks_and_small_pictures_enlarged(pipe: UnCLIP, tmp_path: Path) -> None:
    Image.effect_noise((400, 300), 90).convert("RGB").save(tmp_path / "photo.jpg")
    mask = Image.new("L", (400, 300))
    mask.paste(255, (180, 100, 260, 190))
    mask.save(tmp_path / "mask.png")
    made = pipe.inpaint(tmp_path / "photo.jpg", CAPTION, mask=tmp_path / "mask.png")
    photo = fit_square(load_image(tmp_path / "photo.jpg")[None], 256)
    stays = (made.images == photo).all(1)[0]
    drawn = (~stays).nonzero()
    # 300 to 256, and 42 of 341 columns cut off at the left; a pixel further where the resize looks into the hole
    assert drawn.amin(0).tolist() == pytest.approx([100 * 256 / 300, 180 * 256 / 300 - 43], abs=4)
    assert drawn.amax(0).tolist() == pytest.approx([190 * 256 / 300, 260 * 256 / 300 - 43], abs=4)
    tiny_one = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)) - 0.5
    hole = torch.zeros(20, 20, dtype=torch.bool)
    hole[:10] = True
    small = pipe.inpaint(tiny_one, CAPTION, mask=hole)
    below = fit_square(tiny_one[None], 16)[..., 11:, :]
    assert torch.equal(small.stages[16][..., 11:, :], below)
    alone = tiny.upsampler(3).sample(small.stages[16], noise=Noise.of(0, range(1)).at("upsampler_64"))
    assert torch.allclose(small.stages[64], alone, atol=1e-4)  # 20 pixels tell nothing of 64 that 16 do not


def test_each_is_drawn_as_it_is_alone_and_in_chunks(pipe: UnCLIP, pictures: Tensor, hole: Tensor, monkeypatch: Any) -> None:
    both = pipe.inpaint(pictures, ["two dogs", CAPTION], mask=[hole, ~hole], n=2, seed=4, size=64)
    alone = pipe.inpaint(pictures[1], CAPTION, mask=~hole, seed=4, first=3, size=64)
    assert (alone.images[0] - both.images[3]).abs().max() < 0.02
    monkeypatch.setattr("unclip.pipelines.cascade.PIXELS_AT_ONCE", 64**2)
    again = pipe.inpaint(pictures, ["two dogs", CAPTION], mask=[hole, ~hole], n=2, seed=4, size=64)
    assert (again.images - both.images).abs().max() < 0.02


def test_cascades_and_karlo(glide: Cascade, adm: Cascade, karlo_pipe: UnCLIP, pictures: Tensor, hole: Tensor) -> None:  # noqa: F811
    for cascade, what in ((glide, {"caption": "a cat"}), (glide, {}), (adm, {"labels": "dog"})):
        made = cascade.inpaint(pictures, **what, mask=hole, seed=1)
        assert kept(made, pictures, hole) == {16: True, 64: True} and made.images.isfinite().all()
    how = inpaint_sampling(karlo_pipe.decoder)
    assert (how.sampler, len(how.steps), how.variance) == ("ddpm", 51, "learned")
    made = karlo_pipe.inpaint(pictures[0], "a red heart", mask=hole, seed=1)
    assert kept(made, pictures[:1], hole) == dict.fromkeys(made.stages, True) and made.images.isfinite().all()


class Sees(Decoder):
    """Remembers the conditions and samplings that it was called with."""

    def sample(self, cond: Cond, **options: Any) -> Tensor:
        self.seen = (cond, options["sampling"])
        return super().sample(cond, **options)


def test_trained_mask_channels_are_used_where_there_are_some(pictures: Tensor, hole: Tensor) -> None:
    conditions = Conditions(image_embed=ImageEmbedding(embed_dim=tiny.EMBED), known=Known(), width=16)
    parts = tiny.parts()
    decoder = tiny._build(Sees, tiny.decoder().config.replace(conditions=conditions), 4)
    upper = tiny.upsampler().config
    upper = tiny._build(type(parts["upsamplers"][0]), UpsamplerConfig.replace(upper, conditions=Conditions(known=Known())), 5)
    pipe = UnCLIP(parts["clip"], parts["prior"], decoder, [upper])
    made = pipe.inpaint(pictures, CAPTION, mask=hole, seed=1)
    cond, how = decoder.seen
    images, keep = cond.known
    assert how == decoder.resolve() and torch.equal(keep, keep[:1].expand(2, -1, -1, -1)) and 0 < keep.float().mean() < 1
    assert torch.equal(torch.where(keep, images, 0), torch.where(keep, made.stages[16], 0))
    assert kept(made, pictures, hole) == {16: True, 64: True}
    assert decoder.takes == ("image_embed", "known") and pipe.generate(CAPTION).images.isfinite().all()
    assert inpaint_sampling(decoder, repaint=True).repaint == (5, 4) and inpaint_sampling(decoder, repaint=True).sampler == "ddpm"


def test_the_hole_is_drawn_to_fit(pictures: Tensor) -> None:
    """All pixels of a picture have one colour: what is kept tells what is drawn."""

    class OneColour(Decoder):
        def denoise(self, cond: Cond, count: int, sampling: Sampling, negative: Cond | None = None) -> Denoise:
            def at(x_t: Tensor, t: Tensor) -> Prediction:
                alpha, sigma = self.schedule.at(t, x_t)
                pixels = x_t.shape[-1] ** 2
                mean = x_t.mean((2, 3), keepdim=True)
                x0 = (alpha * 0.25 * pixels * mean / (alpha**2 * 0.25 * pixels + sigma**2)).expand_as(x_t)
                return Prediction(x0, (x_t - alpha * x0) / sigma)

            return at

    decoder = tiny._build(OneColour, tiny.decoder(text=False).config, 0)
    pipe = UnCLIP(tiny.ForeignEncoder(), tiny.ForeignPrior(), decoder)
    hole = torch.zeros(16, 16, dtype=torch.bool)
    hole[:, 8:] = True
    flat = torch.full((3, 16, 16), 0.4)
    made = pipe.inpaint(flat, "x", mask=hole, n=8)
    free = pipe.generate("x", n=8)
    assert (made.images - 0.4).abs().max() < 0.1 < (free.images - 0.4).abs().mean()


def test_progress_counts_the_steps_that_go_back_too(pipe: UnCLIP, pictures: Tensor, hole: Tensor) -> None:
    told: list[Step] = []
    pipe.inpaint(pictures[0], CAPTION, mask=hole, repaint=True, size=16, callback=told.append)
    steps = [step for step in told if step.stage == "decoder"]
    assert [step.step for step in steps] == list(range(1, 86)) and {step.steps for step in steps} == {85}
    assert torch.equal(steps[-1].images()[..., :2, :], fit_square(pictures[:1], 16)[..., :2, :])  # previews show what is kept


def test_bad_input(pipe: UnCLIP, pictures: Tensor, hole: Tensor) -> None:
    def ask(mask: Any = hole, **options: Any) -> Any:
        return lambda: pipe.inpaint(pictures[0], CAPTION, **{"mask": mask, "size": 16, **options})

    wide, beside = torch.zeros(3, 100, 300), torch.zeros(100, 300, dtype=torch.bool)
    beside[:, :50] = True
    foreign = UnCLIP(tiny.ForeignEncoder(), tiny.ForeignPrior(), tiny.ForeignDecoder())
    for call, told in (
        (ask(hole[:100]), "mask has 256 x 100 pixels, its picture 256 x 256"),
        (ask(torch.zeros_like(hole)), "all of it is kept, nothing would be drawn; does the mask mean the other part"),
        (ask(torch.ones_like(hole)), "nothing of it is kept; draw it with generate"),
        (ask(None), "neither keep nor mask was given"),
        (ask(keep=hole), "both keep and mask were given"),
        (ask(feather=-1), "feather is -1"),
        (ask(feather=200), "nothing of it is kept with feather 200"),
        (ask(repaint=(0, 2)), r"repaint is \(0, 2\)"),
        (ask(repaint=True, decoder=Sampling(sampler="ddim")), "only the sampler 'ddpm' goes back"),
        (lambda: pipe.inpaint(wide, CAPTION, mask=beside), "all of the square that is used of it is kept"),
        (lambda: foreign.inpaint(pictures[0], CAPTION, mask=hole), "ForeignDecoder, has no `schedule`"),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_pixels_of_an_eight_bit_file_are_written_again(pipe: UnCLIP, pictures: Tensor, hole: Tensor, tmp_path: Path) -> None:
    to_pil(pictures[0]).save(tmp_path / "x.png")
    pipe.inpaint(tmp_path / "x.png", CAPTION, mask=hole).save(tmp_path / "y.png")
    before, after = (torch.from_numpy(np.array(Image.open(tmp_path / name).convert("RGB"))) for name in ("x.png", "y.png"))
    assert torch.equal(before[~hole], after[~hole]) and not torch.equal(before, after)

"""The commands that draw from given pictures: they write what Python returns, and say what they do before they do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image
from test_cli import call, fails
from test_cli_edit import picture, pixels, run
from test_pipelines_cascade import adm, glide  # noqa: F401 (fixtures)

from unclip.cli import common, generate, steer
from unclip.editing.inpaint import inpaint_sampling
from unclip.images import metadata
from unclip.pipelines.cascade import Cascade
from unclip.pipelines.preview import Preview
from unclip.pipelines.unclip import UnCLIP
from unclip.types import Step

CAPTION = tiny.CAPTIONS[0]


@pytest.fixture(scope="module")
def pipe() -> UnCLIP:
    return tiny.pipeline()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: UnCLIP) -> Path:
    """A folder with a picture and masks, and the pipeline without reading it from its files each time."""
    monkeypatch.chdir(tmp_path)
    for module in (steer, generate, common):
        monkeypatch.setattr(module, "load_any", lambda *a, **k: pipe)
    picture(1).save("x.png")
    mask = Image.new("L", (24, 20))
    mask.paste(255, (14, 2, 24, 12))
    mask.save("mask.png")
    Image.eval(mask, lambda level: 255 - level).save("keep.png")
    return tmp_path


def drawn(*arguments: Any) -> tuple[list[str], str]:
    """The files that a command wrote, and what it told."""
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines(), done.stderr


def test_img2img(pipe: UnCLIP) -> None:
    made = pipe.img2img("x.png", CAPTION, 0.6, n=2, seed=5)
    ask = ("img2img", "x.png", "--caption", CAPTION, "--strength", 0.6, "--n", 2, "--seed", 5, "-o")
    assert run(*ask, "sheet.png") == ["sheet.png"] and pixels("sheet.png") == made.sheet().tobytes()
    assert {"edit": "img2img", "seed": "5", "strength": "0.6", "caption": CAPTION, "model": "tiny"}.items() <= metadata(
        "sheet.png"
    ).items()
    assert run(*ask, "out") == ["out/00000.png", "out/00001.png"]
    assert [pixels(f"out/0000{k}.png") for k in range(2)] == [p.tobytes() for p in made.pil()]
    run(
        "img2img",
        "x.png",
        "--caption",
        CAPTION,
        "-o",
        "y.png",
        "--size",
        16,
        "--steps",
        7,
        "--guidance",
        4,
        "--negative",
        "two dogs",
    )
    how = pipe.decoder.resolve().replace(steps=7, guidance=4.0)
    with pytest.warns(UserWarning, match="the prior"):
        expected = pipe.img2img("x.png", CAPTION, size=16, decoder=how, negative="two dogs")
    assert pixels("y.png") == expected.pil()[0].tobytes()


def test_inpaint_says_what_it_draws_and_draws_it(pipe: UnCLIP) -> None:
    ask = ("inpaint", "x.png", "--caption", CAPTION, "--seed", 5, "-o")
    files, told = drawn(*ask, "y.png", "--mask", "mask.png")
    assert files == ["y.png"] and pixels("y.png") == pipe.inpaint("x.png", CAPTION, mask="mask.png", seed=5).pil()[0].tobytes()
    assert told == "drawing the white of mask.png anew, 21 % of the picture (columns 14 to 23, rows 2 to 11); the rest is kept\n"
    _, told = drawn(*ask, "z.png", "--keep", "keep.png")
    assert "drawing all but the white of keep.png anew, 21 %" in told and pixels("z.png") == pixels("y.png")
    options = ("--feather", 2, "--repaint", "--steps", 9, "--guidance", 2, "--size", 16, "--n", 2)
    drawn("inpaint", "x.png", "--mask", "mask.png", "-o", "out", *options)
    how = inpaint_sampling(pipe.decoder, True).replace(steps=9, guidance=2.0)
    made = pipe.inpaint("x.png", mask="mask.png", feather=2, decoder=how, size=16, n=2)
    assert [pixels(f"out/0000{k}.png") for k in range(2)] == [p.tobytes() for p in made.pil()]
    assert how.repaint == (5, 4)


def test_cascades(adm: Cascade, glide: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(steer, "load_any", lambda *a, **k: adm)
    run("img2img", "x.png", "--label", "dog", "-o", "y.png")
    assert pixels("y.png") == adm.img2img("x.png", labels="dog").pil()[0].tobytes()
    drawn("inpaint", "x.png", "--label", 2, "--mask", "mask.png", "-o", "z.png")
    assert pixels("z.png") == adm.inpaint("x.png", labels=2, mask="mask.png").pil()[0].tobytes()
    monkeypatch.setattr(steer, "load_any", lambda *a, **k: glide)
    run("img2img", "x.png", "--caption", "a cat", "-o", "v.png", "--negative", "a dog")
    assert pixels("v.png") == glide.img2img("x.png", "a cat", negative="a dog").pil()[0].tobytes()


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        ("img2img x.png -o y.png", "no caption was given"),
        ("img2img x.png --caption a --strength 0 -o y.png", "strength is 0.0; it is the part of the steps to take: above 0"),
        ("img2img x.png --caption a --strength 1.1 -o y.png", "strength is 1.1"),
        ("img2img x.png --caption a -o y.bmp", "not as '.bmp'"),
        ("img2img none.png --caption a -o y.png", "there is no picture file"),
        ("img2img x.png --caption a --label dog -o y.png", "--label is for models that draw classes"),
        ("img2img x.png --caption a --size 17 -o y.png", "size is 17"),
        ("img2img x.png --caption a --preview y.txt -o y.png", "not as '.txt'"),
        ("inpaint x.png --caption a -o y.png", "neither keep nor mask was given"),
        ("inpaint x.png --caption a --mask mask.png --keep keep.png -o y.png", "both keep and mask were given"),
        ("inpaint mask.png --caption a --mask none.png -o y.png", "there is no picture file"),
        ("img2img x.png --caption a -o x.png --overwrite", "x.png"),
        ("inpaint x.png --mask mask.png -o y.png --preview mask.png --overwrite", "mask.png"),
        ("img2img x.png --caption a -o y.png --preview keep.png", "keep.png"),
    ],
)
def test_bad_input_ends_at_once_with_one_line(ask: str, told: str) -> None:
    assert told in fails(*ask.split())


def test_masks_that_do_not_fit() -> None:
    for name, level in (("black", 0), ("white", 255)):
        Image.new("L", (24, 20), level).save(f"{name}.png")
    Image.new("L", (24, 24)).save("square.png")
    assert "mask has 24 x 24 pixels, its picture 24 x 20" in fails("inpaint", "x.png", "--mask", "square.png", "-o", "y.png")
    for name, told in (
        ("black", "is kept, nothing would be drawn"),
        ("white", "nothing of the square that is used of it is"),
    ):
        assert told in fails("inpaint", "x.png", "--mask", f"{name}.png", "-o", "y.png")


def test_mix(pipe: UnCLIP) -> None:
    run("mix", CAPTION, "x.png", "two dogs", "--weights", "2,1,0.5", "--n", 2, "--seed", 3, "-o", "y.png")
    made = pipe.mix([CAPTION, "x.png", "two dogs"], [2.0, 1.0, 0.5], n=2, seed=3)
    assert pixels("y.png") == made.sheet().tobytes() and made.images.shape[-1] == 256
    for weights, told in (
        ("0,0", "not all 0"),
        ("1", "1 weights came with 2 sources"),
        ("a,b", "--weights 'a,b' not understood"),
    ):
        assert told in fails("mix", CAPTION, "x.png", "--weights", weights, "-o", "z.png")
    assert "a mixture is of two or more" in fails("mix", CAPTION, "-o", "z.png")


def test_mix_needs_embeddings(glide: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(steer, "load_any", lambda *a, **k: glide)
    assert "is a Cascade, which has no CLIP embeddings to mix" in fails("mix", "a cat", "a dog", "-o", "z.png")


def test_ctrl_c_in_the_middle_ends_quietly_and_leaves_the_preview_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Step] = []

    def interrupted(self: Preview, step: Step) -> None:
        told.append(step)
        if step.stage == "upsampler_64":
            raise KeyboardInterrupt
        watch(self, step)

    watch = Preview.__call__
    monkeypatch.setattr(Preview, "__call__", interrupted)
    before = sorted(here.iterdir())
    for ask in (("generate", CAPTION), ("img2img", "x.png", "--caption", CAPTION)):
        done = call(*ask, "-o", "out", "--size", 64, "--preview", "preview.png")
        assert done.exit_code == 130 and done.stdout == "" and "Traceback" not in done.output
        assert [path for path in sorted(here.iterdir()) if path not in before] == [here / "preview.png"]
        (here / "preview.png").unlink()
    assert {step.stage for step in told} == {"prior", "decoder", "upsampler_64"}


def test_a_preview_is_written_beside_the_pictures() -> None:
    run("generate", CAPTION, "-o", "y.png", "--size", 64, "--preview", "preview.png")
    run("generate", CAPTION, "-o", "z.png", "--size", 64)
    assert pixels("y.png") == pixels("z.png")
    with Image.open("preview.png") as shown:
        assert shown.size == (256, 256)
    assert "preview.png" in fails("generate", CAPTION, "-o", "v.png", "--preview", "preview.png")

"""The commands that edit pictures: what they write is what Python returns; what cannot work ends with one line, at once."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file
from test_cli import call
from test_cli import fails as _fails

from unclip.cli import common, edit, job
from unclip.editing.latent import Latent
from unclip.editing.pca import PCA
from unclip.images import metadata, to_pil
from unclip.pipelines.unclip import UnCLIP
from unclip.randomness import Noise
from unclip.sampling import Inversion

OWN = Inversion(steps=5, refine=1)  # of this decoder: four climbs from timestep to timestep, of two passes each


@pytest.fixture(scope="module")
def pipe() -> UnCLIP:
    components = PCA.fit(Noise.of(0, range(40)).normal((tiny.EMBED,)))
    return tiny.pipeline(decoder=tiny.decoder(inversion=OWN), pca=components)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: UnCLIP) -> Path:
    """A folder with two pictures, and the pipeline without reading it from its files each time."""
    monkeypatch.chdir(tmp_path)
    for module in (edit, job):
        monkeypatch.setattr(module, "load", lambda *a: pipe)
    picture(1).save("x.png")
    picture(2).save("y.png")
    return tmp_path


def picture(seed: int, width: int = 24, height: int = 20, colours: int = 50) -> Image.Image:
    """Patches of few colours, black and white not among them."""
    noise = Noise.of(seed)
    palette = 10 + (noise.at("palette").uniform((colours, 3))[0] * 230).long()
    index = (noise.at("index").uniform((height, width))[0] * colours).long()
    return Image.fromarray(palette[index].to(torch.uint8).numpy())


def run(*arguments: Any) -> list[str]:
    """The files that a command wrote."""
    done = call(*arguments)
    assert done.exit_code == 0 and done.stderr == "", done.output
    return done.stdout.splitlines()


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as opened:
        return opened.convert("RGB").tobytes()


# What is written


def test_variations_as_sheet_folder_and_animation(pipe: UnCLIP) -> None:
    made = pipe.vary("x.png", n=3, seed=5, size=16)
    ask = ("vary", "x.png", "--n", 3, "--seed", 5, "--size", 16, "-o")
    assert run(*ask, "sheet.png") == ["sheet.png"] and pixels("sheet.png") == made.sheet().tobytes()
    assert {"edit": "vary", "seed": "5", "model": "tiny"}.items() <= metadata("sheet.png").items()
    assert run(*ask, "out") == ["out/00000.png", "out/00001.png", "out/00002.png"]
    assert [pixels(f"out/0000{k}.png") for k in range(3)] == [p.tobytes() for p in made.pil()]
    assert metadata("out/00001.png")["label"] == "eta 1"
    assert run(*ask, "x.webp") == ["x.webp"] and run(*ask, "x.gif") == ["x.gif"]
    for name in ("x.webp", "x.gif"):
        with Image.open(name) as animation:
            assert animation.n_frames == 3 and animation.size == (16, 16)
    assert pixels("x.webp") == made.pil()[0].tobytes()


def test_one_variation_of_a_run_alone() -> None:
    run("vary", "x.png", "-o", "out", "--n", 3, "--size", 64)
    run("vary", "x.png", "-o", "alone.png", "--n", 1, "--first", 2, "--size", 64)
    alone, second, third = (torch.tensor(list(pixels(p))) for p in ("alone.png", "out/00001.png", "out/00002.png"))
    assert (alone - third).abs().max() <= 2 < (alone - second).abs().max()


def test_more_variations_lie_beside_the_earlier_ones() -> None:
    ask = ("vary", "x.png", "-o", "out", "--n", 2, "--size", 16)
    run(*ask)
    assert run(*ask, "--first", 2) == ["out/00002.png", "out/00003.png"]
    assert [metadata(f"out/0000{k}.png")["index"] for k in range(4)] == ["0", "1", "2", "3"]
    assert len({pixels(f"out/0000{k}.png") for k in range(4)}) == 4


def test_paths_from_picture_to_picture_and_from_caption_to_caption(pipe: UnCLIP) -> None:
    run("interpolate", "x.png", "y.png", "x.png", "-o", "path", "--steps", 3, "--size", 16)
    made = pipe.interpolate(["x.png", "y.png", "x.png"], steps=3, size=16)
    assert [pixels(p) for p in sorted(Path("path").iterdir())] == [p.tobytes() for p in made.pil()]
    assert len(made) == 5 and [metadata(p)["label"] for p in sorted(Path("path").iterdir())] == list(made.labels)
    run("interpolate", "a red heart", "two dogs", "-o", "captions.png", "--steps", 2, "--size", 16, "--seed", 3)
    expected = pipe.interpolate(["a red heart", "two dogs"], steps=2, size=16, seed=3)
    assert pixels("captions.png") == expected.sheet().tobytes()


def test_text_diff(pipe: UnCLIP) -> None:
    run("diff", "x.png", "--to", "two dogs", "--from", "a red heart", "-o", "out", "--steps", 3, "--size", 16)
    made = pipe.text_diff("x.png", "two dogs", source="a red heart", steps=3, size=16)
    assert [pixels(p) for p in sorted(Path("out").iterdir())] == [p.tobytes() for p in made.pil()]
    run("reconstruct", "x.png", "-o", "plain.png", "--size", 16)
    assert pixels("out/00000.png") == pixels("plain.png") != pixels("out/00002.png")


def test_principal_components(pipe: UnCLIP) -> None:
    run("reconstruct", "x.png", "--pca", "1, 3,12", "--guidance", 3, "-o", "out", "--size", 16)
    made = pipe.reconstruct_pca("x.png", [1, 3, 12], guidance=3.0, size=16)
    assert [pixels(p) for p in sorted(Path("out").iterdir())] == [p.tobytes() for p in made.pil()]
    assert metadata("out/00001.png")["label"] == "3 components" and len({pixels(f"out/0000{k}.png") for k in range(3)}) == 3


def test_a_latent_is_as_good_as_its_picture(pipe: UnCLIP) -> None:
    assert run("invert", "x.png", "-o", "x.safetensors") == ["x.safetensors"]
    latent = Latent.load("x.safetensors")
    assert torch.equal(latent.x_t, pipe.invert("x.png").x_t) and len(latent.timesteps) == OWN.steps
    run("invert", "y.png", "-o", "y.safetensors")
    for verb in ("vary x.SUFFIX", "diff x.SUFFIX --to dogs", "reconstruct x.SUFFIX", "interpolate x.SUFFIX y.SUFFIX"):
        for suffix in ("png", "safetensors"):
            run(*verb.replace("SUFFIX", suffix).split(), "-o", f"{verb.split()[0]}-{suffix}", "--size", 16)
        files = [sorted(Path(f"{verb.split()[0]}-{suffix}").iterdir()) for suffix in ("png", "safetensors")]
        assert [pixels(p) for p in files[0]] == [pixels(p) for p in files[1]] and len(files[0]) > 0


def test_a_model_from_its_folder(pipe: UnCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.save_pretrained("model")
    monkeypatch.setattr(edit, "load", common.load)
    monkeypatch.setattr(job, "load", common.load)
    run("invert", "x.png", "--model", "model", "-o", "x.safetensors")
    run("vary", "x.safetensors", "--model", "model", "-o", "out.png", "--n", 1, "--size", 16, "--dtype", "bfloat16")
    assert pixels("out.png") == to_pil(pipe.vary("x.png", n=1, size=16).images[0]).tobytes()


# Options

EDITS: list[tuple[str, tuple, str, dict[str, Any]]] = [
    (
        "vary x.png",
        ("--n", 3, "--eta", 0.5, "--guidance", 2, "--seed", 7, "--first", 2),
        "vary",
        {"n": 3, "eta": 0.5, "x_t": "kept", "guidance": 2.0, "seed": 7, "first": 2},
    ),
    ("vary x.png", (), "vary", {"n": 4, "eta": 1.0, "x_t": "kept", "guidance": None, "seed": 0, "first": 0}),
    ("interpolate x.png y.png", ("--steps", 4, "--seed", 1), "interpolate", {"steps": 4, "x_t": "slerp", "seed": 1}),
    ("interpolate x.png y.png", ("--guidance", 2), "interpolate", {"steps": 7, "guidance": 2.0, "seed": 0}),
    (
        "diff x.png --to dogs",
        ("--from", "", "--theta", 0.3, "--steps", 3, "--guidance", 2),
        "text_diff",
        {"source": "", "theta": 0.3, "steps": 3, "guidance": 2.0, "seed": 0},
    ),
    ("diff x.png --to dogs", (), "text_diff", {"source": None, "theta": 0.4, "steps": 5, "guidance": None}),
    ("reconstruct x.png", ("--seed", 2), "reconstruct", {"seed": 2}),
]


@pytest.mark.parametrize(("words", "options", "verb", "expected"), EDITS)
def test_options_reach_the_verb(
    words: str, options: tuple, verb: str, expected: dict, pipe: UnCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    canned = pipe.reconstruct_pca("x.png", [1], size=16)
    monkeypatch.setattr(UnCLIP, verb, lambda self, *a, **k: asked.update(k) or canned)
    run(*words.split(), "-o", "out.png", *options)
    assert {"size": 256, "inversion": OWN, **expected}.items() <= asked.items()
    run(*words.split(), "-o", "out.png", "--overwrite", *options, "--size", 16, "--inversion-steps", 7, "--refine", 0)
    assert {"size": 16, "inversion": OWN.replace(steps=7, refine=0), **expected}.items() <= asked.items()
    monkeypatch.setattr(job, "LARGEST", 100)
    run(*words.split(), "-o", "out.png", "--overwrite")
    assert asked["size"] == 64
    monkeypatch.setattr(job, "LARGEST", 8)
    run(*words.split(), "-o", "out.png", "--overwrite")
    assert asked["size"] == 16


def test_other_noise_is_not_inverted(pipe: UnCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe.decoder, "invert", None)
    run("vary", "x.png", "--fresh", "-o", "out.png", "--n", 1, "--size", 16)
    assert pixels("out.png") == pipe.vary("x.png", n=1, x_t="fresh", size=16).pil()[0].tobytes()
    run("interpolate", "x.png", "y.png", "--x-t", "fixed", "-o", "path.png", "--size", 16)
    assert pixels("path.png") == pipe.interpolate(["x.png", "y.png"], x_t="fixed", size=16).sheet().tobytes()


def test_help_lists_the_options() -> None:
    shared = "output model seed size guidance inversion-steps refine device dtype"
    own = {"vary": "n eta fresh first", "interpolate": "steps x-t", "diff": "to from theta steps", "reconstruct": "pca"}
    for verb, options in own.items():
        text = call(verb, "--help").stdout
        assert [option for option in f"{shared} {options}".split() if f"--{option} " not in text] == []
        assert verb in call("--help").stdout
    assert "256" in call("vary", "--help").stdout


# Progress


ENLARGE = ("upsampler_64", 3)


def bar(stage: str, steps: int, chunks: int = 1) -> list[Any]:
    """A bar of so many steps for each chunk, here of one picture, that ended and was closed."""
    return [stage if chunks == 1 else f"{stage} ({chunks} pictures)", steps * chunks, steps * chunks, True]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("vary x.png --n 1", [("invert", 8), ("decoder", 5), ENLARGE]),
        ("vary x.png --n 1 --eta 0", [("invert", 8), ("decoder", 4), ENLARGE]),
        ("vary x.png --n 1 --fresh", [("decoder", 3), ENLARGE]),
        ("vary x.safetensors --n 1 --eta 0.1", [("decoder", 5), ENLARGE]),
        ("reconstruct x.png --refine 0 --inversion-steps 6", [("invert", 5), ("decoder", 5), ENLARGE]),
        ("reconstruct x.safetensors", [("decoder", 4), ENLARGE]),
        ("reconstruct x.safetensors --pca 4", [("decoder", 3), ENLARGE]),
        ("diff x.png --to dogs --steps 2", [("invert", 8), ("decoder", 4, 2), (*ENLARGE, 2)]),
        ("interpolate x.png y.png --steps 2", [("invert", 8, 2), ("decoder", 4, 2), (*ENLARGE, 2)]),
        ("interpolate x.png dogs --steps 2", [("prior", 3), ("decoder", 3), ("invert", 8, 2), ("decoder", 4, 2), (*ENLARGE, 2)]),
        ("interpolate x.safetensors x.png --steps 2", [("invert", 8), ("decoder", 4, 2), (*ENLARGE, 2)]),
        ("interpolate x.safetensors x.safetensors --steps 2", [("decoder", 4, 2), (*ENLARGE, 2)]),
        (
            "interpolate x.safetensors dogs --x-t fixed --steps 2",
            [("prior", 3), ("decoder", 3), ("decoder", 3, 2), (*ENLARGE, 2)],
        ),
        ("invert x.png", [("invert", 8)]),
    ],
)
def test_bars_count_what_is_run(words: str, expected: list, pipe: UnCLIP, bars: list, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.invert("x.png", progress=False).save("x.safetensors")
    monkeypatch.setattr("unclip.pipelines.cascade.PIXELS_AT_ONCE", 16 * 16)
    run(*words.split(), "-o", *(["z.safetensors"] if "invert" in words.split() else ["out", "--size", 64]))
    assert bars == [bar(*one) for one in expected]
    assert not any(part.network._forward_hooks for name, part in pipe.components.items() if name != "clip")


# Pictures of every kind


def sixteen_bits(name: str) -> Image.Image:
    grey = picture(3).convert("L")
    deep = torch.tensor(list(grey.tobytes()), dtype=torch.int32) * 257
    Image.frombytes("I;16", grey.size, struct.pack(f"<{len(deep)}H", *deep.tolist())).save(name)
    return grey.convert("RGB")


def cmyk(name: str) -> Image.Image:
    picture(3).convert("CMYK").save(name, format="TIFF")
    return picture(3)


def palette_with_transparency(name: str) -> Image.Image:
    indexed = picture(3).quantize(64)
    colour = indexed.getpixel((3, 3))
    indexed.save(name, transparency=colour)
    plain = indexed.convert("RGB")
    hidden = indexed.point(lambda index: 255 * (index == colour), "L")
    plain.paste("white", mask=hidden)
    assert plain.tobytes() != picture(3).tobytes()
    return plain


def transparent(name: str) -> Image.Image:
    plain = picture(3).convert("RGBA")
    hole = Image.new("RGBA", (9, 20), (0, 0, 0, 0))
    plain.paste(hole, (0, 0))
    plain.save(name)
    plain.paste("white", (0, 0, 9, 20))
    return plain.convert("RGB")


def rotated(name: str) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: to be turned by 90 degrees, clockwise
    picture(3).transpose(Image.Transpose.ROTATE_90).save(name, exif=exif)
    return picture(3)


def very_wide(name: str) -> Image.Image:
    wide = picture(3, width=400, height=16)
    wide.save(name)
    return wide.crop((192, 0, 208, 16))


def very_high(name: str) -> Image.Image:
    high = picture(3, width=16, height=300)
    high.save(name)
    return high.crop((0, 142, 16, 158))


@pytest.mark.parametrize(
    "make", [sixteen_bits, cmyk, palette_with_transparency, transparent, rotated, very_wide, very_high], ids=lambda f: f.__name__
)
def test_any_picture_is_its_plain_self(make: Callable[[str], Image.Image]) -> None:
    make("given.png").save("plain.png")
    for name in ("given", "plain"):
        run("invert", f"{name}.png", "-o", f"{name}.safetensors")
        run("vary", f"{name}.png", "-o", f"{name}-out", "--size", 16, "--n", 1)
    given, plain, other = (Latent.load(f"{name}.safetensors") for name in ("given", "plain", "plain"))
    run("invert", "x.png", "-o", "other.safetensors")
    other = Latent.load("other.safetensors")
    for name in ("image_embed", "x_t"):
        a, b, c = (getattr(latent, name) for latent in (given, plain, other))
        assert (a - b).abs().max() < 1e-3 * b.abs().max() < (c - b).abs().max()
    a, b = (torch.tensor(list(pixels(f"{name}-out/00000.png"))) for name in ("given", "plain"))
    assert (a - b).abs().max() <= 1


def test_of_an_animation_the_first_frame_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    # In the tests calls pass through the type checker, which then looks like the file that warns.
    monkeypatch.setattr(common, "HOUSES", [*common.HOUSES, Path(jaxtyping.__file__).parent])
    picture(1).save("moving.webp", save_all=True, append_images=[picture(2), picture(3)], lossless=True)
    shown = warnings.showwarning
    done = call("reconstruct", "moving.webp", "-o", "out.png", "--size", 16)
    assert done.exit_code == 0 and warnings.showwarning is shown
    assert done.stderr == "warning: an animated picture was given: the first of its 3 frames is used\n"
    run("reconstruct", "x.png", "-o", "first.png", "--size", 16)
    assert pixels("out.png") == pixels("first.png")


# Bad input


@pytest.fixture
def fails(pipe: UnCLIP) -> Callable[..., str]:
    """The one line of a command that writes nothing, and that has not let the decoder work for nothing."""

    def refused(*arguments: Any) -> str:
        passes: list[int] = []
        hook = pipe.decoder.network.register_forward_hook(lambda *a: passes.append(1))  # type: ignore[attr-defined]
        try:
            line = _fails(*arguments)
        finally:
            hook.remove()
        assert passes == []
        return line

    return refused


VERBS = ("vary {}", "interpolate {} {}", "interpolate y.png {}", "diff {} --to dogs", "reconstruct {}", "reconstruct {} --pca 2")


def bad_pictures() -> dict[str, str]:
    """Files, and what is said of them."""
    Path("text.png").write_text("not a picture")
    Path("cut.png").write_bytes(Path("x.png").read_bytes()[:300])
    Path("folder.png").mkdir()
    picture(1, width=7, height=40).save("small.png")
    head = struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + head, b"IDAT" + zlib.compress(b""), b"IEND"]
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    Path("empty.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    Path("text.safetensors").write_text("not a latent")
    save_file({"x": torch.zeros(2)}, "other.safetensors")
    return {
        "missing.png": "there is no picture file 'missing.png'",
        "text.png": "text.png cannot be decoded as a picture",
        "cut.png": "cut.png cannot be decoded as a picture",
        "folder.png": "it is a folder",
        "small.png": "a picture of 7 x 40 pixels shows nothing; its shorter side must have 8",
        "empty.png": "empty.png",
        "missing.safetensors": "missing.safetensors cannot be read as a latent",
        "text.safetensors": "text.safetensors cannot be read as a latent",
        "other.safetensors": "other.safetensors is a safetensors file but no latent",
    }


@pytest.mark.parametrize("verb", [*VERBS, "invert {}"])
def test_pictures_that_are_none(verb: str, fails: Callable[..., str]) -> None:
    for name, message in bad_pictures().items():
        if verb == "invert {}" and name.endswith(".safetensors"):
            message = f"{name} is a latent already"
        output = "out.safetensors" if verb == "invert {}" else "out.png"
        assert message in fails(*verb.format(name, name).split(), "-o", output)


@pytest.mark.parametrize("verb", VERBS)
def test_latents_of_other_models(verb: str, pipe: UnCLIP, fails: Callable[..., str]) -> None:
    other = tiny.pipeline(decoder=tiny.decoder(text=False))
    other.invert("x.png", Inversion(steps=3, refine=0)).save("other.safetensors")
    line = fails(*verb.format("other.safetensors", "other.safetensors").split(), "-o", "out.png")
    assert "this latent was made with another decoder" in line and "invert the picture again" in line
    latent = pipe.invert("x.png")
    replace(latent, models={**latent.models, "clip": "0" * 16}).save("other.safetensors")
    line = fails(*verb.format("other.safetensors", "other.safetensors").split(), "-o", "out.png")
    assert "this latent was made with another clip (0000000000000000, pipeline 'tiny')" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("vary x.png --eta 1.5", "eta is 1.5; it runs from 0"),
        ("vary x.png --eta -0.1", "eta is -0.1"),
        ("vary x.png --eta nan", "eta is nan"),
        ("vary x.png --n 0", "n is 0"),
        ("vary x.png --fresh --eta 0.5 --refine 0", "--eta and --refine would change nothing with --fresh"),
        ("diff x.png --to dogs --theta 0", "theta is 0.0; it is the fraction of the angle to turn by"),
        ("diff x.png --to dogs --theta 1.1", "theta is 1.1"),
        ("diff x.png --to dogs --theta nan", "theta is nan"),
        ("diff x.png --to dogs --steps 1", "steps is 1"),
        ("diff x.png --to dogs --from dogs", "'dogs' and 'dogs' mean the same to this CLIP"),
        ("diff x.png --to=", "the target caption is empty"),
        ("reconstruct x.png --pca 13", "k is 13; of these components 0 to 12 can be kept"),
        ("reconstruct x.png --pca 3,x", "--pca '3,x' not understood: write numbers of components"),
        ("reconstruct x.png --pca -3", "--pca '-3' not understood"),
        ("reconstruct x.png --pca=", "--pca '' not understood"),
        ("reconstruct x.png --guidance 2", "--guidance would change nothing without --pca"),
        ("reconstruct x.png --pca 3 --inversion-steps 9", "--inversion-steps would change nothing with --pca"),
        ("interpolate x.png", "1 picture was given; an interpolation goes from one to another"),
        ("interpolate dogs", "1 picture was given"),
        ("interpolate x.png y.png --steps 1", "steps is 1"),
        ("interpolate x.png y.png --x-t lerp", "--x-t 'lerp' not understood: write slerp or fixed"),
        ("interpolate x.png y.png --x-t fixed --refine 2", "--refine would change nothing with --x-t fixed"),
        ("interpolate x.png z.pgn", "there is no picture file 'z.pgn'"),
        ("vary z.safetensors --refine 0", "--refine would change nothing where a latent is given"),
        ("diff z.safetensors --to dogs --inversion-steps 9", "--inversion-steps would change nothing where a latent is given"),
        ("reconstruct z.safetensors --refine 0 --inversion-steps 9", "--inversion-steps and --refine would change nothing"),
        ("interpolate z.safetensors z.safetensors --refine 0", "--refine would change nothing where a latent is given"),
        *[
            (f"{verb.format('x.png', 'x.png')} {option}", message)
            for verb in VERBS
            for option, message in [
                ("--size 100", "size is 100; this pipeline makes pictures of 16, 64, 256 pixels"),
                ("-o x.jpg", "written as .png or .gif or .webp or into a folder, not as '.jpg'"),
                ("-o x.png/out.png", "cannot write x.png/out.png"),
            ]
        ],
        *[
            (f"{verb.format('x.png', 'x.png')} {option}", message)
            for verb in (*VERBS[:2], *VERBS[3:5])
            for option, message in [
                ("--inversion-steps 1", "steps is 1; it must be a whole number of at least 2"),
                ("--inversion-steps 1001", "cannot take 1001 steps out of 1000"),
                ("--refine -1", "refine is -1; it must be at least 0"),
            ]
        ],
        *[(f"{verb.format('x.png', 'x.png')} --guidance nan", "guidance is nan") for verb in (*VERBS[:2], *VERBS[3:4])],
        ("invert x.png -o latent.png", "this is written as .safetensors, not as '.png'"),
        ("invert x.png -o latent", "this is written as .safetensors, not as ''"),
        ("invert x.png -o x.png/z.safetensors", "cannot write"),
        ("invert x.png -o z.safetensors --refine -1", "refine is -1"),
    ],
)
def test_bad_options(words: str, message: str, fails: Callable[..., str]) -> None:
    arguments = words.split()
    assert message in fails(*arguments, *(() if "-o" in arguments else ("-o", "out.png")))


def test_models_without_components_say_so(pipe: UnCLIP, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]) -> None:
    monkeypatch.setattr(pipe, "pca", None)
    assert "this pipeline came without principal components" in fails("reconstruct", "x.png", "--pca", 3, "-o", "out.png")


def test_latents_that_are_drawn_in_different_ways_have_no_path_between_them(pipe: UnCLIP) -> None:
    pipe.invert("x.png", OWN.replace(steps=6)).save("x.safetensors")
    assert "drawn by different samplings" in _fails("interpolate", "x.safetensors", "y.png", "-o", "out.png")
    run("interpolate", "x.safetensors", "y.png", "-o", "out.png", "--inversion-steps", 6, "--size", 16)


@pytest.mark.parametrize("words", ["vary", "vary x.png", "diff x.png -o out.png", "interpolate -o out.png", "invert x.png"])
def test_what_is_left_out_ends_with_status_2(words: str) -> None:
    done = call(*words.split())
    assert done.exit_code == 2 and "Missing" in done.stderr and done.stdout == ""

"""The paper's recipes: Table 3 as printed, sizes on the meta device, and that each recipe trains (made tiny)."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from PIL import Image

from benchmarks import paper_sizes
from experiments.recipes import paper
from unclip.clip.encoder import CLIP
from unclip.randomness import Noise
from unclip.runs import Training, build, finish
from unclip.runs.recipes import find, functions

# rows of Table 3: stage -> (schedule, sampling steps, weight decay, batch, iterations, learning rate, beta2, eps, EMA)
TABLE3 = {
    "prior": ("cosine", 64, 6.0e-2, 4096, 600_000, 1.1e-4, 0.96, 1e-6, 0.9999),
    "decoder": ("cosine", 250, 0.0, 2048, 800_000, 1.2e-4, 0.999, 1e-8, 0.9999),
    "upsampler_256": ("cosine", 27, 0.0, 1024, 1_000_000, 1.2e-4, 0.999, 1e-8, 0.9999),
    "upsampler_1024": ("linear", 15, 0.0, 512, 1_000_000, 1.0e-4, 0.999, 1e-8, 0.9999),
}
STAGES = ("clip", *TABLE3, "ar_prior")  # the AR prior has no schedule; its row is in test_prior_ar_prior.py


@cache
def sizes() -> dict[tuple[str, str], paper_sizes.Row]:
    return {(row.stage, row.part): row for row in paper_sizes.rows()}


def test_every_stage_has_a_recipe():
    assert {f"paper.{stage}" for stage in STAGES} == {name for name in functions() if name.startswith("paper.")}
    for stage in STAGES:
        recipe = find(f"paper.{stage}")
        assert isinstance(recipe, Training) and Training.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize("stage", TABLE3)
def test_table_3(stage):
    recipe = find(f"paper.{stage}")
    train, model = recipe.train, recipe.model
    assert (
        model.schedule.name, model.sampling.steps, train.weight_decay, train.batch, train.steps, train.lr,
        train.betas[1], train.eps, train.ema,
    ) == TABLE3[stage]  # fmt: skip
    assert train.betas[0] == 0.9 and model.schedule.steps == 1000


def test_table_3_networks():
    unets = {stage: getattr(paper, stage)().model.unet for stage in ("decoder", "upsampler_256", "upsampler_1024")}
    assert [u.channels for u in unets.values()] == [512, 320, 192]
    assert [u.depth for u in unets.values()] == [3, 3, 2]
    assert [u.multiple for u in unets.values()] == [(1, 2, 3, 4), (1, 2, 3, 4), (1, 1, 2, 2, 4, 4)]
    assert [u.dropout for u in unets.values()] == [0.1, 0.1, 0.0]
    assert [u.patch for u in unets.values()] == [1, 1, 1]
    decoder, prior = paper.decoder().model, paper.prior().model
    assert [decoder.image_size // 2**level for level in decoder.unet.attention] == [32, 16, 8]
    assert unets["upsampler_256"].attention == unets["upsampler_1024"].attention == ()
    assert decoder.unet.head_channels == 64 and decoder.variance == "learned" and decoder.conditions.image_embed.tokens == 4
    caption = decoder.conditions.text
    for text, context in ((prior.network.transformer, prior.network.context), (caption.transformer, caption.context)):
        assert (text.width, text.layers, text.heads, context) == (2048, 24, 32, 256)
    for stage, kind in (("upsampler_256", "blur"), ("upsampler_1024", "bsr")):
        config = find(f"paper.{stage}").model
        assert config.crop == 0.25 and config.sampling.sampler == "ddim" and config.corruption.kind == kind
    assert prior.sampling.variance == "analytic" and decoder.sampling.variance == "learned"
    clip = paper.clip()
    assert clip.model.architecture.vision.width == 1280 and clip.task.sam == 0.1 and clip.train.lr == 3e-4


@pytest.mark.parametrize(
    "stage, part, ours, difference",  # to the paper's printed number, in per cent
    [
        ("clip", "", 986_339_841, None),
        ("clip", "network.visual", 632_307_200, None),
        ("prior", "", 1_325_018_112, 32.5),  # with 49,408 token embeddings
        ("prior", "network.transformer", 1_208_602_624, 20.9),  # 24 x 2048 is 1.21B; the paper says 1B
        ("ar_prior", "", 2_117_337_856, 111.7),  # two transformers, of which Table 3's text encoder alone is 1.21B
        ("ar_prior", "network.text_transformer", 1_208_602_624, None),
        ("ar_prior", "network.transformer", 797_964_544, None),
        ("decoder", "", 3_567_892_998, 1.9),
        ("decoder", "network.unet", 2_232_917_510, -2.9),
        ("decoder", "network.conditions.text.encoder.transformer", 1_208_602_624, 0.7),
        ("upsampler_256", "", 729_702_083, 4.2),
        ("upsampler_1024", "", 282_059_139, -6.0),
        ("glide.base", "", 3_552_675_334, 1.5),
        ("glide.base", "network.unet", 2_232_917_510, -2.9),
        ("glide.base", "network.conditions.text.encoder.transformer", 1_208_602_624, 0.7),
        ("glide.upsampler", "", 1_640_833_414, 9.4),  # with 24 layers of text, which the paper does not say
        ("glide.upsampler", "network.unet", 1_283_139_462, None),
        ("glide.upsampler", "network.conditions.text.encoder.transformer", 302_311_424, None),
    ],
)
def test_sizes(stage, part, ours, difference):
    row = sizes()[stage, part]
    assert row.ours == ours
    if difference is None:
        assert row.paper is None
    else:
        assert abs(100 * (row.ours / row.paper - 1) - difference) < 0.05


def linear(n_in: int, n_out: int) -> int:
    return (n_in + 1) * n_out


def test_sizes_by_arithmetic():
    """Counted from the paper's numbers alone, block by block."""
    width = 2048
    text = 24 * (12 * width**2 + 13 * width) + 2 * width
    glide = "network.conditions.text.encoder.transformer"
    assert sizes()["prior", "network.transformer"].ours == sizes()["decoder", glide].ours == text

    def unet(channels, depth, multiple, attention, n_in, n_out, context, middle):
        emb = 4 * channels

        def residual(a, b):
            return 2 * a + linear(9 * a, b) + linear(emb, 2 * b) + 2 * b + linear(9 * b, b) + (linear(a, b) if a != b else 0)

        def attend(a):
            return 2 * a + linear(a, 3 * a) + linear(context, 2 * a) + linear(a, a)

        widths = [channels * m for m in multiple]
        total, width, skips = linear(9 * n_in, channels), channels, [channels]
        for level, target in enumerate(widths):
            for _ in range(depth):
                total += residual(width, target) + (attend(target) if level in attention else 0)
                width = target
                skips.append(width)
            if level < len(widths) - 1:
                total += residual(width, width)
                skips.append(width)
        total += 2 * residual(width, width) + (attend(width) if middle else 0)
        for level, target in reversed(list(enumerate(widths))):
            for _ in range(depth + 1):
                total += residual(width + skips.pop(), target) + (attend(target) if level in attention else 0)
                width = target
            total += residual(width, width) if level else 0
        return total + 2 * width + linear(9 * width, n_out)

    assert sizes()["decoder", "network.unet"].ours == unet(512, 3, (1, 2, 3, 4), (1, 2, 3), 3, 6, 2048, True)
    for stage, channels, depth, multiple in (
        ("upsampler_256", 320, 3, (1, 2, 3, 4)),
        ("upsampler_1024", 192, 2, (1, 1, 2, 2, 4, 4)),
    ):
        time = linear(channels, 4 * channels) + linear(4 * channels, 4 * channels)
        assert sizes()[stage, ""].ours == time + unet(channels, depth, multiple, (), 6, 3, 0, False)
    image = 32 * (12 * 1280**2 + 13 * 1280) + 3 * 16**2 * 1280 + (1 + 256 + 1 + 4) * 1280 + 1280 * 1024
    captions = 24 * (12 * 1024**2 + 13 * 1024) + (49408 + 77 + 2) * 1024 + 1024 * 1024
    assert sizes()["clip", "network.visual"].ours == image and sizes()["clip", ""].ours == image + captions + 1


def test_glide():
    """The two models as the paper and the code describe them."""
    base, guided, upsampler = (find(f"glide.{name}") for name in ("base", "base_guided", "upsampler"))
    assert (base.train.steps, base.train.batch) == (2_500_000, 2048)
    assert (upsampler.train.steps, upsampler.train.batch) == (1_600_000, 512)
    for recipe in (base, guided, upsampler):
        assert Training.from_json(recipe.to_json()) == recipe
        assert recipe.model.conditions.takes == ("text",) and recipe.model.conditions.text.states == "direct"
    assert [base.model.conditions.text.drop, guided.model.conditions.text.drop] == [0.0, 0.2]
    assert guided.start == "runs/glide.base/model" and guided.model.sampling.guidance == 3
    for name, start in (("base_inpaint", "base_guided"), ("upsampler_inpaint", "upsampler")):
        around = find(f"glide.{name}")
        assert around.model.conditions.takes == ("text", "known") and around.start == f"runs/glide.{start}/model"
    config = upsampler.model
    assert (config.unet.channels, config.resize, config.low_res, config.noise_scale) == (384, "bilinear", "8bit", 0.997)
    assert (config.variance, config.schedule.name, config.sampling.steps) == ("learned", "linear", "fast27")


# Small enough to run

CLIP_TINY = [
    *(f"model.architecture.{x}" for x in ("embed_dim=16", "vision.image_size=32", "vision.width=32", "vision.layers=1")),
    *(f"model.architecture.{x}" for x in ("vision.head_width=16", "text.width=16", "text.layers=1", "text.heads=2")),
]
UNET_TINY = ["model.unet.channels=32", "model.unet.depth=1", "model.unet.multiple=[1,1]"]
GLIDE_TINY = [
    *UNET_TINY, "model.unet.attention=[1]", "model.unet.head_channels=16",
    *(f"model.conditions.text.transformer.{x}" for x in ("width=16", "layers=1", "heads=2")),
]  # fmt: skip
TINY = {
    "clip": [*CLIP_TINY, "data.size=32"],
    "prior": [
        *(f"model.network.transformer.{x}" for x in ("width=16", "layers=1", "heads=2")),
        "model.network.embed_dim=16", "data.size=32",
    ],
    "ar_prior": [
        *(f"model.network.transformer.{x}" for x in ("width=16", "layers=1", "heads=2")),
        *(f"model.network.text_transformer.{x}" for x in ("width=16", "layers=1", "heads=2")),
        "model.network.embed_dim=16", "model.quantizer.dims=2", "data.size=32",
    ],
    "decoder": [
        *UNET_TINY, "model.unet.attention=[1]", "model.unet.head_channels=16", "model.image_size=8",
        "model.conditions.image_embed.embed_dim=16", "model.conditions.width=16", "data.size=32",
        *(f"model.conditions.text.transformer.{x}" for x in ("width=16", "layers=1", "heads=2")),
    ],
    "upsampler_256": [*UNET_TINY, "data.size=32"],
    "upsampler_1024": [*UNET_TINY, "data.size=32"],
    "glide.base": [*GLIDE_TINY, "model.image_size=8", "data.size=32"],
    "glide.upsampler": [*GLIDE_TINY, "data.size=32"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 48), colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {colour} picture")
    return folder


@pytest.fixture(scope="module")
def clip_folder(folder, tmp_path_factory):
    recipe, run = paper.clip().override(*TINY["clip"], f"data.source={folder}"), tmp_path_factory.mktemp("run")
    built = build(recipe)
    finish(recipe, built, built.task.model.state_dict(), run)
    finish(recipe, built, built.task.model.state_dict(), run)  # a run continued after its end
    return run / "model"


@pytest.mark.parametrize("stage", [*STAGES, "glide.base", "glide.upsampler"])
def test_recipes_train(stage, folder, clip_folder):
    taught = [f"clip={clip_folder}"] if stage in ("prior", "ar_prior", "decoder") else []
    settings = [*TINY[stage], f"data.source={folder}", *taught]
    state = torch.random.get_rng_state()
    task, data, *_ = build(find(stage if "." in stage else f"paper.{stage}").override(*settings))
    assert torch.equal(torch.random.get_rng_state(), state) and len(data) == 3
    noise = Noise.of(0, range(3))
    losses = task(data.batch([0, 1, 2], noise), noise)
    losses.total.mean().backward()
    assert losses.total.isfinite().all() and losses.total.mean() > 0
    assert sum(p.grad is not None and bool(p.grad.any()) for p in task.model.parameters()) >= 2


def test_missing_folders_are_named(folder, clip_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stage in STAGES:
        taught = [f"clip={clip_folder}"] if find(f"paper.{stage}").clip else []
        with pytest.raises(ValueError, match="pictures is not there: expected a folder of pictures"):
            build(find(f"paper.{stage}").override(*TINY[stage], *taught))
    for stage in ("prior", "ar_prior", "decoder"):
        with pytest.raises(ValueError, match="no model 'runs/paper.clip/model'"):
            build(find(f"paper.{stage}").override(f"data.source={folder}"))
    with pytest.raises(ValueError, match="nowhere is not there"):
        build(paper.clip().override(*TINY["clip"], "data.source=nowhere"))


def test_the_teacher_is_frozen(folder, clip_folder):
    teacher = build(paper.prior().override(*TINY["prior"], f"data.source={folder}", f"clip={clip_folder}")).clip
    assert isinstance(teacher, CLIP) and not teacher.training and not any(p.requires_grad for p in teacher.parameters())

"""What a plan says against what real runs of the same tasks do: parameters, FLOPs, memory."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import CONTEXT, EMBED, WIDTH, clip, decoder, prior, upsampler
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from decoder import Decoder, DecoderTask
from prior import DiffusionPrior, PriorTask
from unclip.checkpoint import Component
from unclip.clip import CLIP
from unclip.clip.task import CLIPTask, CLIPTaskConfig
from unclip.config import Config
from unclip.data.open import DataConfig
from unclip.nn.transformer import TransformerConfig
from unclip.randomness import Noise
from unclip.runs.plan import CARDS, Count, Shapes, count, fake, fake_clip, outline, plan
from unclip.runs.plan.count import saved_activations
from unclip.runs.training import Training
from unclip.training import TrainConfig
from unclip.training.task import Task
from upsamplers import Upsampler, UpsamplerTask

ROOT = Path(__file__).resolve().parents[1]
TRAIN = TrainConfig(steps=1000, batch=4, lr=1e-3)
ALONE = Shapes(16, 2, EMBED, CONTEXT, WIDTH)  # no CLIP in the task
SEEN = Shapes(16, 2)


def emptied(part: Component) -> Component:
    return fake(type(part), part.config)


TASKS: dict[str, tuple[Callable[[Callable], Task], Shapes]] = {
    "prior": (lambda made: PriorTask(made(prior())), ALONE),
    "prior with clip": (lambda made: PriorTask(made(prior()), made(clip()).requires_grad_(False)), SEEN),
    "decoder": (lambda made: DecoderTask(made(decoder())), ALONE),
    "upsampler": (lambda made: UpsamplerTask(made(upsampler())), Shapes(64)),
    "clip": (lambda made: CLIPTask(made(clip()), CLIPTaskConfig(sam=0.1)), SEEN),
}


@pytest.mark.parametrize("stage", TASKS)
def test_a_fake_stage_counts_what_a_real_one_does(stage: str) -> None:
    build, shapes = TASKS[stage]
    real, empty = build(lambda part: part), build(emptied)
    planned = plan(empty, TRAIN, shapes.batch)
    found = plan(real, TRAIN, shapes.batch)
    assert planned.parameters == found.parameters and planned.parameters[""] == sum(p.numel() for p in real.model.parameters())
    # Real kernels keep a little more for themselves (sums of a norm, masks of a dropout).
    assert planned.counted[:3] == pytest.approx(found.counted[:3], rel=1e-9)
    assert planned.counted[3:] == pytest.approx(found.counted[3:], rel=0.02)
    # Torch's own counter, on the real task.
    batch, noise = shapes.batch(4), Noise.of(0, range(4)).at("loss")
    real.train()
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as counter:
        real(batch, noise).total.float().mean().backward()
    torch.backends.mha.set_fastpath_enabled(True)
    again = 2 if stage == "clip" else 1
    assert planned.sample.flops * 4 == pytest.approx(again * counter.get_total_flops(), rel=0.05)
    assert planned.counted.gradients == sum(4 * p.numel() for p in real.model.parameters() if p.grad is not None)
    assert (planned.teachers > 0) == (planned.sample.teachers > 0) == (stage == "prior with clip")
    assert not any(p.grad is not None for p in empty.model.parameters())


class Chain(nn.Module):
    """Known by hand: y = W2 relu(W1 x)."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = (nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).sum()


def test_counting_by_hand() -> None:
    width, rows = 64, 32
    model, x = Chain(width), torch.randn(rows, width)
    product, activation, weight = 2 * rows * width * width, 4 * rows * width, 4 * width * width
    found = count(model, lambda: model(x))
    # Backwards: two products for the second layer, one for the first, whose input needs no gradient.
    assert (found.forward, found.backward, found.teachers) == (2 * product, 3 * product, 0)
    assert found.gradients == 2 * weight
    assert activation <= found.activations <= activation + 64  # what relu gave; the sum's input is not kept
    with saved_activations(model) as bytes_kept:
        loss = model(x)
    assert bytes_kept[0] == activation + 4 * rows * width  # and x, which was there before
    del loss
    # Twice: the first pass's gradients lie beside the second one's activations.
    twice = count(model, lambda: model(x), passes=2)
    assert twice.flops == found.flops and twice.peak >= found.peak + 0.5 * weight
    with torch.no_grad():
        frozen = Chain(width)

    def with_teacher() -> Tensor:
        with torch.no_grad():
            target = frozen(x)
        return model(x) - target

    assert count(model, with_teacher).teachers == 2 * product
    gc.collect()


def test_sizes_of_a_plan() -> None:
    task = TASKS["prior"][0](emptied)
    weights = sum(4 * p.numel() for p in task.model.parameters())
    config = TRAIN.replace(batch=64, ema=(0.99, 0.9), micro_batch=4)
    one, many = plan(task, config, ALONE.batch), plan(task, config, ALONE.batch, cards=4)
    assert (one.share, one.passes, many.share, many.passes) == (64, 16, 16, 4)
    assert one.ddp.optimizer == 2 * weights and one.ddp.averages == pytest.approx(2 * one.ddp.weights)
    assert one.ddp.buckets == 0 and many.ddp.buckets == weights and many.ddp.weights == one.ddp.weights >= weights
    assert many.fsdp.optimizer == many.ddp.optimizer / 4 and many.fsdp.total < many.ddp.total
    assert one.run_flops == many.run_flops == pytest.approx(one.sample.flops * 64 * 1000)
    assert one.days == pytest.approx(4 * many.days)
    assert one.days == pytest.approx(one.run_flops / (0.4 * 19.5e12) / 86_400), "float32 does not run on tensor cores"
    half = plan(task, config.replace(precision="bfloat16"), ALONE.batch, card=CARDS["H100"], utilisation=0.2)
    assert half.days == pytest.approx(half.run_flops / (0.2 * 989e12) / 86_400)
    frozen = plan(TASKS["prior"][0](emptied), TRAIN.replace(freeze=("network.transformer*",)), ALONE.batch)
    assert frozen.trained < frozen.parameters[""] and frozen.ddp.optimizer == 8 * frozen.trained
    with pytest.raises(ValueError, match="batch of 64 cannot be shared equally by 5"):
        plan(task, config, ALONE.batch, cards=5)
    with pytest.raises(ValueError, match="utilisation is 40"):
        plan(task, config, ALONE.batch, utilisation=40.0)


def test_large_shares_are_read_off_a_line() -> None:
    task = TASKS["upsampler"][0](emptied)
    direct = plan(task, TRAIN.replace(batch=64), Shapes(64).batch)
    beyond = plan(task, TRAIN.replace(batch=640), Shapes(64).batch)
    assert beyond.sample.flops == pytest.approx(direct.sample.flops)
    assert beyond.counted.activations == pytest.approx(10 * direct.counted.activations, rel=0.05)


def test_checkpointing_and_words() -> None:
    deep = prior().config.network.replace(transformer=TransformerConfig(width=64, layers=8, heads=2))
    task = PriorTask(fake(DiffusionPrior, prior().config.replace(network=deep)))
    config = TRAIN.replace(batch=32)
    plain, spare = plan(task, config, ALONE.batch), plan(task, config.replace(checkpointing=True), ALONE.batch)
    assert spare.counted.activations < 0.25 * plain.counted.activations and spare.ddp.total < plain.ddp.total
    # Blocks run once more; of the attention's FLOPs nothing else changes.
    assert 1.2 < spare.sample.flops / plain.sample.flops < 1.4
    text = str(plan(task, config.replace(precision="bfloat16"), ALONE.batch, cards=8, card=CARDS["A100"]._replace(memory=1e6)))
    for told in ("network.transformer 0.4M", "32: 4 on each of 8 A100", "  DDP  ", "  FSDP  ", "more than A100's 1",
                 "a sample (forward", "at 40 % of 312 TFLOP/s", "1,000 steps"):  # fmt: skip
        assert told in text, text
    assert "FSDP" not in str(plain) and "teachers 0" not in str(plain)


def test_a_line_through_two_counts() -> None:
    a, b = Count(*map(float, range(7))), Count(*map(float, range(10, 17)))
    assert a.towards(b, 0.5) == Count(*map(float, range(5, 12))) and a.towards(b, 2.0).forward == 20


MEASURED = """
import resource, sys, torch
sys.path[:0] = sys.argv[1:3]
import test_runs_plan as t
torch.set_num_threads(1)
task, shapes, rows = t.large(sys.argv[3])
task.train()
parameters = list(task.model.parameters())
optimizer = torch.optim.AdamW(parameters, fused=True)

def step(rows):
    task(shapes.batch(rows), t.Noise.of(0, range(rows))).total.mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

def now():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

step(1)  # kernels, moments
before = now()
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
step(rows)
peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
print(peak - before)
"""


def large(stage: str) -> tuple[Task, Shapes, int]:
    """Stages whose activations take some 300 MB."""
    if stage == "prior":
        wide = prior().config.network.replace(transformer=TransformerConfig(width=256, layers=4, heads=4), context=64)
        return PriorTask(DiffusionPrior(prior().config.replace(network=wide))), Shapes(None, 2, EMBED, 64, WIDTH), 64
    unet = decoder(text=False).config.unet.replace(channels=64, patch=1, depth=2)
    made = Decoder(decoder(text=False).config.replace(image_size=16, unet=unet))
    return DecoderTask(made), Shapes(16, 2, EMBED, CONTEXT, WIDTH), 32


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory is Linux's to tell")
@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_memory_is_what_a_real_step_takes(stage: str, tmp_path: Path) -> None:
    task, shapes, rows = large(stage)
    planned = plan(task, TRAIN.replace(batch=rows), shapes.batch)
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "UNCLIP_UNCHECKED": "1",
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
    (tmp_path / "measure.py").write_text(MEASURED)
    command = [sys.executable, str(tmp_path / "measure.py"), str(ROOT), str(ROOT / "tests"), stage]
    measured = float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    print(f"{stage}: planned {planned.ddp.step / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB")
    assert measured > 150e6 and planned.ddp.step == pytest.approx(measured, rel=0.15)


def test_recipes_have_plans(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.paper_plans import table
    from experiments.recipes import emoji
    from unclip.cli.plan import plan_of

    small = emoji.upsampler_256()
    found = plan_of(small, 8, "H100")
    assert found.share == 2 and found.parameters[""] > 5e6 and found.precision == "bfloat16"
    assert re.search(r"\(.* a step\) on 8 H100 at 40 % of 989 TFLOP/s", str(found))
    rows = table(("upsampler_1024",), 256, "A100", 0.4).splitlines()
    assert len(rows) == 3 and rows[2].startswith("| upsampler_1024 | ") and len({row.count("|") for row in rows}) == 1
    with pytest.raises(ValueError, match="no card 'T4'; there are A100"):
        plan_of(small, 256, "T4")


def test_the_command(tmp_path: Path) -> None:
    import typer
    from typer.testing import CliRunner

    from unclip.cli.plan import plan as command

    app = typer.Typer()
    app.command()(command)

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, list(arguments))
        return done.exit_code, done.output

    model = decoder().config
    parts = {"stage": "decoder", "model": json.loads(model.to_json()), "clip": "emoji", "data": {"source": "nowhere"}}
    file = tmp_path / "decoder.json"
    file.write_text(json.dumps(parts | {"train": {"steps": 100, "batch": 64, "lr": 1e-3}}))
    # The shipped CLIP has other widths than the tiny decoder, which the decoder refuses, as it would in training.
    assert run(str(file), "data.size=16")[0] == 2
    wide = {
        f"model.conditions.{name}={value}"
        for name, value in (
            ("image_embed.embed_dim", 128),
            ("text.embed_dim", 128),
            ("text.states_width", 128),
            ("text.context", 24),
        )
    }
    code, told = run(str(file), *wide, "--cards", "8", "--card", "H100", "--utilisation", "0.5")
    assert code == 0, told
    assert "component   Decoder" in told and "64: 8 on each of 8 H100" in told and "in frozen teachers" in told
    assert "at 50 % of 67 TFLOP/s" in told and ", teachers" in told
    embedded = run(str(file), *wide, "data.embeddings=embeddings.safetensors")[1]
    assert "one card" in embedded and ", teachers" not in embedded, "CLIP's answers come with the data"
    up = {"stage": "upsampler", "model": json.loads(upsampler().config.to_json()), "data": {"source": "nowhere", "size": 64}}
    file.write_text(json.dumps(up | {"train": {"steps": 100, "batch": 4, "lr": 1e-3}}))
    assert "component   Upsampler" in run(str(file))[1]
    assert run(str(file), "--card", "T4")[0] == 2 and run(str(tmp_path / "none.json"))[0] == 2


def test_a_teacher_in_a_folder_of_open_clip(tmp_path: Path) -> None:
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1}
    model = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    assert fake_clip(f"open_clip:local-dir:{tmp_path}").embed_dim == 20


def training(model: Config) -> Training:
    return Training(model=model, data=DataConfig(source="nowhere", embeddings="nowhere"), train=TRAIN)


@pytest.mark.parametrize("settings", [{"clamp": 2.0}, {"scaling": "statistics"}, {"embedding": "raw"}])
def test_statistics_are_made_up(settings: dict[str, object]) -> None:
    task, shapes = outline(training(prior().config.replace(**settings)))
    assert plan(task, TRAIN, shapes.batch).sample.flops > 0
    assert shapes == ALONE._replace(size=None)
    empty = prior().config.network.replace(null="empty")
    task, shapes = outline(training(prior().config.replace(network=empty)))
    assert plan(task, TRAIN, shapes.batch).sample.flops > 0


def test_an_ar_prior_has_a_plan_when_its_components_are_counted() -> None:
    from prior import ARNetworkConfig, ARPriorConfig, QuantizerConfig

    network = ARNetworkConfig(transformer=TransformerConfig(width=16, layers=1, heads=2), embed_dim=EMBED, context=CONTEXT,
                              states_width=WIDTH)  # fmt: skip
    config = ARPriorConfig(network=network, quantizer=QuantizerConfig(dims=5, buckets=8))
    task, shapes = outline(training(config))
    assert plan(task, TRAIN, shapes.batch).parameters["network.transformer"] > 0
    with pytest.raises(ValueError, match="as in model.quantizer.dims=319"):
        outline(training(config.replace(quantizer=QuantizerConfig(dims=0.99))))
    with pytest.raises(ValueError, match="no component is built from a TransformerConfig"):
        outline(training(TransformerConfig(width=16, layers=1, heads=2)))


def test_parts_of_a_fake_stage_take_no_memory() -> None:
    network = prior().config.network.replace(transformer=TransformerConfig(width=4096, layers=24, heads=32))
    part = fake(DiffusionPrior, prior().config.replace(network=network))  # 19 GB of weights
    assert sum(p.numel() for p in part.parameters()) > 4.8e9
    assert part.scaling.norm == 1 and part.device == torch.device("cpu")
    named = fake(CLIP, clip().config)
    assert named.mean.shape == (3, 1, 1) and isinstance(named.logit_scale, nn.Parameter)
    assert isinstance(fake(Upsampler, upsampler().config).network.unet.input.weight, nn.Parameter)

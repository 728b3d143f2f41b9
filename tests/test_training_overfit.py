"""The self-test passes stages that are wired right and fails those that were broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tiny import EMBED, WIDTH, clip, decoder, prior, upsampler
from torch import Tensor
from typer.testing import CliRunner

from decoder import DecoderTask
from experiments.recipes import emoji
from prior import PriorTask
from unclip.cli import app
from unclip.clip.task import CLIPTask
from unclip.data.spec import DataSpec
from unclip.nn.transformer import TransformerConfig
from unclip.randomness import Noise
from unclip.training import TrainConfig
from unclip.training.overfit import First, Verdict, overfit, self_test, verdict
from unclip.training.task import Task
from unclip.types import Batch, Text
from upsamplers import UpsamplerTask

N = 6
WORDS = ("red", "green", "blue", "cat", "dog", "hat", "a", "two")
CONFIG = TrainConfig(steps=10**6, batch=64, lr=3e-3, warmup=1000, ema=(0.9999, 0.999), save_every=10**6, log_every=100)


class Samples:
    """Smooth pictures, each with an embedding and a caption of its own."""

    def __init__(self, size: int = 16, shuffled: bool = False):
        self.keys, self.size, self.shuffled, self.reads = [f"{i}" for i in range(50)], size, shuffled, 0

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        assert noise is None, "no augmentation"
        rows = Noise.of(5, indices)
        colour = rows.at("colour").uniform((3, 4, 4)) * 1.6 - 0.8
        images = torch.nn.functional.interpolate(colour, (self.size, self.size), mode="nearest")
        conds = indices
        if self.shuffled:  # the conditions belong to other samples, at each reading to others
            self.reads += 1
            order = torch.randperm(N, generator=torch.Generator().manual_seed(self.reads)).tolist()
            conds = [order[i] for i in indices]
        rows = Noise.of(6, conds)
        captions = [f"{WORDS[i % 6]} {WORDS[6 + i // 6 % 2]}" for i in conds]
        states = rows.at("states").normal((10, WIDTH))
        text = Text(captions, torch.ones(len(indices), 10, dtype=torch.int64), rows.at("z_t").normal((EMBED,)), states,
                    torch.ones(len(indices), 10, dtype=torch.bool))  # fmt: skip
        return Batch([self.keys[i] for i in indices], images, captions, self.embed(indices, rows), text)

    def embed(self, indices: Sequence[int], conds: Noise) -> Tensor:
        """z_i belongs to the caption for the prior, whose target it is, and to the condition for the decoder."""
        return Noise.of(7, indices).normal((EMBED,)) if self.size == 8 else conds.at("z_i").normal((EMBED,))


class ForPrior(Samples):
    def __init__(self, shuffled: bool = False):
        super().__init__(8, shuffled)


def a_prior() -> PriorTask:
    config = prior().config
    wide = config.network.replace(transformer=TransformerConfig(width=32, layers=2, heads=2))
    return PriorTask(prior(network=wide))


def run(task: Task, data: Samples, path: Path, steps: int, lr: float = 3e-3) -> Verdict:
    return overfit(task, data, CONFIG.replace(lr=lr), path, N, steps=steps)


def blind_prior() -> PriorTask:
    task = a_prior()
    prompt = task.model.network.prompt
    task.model.network.prompt = lambda text, drop=None: prompt(text, torch.ones(len(text.strings), dtype=torch.bool))
    return task


def blind_decoder() -> DecoderTask:
    task = DecoderTask(decoder(text=False))
    encode = task.model.network.encode
    task.model.network.encode = lambda cond, count, drops=None: encode(cond._replace(image_embed=None), count)
    return task


@pytest.mark.parametrize(
    ("build", "data", "steps"),
    [
        (a_prior, ForPrior(), 150),
        (lambda: DecoderTask(decoder()), Samples(), 150),
        (lambda: UpsamplerTask(upsampler()), Samples(64), 60),
        (lambda: CLIPTask(clip()), Samples(), 60),
    ],
    ids=["prior", "decoder", "upsampler", "clip"],
)
def test_what_is_wired_right_passes(build: Callable[[], Task], data: Samples, steps: int, tmp_path: Path) -> None:
    found = run(build(), data, tmp_path, steps)
    assert found.passed, found.text
    assert found.text.startswith(f"After {steps} steps on 6 samples this stage is wired right.")
    assert len(found.checks) >= 2 and not build().model.training


@pytest.mark.parametrize(
    ("build", "data", "lr", "told"),
    [
        (blind_prior, ForPrior(), 3e-3, "cosine is .* the condition is ignored"),
        (blind_decoder, Samples(), 3e-3, "does not change at all with another image"),
        (a_prior, ForPrior(), 1e-12, "is anything trained"),
        (lambda: DecoderTask(decoder()), Samples(), 1e-12, "is anything trained"),
        (lambda: UpsamplerTask(upsampler()), Samples(64), 1e-12, "nothing is gained over resizing"),
        (a_prior, ForPrior(shuffled=True), 3e-3, "belongs to other samples"),
        (lambda: DecoderTask(decoder()), Samples(shuffled=True), 3e-3, "belongs to other samples"),
        (lambda: CLIPTask(clip()), Samples(shuffled=True), 3e-3, "do not belong together"),
    ],
    ids=["deaf prior", "deaf decoder", "still prior", "still decoder", "still upsampler", "shuffled prior",
         "shuffled decoder", "shuffled clip"],
)  # fmt: skip
def test_what_is_broken_fails(build: Callable[[], Task], data: Samples, lr: float, told: str, tmp_path: Path) -> None:
    import re

    found = run(build(), data, tmp_path, 5 if lr < 1e-6 else 80, lr)
    assert not found.passed and "NOT wired right" in found.text
    assert re.search(told, found.text), found.text


def test_the_settings_of_a_self_test() -> None:
    config = self_test(CONFIG.replace(micro_batch=4), 10, 200, world=4)
    assert (config.steps, config.batch, config.warmup, config.ema, config.micro_batch) == (200, 8, 10, 0.98, None)
    assert self_test(CONFIG.replace(micro_batch=4), 9, 200).micro_batch is None and config.lr == CONFIG.lr
    assert self_test(CONFIG.replace(micro_batch=4), 8, 200).micro_batch == 4
    few = First(Samples(), 3)
    assert len(few) == 3 and few.keys == ["0", "1", "2"]
    batch = few.batch([2], Noise.of(0))
    assert batch.keys == ["2"]
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        overfit(a_prior(), ForPrior(), CONFIG, "/nowhere", 1)


def test_a_verdict_says_what_failed() -> None:
    good = {"loss": 0.1, "cosine": 0.9, "cosine/other": 0.2, "cosine/text": 0.95}
    assert verdict({"loss": 1.0}, good, 8, 10).passed, "worse than the text embedding is no fault of the wiring"
    certain = good | {"R@5": 1.0, "R@5/chance": 1.0}
    assert verdict({"loss": 1.0}, certain, 5, 10).passed and not verdict({"loss": 1.0}, certain, 6, 10).passed
    for change, told in (
        ({"loss": 0.8}, "the loss was 1 at the start and is 0.8"),
        ({"cosine": 0.25}, "another sample gets"),
        ({"loss": None}, "not a number"),
    ):
        found = verdict({"loss": 1.0}, good | change, 8, 10)
        assert not found.passed and told in found.text


class SpecForPrior(DataSpec, frozen=True, kw_only=True):
    def open(self, classes: Sequence[str] | None = None) -> ForPrior:
        return ForPrior()


def test_the_command_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = emoji.prior().replace(model=a_prior().model.config, data=SpecForPrior(size=8))
    monkeypatch.setattr("unclip.runs.recipes.find", lambda name: recipe)
    arguments = ["train", "emoji.prior", "--overfit", "4", "--run", str(tmp_path / "run"), "train.precision=float32"]
    monkeypatch.setattr("unclip.training.overfit.train", quick)
    done = CliRunner().invoke(app, [*arguments, "train.lr=3e-3"])
    assert done.exit_code == 0 and "on 4 samples this stage is wired right" in done.output
    assert (tmp_path / "run-overfit" / "log.jsonl").exists() and not (tmp_path / "run").exists()
    done = CliRunner().invoke(app, [*arguments[:4], "--run", str(tmp_path / "still"), "train.lr=1e-12"])
    assert done.exit_code == 1 and "NOT wired right" in done.output


def quick(task: Task, data: First, config: TrainConfig, run_dir: Path):
    """A short training in place of the long one."""
    from unclip.training import train

    return train(task, data, config.replace(steps=80, log_every=40), run_dir)

"""What is said of held-out samples: the numbers of each stage, and how a validation reads, shares out and sums up."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny import CAPTIONS, EMBED, clip, decoder, prior, upsampler
from torch import Tensor, nn

from decoder import DecoderTask
from prior import PriorTask
from unclip.clip.task import CLIPTask
from unclip.metrics import psnr
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.training import TrainConfig
from unclip.training.evaluation import caption_ids, cost, judge, mean_losses, partner_texts, partners, retrieval
from unclip.training.task import Task
from unclip.training.validation import Validation
from unclip.types import Batch, Losses, Text
from upsamplers import UpsamplerTask
from upsamplers.filters import resize

CONFIG = TrainConfig(steps=1, batch=4, lr=1.0)
WORDS = ["red", "green", "blue", "cat", "dog", "hat", "two", "a"]


class Random:
    """n samples of random numbers, no two captions equal."""

    def __init__(self, n: int, size: int = 16):
        self.keys, self.size, self.read = [f"{i}" for i in range(n)], size, list[int]()
        self.captions = [f"{WORDS[i % 8]} {WORDS[i // 8 % 8]}" for i in range(n)]

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        assert noise is None
        self.read += indices
        rows = Noise.of(9, indices)
        captions = [self.captions[i] for i in indices]
        images = (0.6 * rows.at("image").normal((3, self.size, self.size))).clamp(-1, 1)
        with torch.no_grad():
            text = clip().encode_text(captions)
        return Batch([self.keys[i] for i in indices], images, captions, rows.at("z").normal((EMBED,)), text)


def analytic() -> PriorTask:
    return PriorTask(prior(sampling=Sampling(sampler="ddpm", steps=3, variance="analytic")))  # as the paper's


TASKS = {
    "prior": analytic,
    "decoder": lambda: DecoderTask(decoder()),
    "upsampler": lambda: UpsamplerTask(upsampler()),
    "clip": lambda: CLIPTask(clip()),
}


def rows_of(task: Task, data: Random, splits: Sequence[int]) -> dict[str, Tensor]:
    """What `validate` says of all samples, read in batches of these sizes."""
    assert sum(splits) == len(data)
    pieces, start = [], 0
    for size in splits:
        indices = range(start, start + size)
        pieces.append(task.eval().validate(data.batch(indices), Noise.of(0, indices).at("examine")))
        start += size
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


@pytest.mark.parametrize("stage", TASKS)
@torch.no_grad()
def test_a_sample_is_seen_alike_in_every_batch(stage: str) -> None:
    task, data = TASKS[stage](), Random(6, 64 if stage == "upsampler" else 16)
    whole, parted = rows_of(task, data, [6]), rows_of(task, data, [2, 4])
    assert whole.keys() == parted.keys()
    for name, value in whole.items():
        assert len(value) == 6
        torch.testing.assert_close(value, parted[name], rtol=1e-3, atol=1e-4)
    numbers = task.summarize(whole)
    assert all(isinstance(value, float) and math.isfinite(value) for value in numbers.values()), numbers
    assert "loss" in numbers and judge(numbers), "every stage has a number beside a baseline"


@torch.no_grad()
def test_the_numbers_of_a_prior() -> None:
    """What a perfect prior, one that answers with the caption, and one that does not listen get."""
    task, n = analytic(), 40
    noise = Noise.of(0, range(n))
    true, text = noise.at("true").normal((EMBED,)), noise.at("text").normal((EMBED,))
    zeros = {"loss": torch.zeros(n, 4), "t": torch.ones(n, 4, dtype=torch.int64)}
    rows = zeros | {"true": true, "text": text, "caption": torch.arange(n)}
    perfect = task.summarize(rows | {"drawn": 2 * true})
    assert perfect["cosine"] == pytest.approx(1) and perfect["R@1"] == perfect["R@5"] == 1
    assert perfect["norm"] == pytest.approx(2, abs=1e-5) and perfect["cosine/other"] < 0.2
    assert perfect["cosine/mean"] == pytest.approx(
        float(torch.cosine_similarity(true, true.mean(0, keepdim=True)).mean()), abs=1e-5
    )
    assert perfect["R@5/chance"] == 5 / 40 and perfect["R@1/text"] < 0.2
    assert all(found.better for found in judge(perfect))
    lazy = task.summarize(rows | {"drawn": text})
    assert lazy["cosine"] == lazy["cosine/text"] and lazy["R@1"] == lazy["R@1/text"]
    deaf = task.summarize(rows | {"drawn": true.flip(0)})
    assert not next(found for found in judge(deaf) if found.baseline == "mean").better
    twice = rows | {"caption": torch.arange(n) // 2}  # one caption of two pictures: either will do
    swapped = task.summarize(twice | {"drawn": partners(true)})
    assert swapped["R@1"] == 1 and swapped["R@1/chance"] == 1 / 20


@torch.no_grad()
def test_the_numbers_of_a_decoder() -> None:
    task, data = DecoderTask(decoder()), Random(4)
    batch, noise = data.batch(range(4)), Noise.of(0, range(4))
    rows = task.validate(batch, noise)
    assert rows["loss"].shape == (4, 4) and (rows["change_image"] > 0.01).all() and (rows["change_text"] > 0.001).all()
    numbers = task.summarize(rows)
    quarters = [numbers[f"loss_q{q}"] for q in range(1, 5)]
    assert any(math.isfinite(value) for value in quarters)
    plain = task.model.loss(batch.images, task._cond(batch, batch.images, noise), noise=noise.at("loss/0"))
    assert torch.equal(rows["loss"][:, 0], plain.total), "the loss is the one that is trained"
    # A decoder that does not see the embedding, and one that does not read the caption.
    deaf = DecoderTask(decoder())
    for layer in (deaf.model.network.conditions.image_embed.to_emb, deaf.model.network.conditions.image_embed.to_tokens):
        layer.weight.zero_()
    rows = deaf.validate(batch, noise)
    assert rows["change_image"].max() == 0 and torch.equal(rows["error"], rows["error/other"])
    assert rows["change_text"].min() > 0.001
    assert "change_text" not in DecoderTask(decoder(text=False)).validate(batch, noise)
    odd = task.validate(data.batch(range(3)), noise[:3])
    assert odd["change_image"].isnan().tolist() == [False, False, True] and not odd["error"].isnan().any()
    assert task.summarize(odd)["change_image"] > 0


@torch.no_grad()
def test_the_numbers_of_an_upsampler() -> None:
    class Bicubic(nn.Module):
        def __init__(self, kind: str):
            super().__init__()
            self.kind = kind

    task, data = UpsamplerTask(upsampler()), Random(3, 64)
    batch, noise = data.batch(range(3)), Noise.of(0, range(3))
    low, high = task._crops(batch.images, noise)
    answers = {"true": high, "bicubic": resize(low, tuple(high.shape[-2:])), "grey": torch.zeros_like(high)}
    numbers = {}
    for name, answer in answers.items():
        task.model.sample = lambda low_res, cond, noise, answer=answer: answer
        numbers[name] = task.summarize(task.validate(batch, noise))
    assert numbers["true"]["psnr"] > 50 and numbers["true"]["sharpness"] == pytest.approx(1, abs=0.01)
    assert numbers["bicubic"]["psnr"] == numbers["bicubic"]["psnr/bicubic"]
    assert not any(found.better for found in judge(numbers["bicubic"])) and all(f.better for f in judge(numbers["true"]))
    assert numbers["grey"]["sharpness"] == 0
    pooled = -10 * torch.log10((10 ** (-psnr(answers["grey"], high) / 10)).mean())
    assert numbers["grey"]["psnr"] == pytest.approx(float(pooled), abs=0.1)


def test_the_numbers_of_a_clip() -> None:
    task, unit = CLIPTask(clip()), nn.functional.normalize(Noise.of(0, range(20)).normal((EMBED,)), dim=-1)
    rows = {"image": unit, "text": unit, "scale": torch.full((20,), 100.0), "caption": torch.arange(20)}
    numbers = task.summarize(rows)
    assert numbers["image_to_text_R@1"] == numbers["text_to_image_R@5"] == 1 and numbers["loss"] < 0.1
    assert numbers["loss/chance"] == pytest.approx(math.log(20)) and numbers["text_to_image_R@5/chance"] == 0.25
    wrong = task.summarize(rows | {"text": unit.roll(1, 0)})
    assert wrong["image_to_text_R@1"] == 0 and wrong["loss"] > 3


def test_partners_and_captions() -> None:
    assert partners(torch.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]
    assert partners(torch.arange(3)).tolist() == [1, 0, 2]
    text = clip().encode_text(CAPTIONS[:2])
    swapped = partner_texts(text)
    assert swapped.strings == CAPTIONS[1::-1] and torch.equal(swapped.states[0], text.states[1])
    assert isinstance(swapped, Text)
    ids = caption_ids(["a", "b", "a"])
    assert ids[0] == ids[2] != ids[1] and (ids >= 0).all()
    features = torch.eye(3)
    assert retrieval(features[[2, 1, 0]], features, ids)["R@1"] == 1  # a's own picture or the other a's
    rows = {"loss": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "t": torch.tensor([[1, 3], [5, 8]])}
    assert mean_losses(rows, 8) == {"loss": 2.5, "loss_q1": 1.0, "loss_q2": 2.0, "loss_q3": 3.0, "loss_q4": 4.0}


def test_judging() -> None:
    row = {"step": 5, "cosine": 0.5, "cosine/text": 0.3, "cosine/mean": 0.6, "loss": 1.0, "loss/start": 2.0, "norm": 1.1}
    row |= {"norm/mean": 0.8, "change": None, "change/x": 1.0, "event": "validated"}
    found = {f"{j.number}/{j.baseline}": j.better for j in judge(row)}
    assert found == {"cosine/text": True, "cosine/mean": False, "loss/start": True, "norm/mean": True}
    assert str(judge(row)[0]) == "cosine 0.5: better than the text embedding (0.3)"
    assert "NOT better than the mean" in str(judge(row)[1])
    assert cost("norm", 2.0) == pytest.approx(cost("norm", 0.5))


class Process:
    """One of several processes, as far as a validation asks."""

    device = torch.device("cpu")

    def __init__(self, rank: int = 0, world: int = 1):
        self.process_index, self.num_processes, self.is_main_process = rank, world, rank == 0


class Counting(Task):
    """Gives each sample's number and noise back."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.sizes = nn.Linear(1, 1), list[int]()

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        return Losses(noise.uniform(), None, {})

    def validate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        self.sizes.append(len(batch.keys))
        number = torch.tensor([float(key) for key in batch.keys])
        return {"number": number, "partner": partners(number), "noise": noise.uniform()}

    def summarize(self, rows: dict[str, Tensor]) -> dict[str, float]:
        self.rows = rows
        return {"mean": float(rows["number"].mean()), "nan": float("nan"), "inf": float("inf")}


def test_a_validation_reads_evenly_spaced_samples() -> None:
    data, task = Random(100), Counting()
    validation = Validation(task, data, CONFIG.replace(validation_samples=7, batch=5), Process())  # type: ignore[arg-type]
    found = validation(3)
    assert data.read == [0, 14, 28, 42, 57, 71, 85, 0] and task.sizes == [4, 4]
    assert found == {"mean": pytest.approx(sum(data.read[:7]) / 7, rel=1e-5), "nan": None, "inf": math.inf}
    assert task.rows["number"].tolist() == data.read[:7]
    assert task.rows["partner"].tolist() == [14, 0, 42, 28, 71, 57, 0]
    first = task.rows["noise"]
    assert validation(4) == found and torch.equal(task.rows["noise"], first)
    other = Validation(task, data, CONFIG.replace(validation_samples=7, seed=1), Process())  # type: ignore[arg-type]
    other(3)
    assert not torch.equal(task.rows["noise"], first)
    with pytest.raises(ValueError, match="held-out data is empty"):
        Validation(task, Random(0), CONFIG, Process())  # type: ignore[arg-type]
    task.validate = lambda batch, noise: {"x": torch.zeros(1)}  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="Counting.validate gave 1 rows of 'x' for 4"):
        validation(5)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_rows_out(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes its share; put together in order they are what one process sees."""
    import accelerate.utils

    def broadcast(objects: list) -> None:
        objects[0] = objects[0] or {}  # the main process's answer, which the others wait for

    monkeypatch.setattr(accelerate.utils, "broadcast_object_list", broadcast)
    config = CONFIG.replace(validation_samples=9)
    alone = Counting()
    Validation(alone, Random(50), config, Process())(1)  # type: ignore[arg-type]
    shares: dict[str, list[Tensor]] = {"number": [], "partner": [], "noise": []}
    steps = set()
    for rank in range(world):
        task, process = Counting(), Process(rank, world)
        names = iter(shares)
        process.gather = lambda value, names=names: shares[next(names)].append(value) or value  # type: ignore[attr-defined]
        Validation(task, Random(50), config, process)(1)  # type: ignore[arg-type]
        steps.add(tuple(task.sizes))
    assert len(steps) == 1, "each runs the network as often as the others"
    for name, parts in shares.items():
        assert torch.equal(torch.cat(parts)[:9], alone.rows[name])


def test_a_run_is_examined_and_reported(tmp_path: Path) -> None:
    """From the loop through log and TensorBoard to the words of the report."""
    from unclip.runs.report import report
    from unclip.training import read_log, train

    class Loose(Random):
        def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
            return super().batch(indices)

    task = DecoderTask(decoder())
    config = TrainConfig(steps=4, batch=4, lr=1e-3, warmup=0, log_every=2, validate_every=2, validation_samples=4, best="-error")
    train(task, Loose(8), config, tmp_path, held_out=Random(8))
    rows = [row for row in read_log(tmp_path) if row.get("event") == "validated"]
    assert [row["step"] for row in rows] == [2, 4] and rows[0]["error"] != rows[1]["error"]
    text = report([tmp_path])
    assert "held out" in text and "another sample's" in text and "change_image" in text


PROGRAM = """
import sys, torch
sys.path[:0] = sys.argv[1:3]
import test_training_examine as t
from accelerate import Accelerator
torch.set_num_threads(1)
accelerator = Accelerator()
assert accelerator.num_processes == 2
task = t.DecoderTask(t.decoder()).eval()
found = t.Validation(task, t.Random(7), t.CONFIG.replace(validation_samples=7), accelerator)(1)
open(f"{sys.argv[3]}/{accelerator.process_index}", "w").write(repr(found))
"""


@pytest.mark.slow
def test_two_processes_say_what_one_says(tmp_path: Path) -> None:
    import os
    import socket

    from accelerate import Accelerator

    root = Path(__file__).resolve().parents[1]
    (tmp_path / "program.py").write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command += [str(tmp_path / "program.py"), str(root), str(root / "tests"), str(tmp_path)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=300)
    first, second = (eval((tmp_path / name).read_text()) for name in ("0", "1"))
    assert first == second
    alone = Validation(DecoderTask(decoder()).eval(), Random(7), CONFIG.replace(validation_samples=7), Accelerator(cpu=True))(1)
    assert first.keys() == alone.keys()
    for name, value in alone.items():
        assert first[name] == pytest.approx(value, rel=1e-3), name

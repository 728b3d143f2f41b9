"""What `test_training_processes.py` runs in two processes at once: python -m torch.distributed.run ... processes.py OUT."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny  # noqa: E402
import torch  # noqa: E402
from test_training_loop import BASE, Circle, ToyTask  # noqa: E402

from decoder.task import DecoderTask  # noqa: E402
from prior.task import PriorTask  # noqa: E402
from unclip.clip.task import CLIPTask, CLIPTaskConfig  # noqa: E402
from unclip.nn.transformer import TransformerConfig  # noqa: E402
from unclip.randomness import Noise  # noqa: E402
from unclip.training import load_ema, train  # noqa: E402
from unclip.training.task import Task  # noqa: E402
from unclip.types import Batch, Losses, Text  # noqa: E402

# eps: where a gradient is nothing but rounding, as that of attention's key biases is, Adam would make it as large as any other.
CONFIG = BASE.replace(steps=5, lr=1e-3, eps=1e-4, ema=(0.5, 0.9), log_every=1)
PLAIN = CONFIG.replace(validate_every=5, validation_samples=7)
SHARDED = PLAIN.replace(shard=True)


class Captioned:
    """Pictures, captions and what a CLIP would say of them."""

    keys = [str(i) for i in range(20)]

    def __len__(self) -> int:
        return 20

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        draw = Noise.of(7, indices)
        strings = [tiny.CAPTIONS[i % 3] for i in indices]
        mask = torch.arange(tiny.CONTEXT) < 3 + torch.tensor(list(indices))[:, None] % 5
        states = draw.at("states").normal((tiny.CONTEXT, tiny.WIDTH))
        text = Text(strings, mask.long(), draw.at("z_t").normal((tiny.EMBED,)), states, mask)
        images = draw.at("image").uniform((3, 16, 16)) * 2 - 1
        return Batch([self.keys[i] for i in indices], images, strings, draw.at("z_i").normal((tiny.EMBED,)), text)


def prior(dropout: float = 0.0) -> PriorTask:
    config = tiny.prior().config
    transformer = TransformerConfig(width=16, layers=3, heads=2, dropout=dropout)
    return PriorTask(tiny.prior(network=config.network.replace(transformer=transformer)))


def decoder(dropout: float = 0.0) -> DecoderTask:
    unet = tiny.unet(attention=(0, 1), multiple=(1, 2), head_channels=16, patch=2, dropout=dropout)
    return DecoderTask(tiny.decoder(unet=unet))


def clip() -> CLIPTask:
    return CLIPTask(tiny.clip(), CLIPTaskConfig(shift=0.1))


def sharp_clip() -> CLIPTask:
    return CLIPTask(tiny.clip(), CLIPTaskConfig(sam=0.1))


class Spoilt(ToyTask):
    """A teacher, and one bad sample: in the third step the last row's loss is not a number, which one process alone sees."""

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        losses = super().forward(batch, noise)
        factor = [float("nan") if path.split("/")[1:4] == ["7", "step", "2"] else 1.0 for path in noise.paths]
        return losses._replace(total=losses.total * torch.tensor(factor))


# name -> (task, data, config): run here with two processes, by the tests with one.
RUNS = {
    "prior": (prior, Captioned, PLAIN),
    "clip": (clip, Captioned, CONFIG),
    "spoilt": (Spoilt, Circle, CONFIG),
    "pieces": (prior, Captioned, CONFIG.replace(micro_batch=3)),
    "sharded-prior": (prior, Captioned, SHARDED.replace(micro_batch=3, checkpointing=True)),
    "sharded-decoder": (decoder, Captioned, SHARDED.replace(clip=0.5, sample_every=5)),
    "sharded-clip": (sharp_clip, Captioned, SHARDED),
    "sharded-spoilt": (Spoilt, Circle, CONFIG.replace(shard=True)),
}


def run(name: str, out: Path, **changes: object) -> Task:
    task, data, config = RUNS[name]
    made = task()
    held_out = data() if config.validate_every else None
    trained = train(made, data(), config.replace(**changes), out / name, held_out=held_out)
    if trained.ema and torch.distributed.is_initialized():
        saved = load_ema(out / name)
        assert all(torch.equal(tensor.nan_to_num(), saved[key].nan_to_num()) for key, tensor in trained.ema.items())
    return made


def main(out: Path) -> None:
    from accelerate import Accelerator

    state = Accelerator()
    assert state.num_processes == 2, "started as one process"
    for name in RUNS:
        task = run(name, out)
        if name == "sharded-prior":
            check_shards(task, state.process_index)
    # Begun with one process, continued with two, to be ended with one; sharded and not.
    seen: list[str] = []
    train(prior(), Recorded(seen), CONFIG.replace(steps=6), out / "handed")
    (out / f"handed-{state.process_index}.txt").write_text(" ".join(seen))
    train(prior(), Captioned(), CONFIG.replace(steps=6, shard=True), out / "handed-sharded")


class Recorded(Captioned):
    def __init__(self, seen: list[str]):
        self.seen = seen

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        self.seen += [self.keys[i] for i in indices]
        return super().batch(indices, noise)


def check_shards(task: Task, rank: int) -> None:
    """Each process holds its part of the weights and nothing of the others'."""
    whole = sum(p.numel() for p in prior().model.parameters())
    mine = sum(p.to_local().numel() for p in task.model.parameters())
    assert 0.3 * whole < mine < 0.7 * whole, f"{mine} of {whole} on process {rank}"


LOST = BASE.replace(steps=100_000, save_every=2, log_every=1)


def lose(out: Path) -> None:
    """The second process is gone, without a word, in the middle of training."""

    class Mortal(Circle):
        def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
            if os.environ["RANK"] == "1" and (out / "lost/state/step-00000004").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return super().batch(indices, noise)

    train(ToyTask(), Mortal(slow=0.01), LOST, out / "lost")


def last(out: Path) -> None:
    train(ToyTask(), Circle(slow=0.01), LOST.replace(save_every=10**6), out / "stopped")


def leave() -> None:
    """End the process with what it has done: on the way out of the interpreter gloo's threads may abort it (torch 2.14)."""
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    {"lose": lose, "last": last, "main": main}[sys.argv[2]](Path(sys.argv[1]))
    if sys.argv[2] == "main":
        leave()

"""The settings of a training run."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, Literal

import msgspec

from unclip.config import Config

# Settings that may change when a run goes on: they do not change what a step computes.  (`steps` may grow;
# under a cosine or linear decay the rest of the run then follows the longer schedule.)
FREE = {"steps", "log_every", "save_every", "sample_every", "keep", "compile", "validate_every", "validation_samples", "best"}
FREE |= {"trackers", "micro_batch", "checkpointing", "deterministic", "workers", "shard"}

RENAMED = {"examine_every": "validate_every", "examine_samples": "validation_samples"}  # since unclip 0.1.0, whose runs go on


class TrainConfig(Config, frozen=True, kw_only=True):
    steps: int
    batch: int  # samples per step over all processes
    lr: float
    warmup: int = 100  # steps from 0 to lr
    decay: Literal["constant", "cosine", "linear"] = "cosine"  # from lr to floor * lr at the last step
    floor: float = 0.0
    weight_decay: float = 0.01  # decoupled; matrices only, neither biases, gains nor embeddings
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = 1.0  # largest norm of the gradient over all parameters
    # Decay of the averaged weights, reached over a ramp min(ema, (1 + k) / (10 + k)).  Several: as many averages, of which
    # samples, validation and `Trained.ema` use the first.
    ema: float | tuple[float, ...] = 0.999
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # autocast; the weights themselves are float32
    channels_last: bool = False  # memory format of weights and pictures: faster convolutions
    compile: bool = False  # torch.compile of the network
    seed: int = 0
    max_skips: int = 10  # steps in a row with a loss or gradient that is not finite, before the run stops
    log_every: int = 50
    save_every: int | str = "600s"  # steps, or seconds as "600s"
    sample_every: int | None = None  # steps between grids of samples; None = no grids
    keep: int = 2  # newest states to keep
    validate_every: int | None = None  # steps between validations, on held-out samples; None = only after the last step
    validation_samples: int = 256  # held-out samples, always the same ones
    best: str | None = None  # number of a validation whose best state is kept too; "-loss" = smaller is better
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()  # beside the JSON lines
    micro_batch: int | None = None  # samples per process and backward pass, gradients adding up; None = all at once
    checkpointing: bool = False  # keep only the inputs of blocks and run each again in the backward pass: less memory
    deterministic: bool = False  # only operations that give the same bits every time; slower, needed on GPUs alone
    workers: int = 1  # threads that read ahead
    freeze: tuple[str, ...] = ()  # patterns of parameter names that stay as they are, as in "network.text*"
    shard: bool = False  # FSDP2: weights, gradients and moments shared out over the processes

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("steps", 1), ("batch", 1), ("warmup", 0), ("max_skips", 1), ("log_every", 1), ("keep", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        for name, most in (("batch", 1_000_000), ("workers", 1_000)):  # a slip, which would take all memory
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)}; it can be at most {most:,}")
        for name in ("validation_samples", "workers", "sample_every", "validate_every", "micro_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1{', or null' * (name.endswith(('every', 'batch')))}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr}; it must be a positive number")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor is {self.floor}; it is a fraction of lr, in [0, 1]")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be at least 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; both must lie in [0, 1)")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps is {self.eps}; it must lie in (0, 1)")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip is {self.clip}; it is the largest gradient norm allowed, above 0, or null for none")
        if not self.decays or not all(0 <= decay < 1 for decay in self.decays) or len({*self.decays}) < len(self.decays):
            raise ValueError(f"ema is {self.ema}; it is a decay per step, in [0, 1), or several different ones")
        if self.best is not None and not self.best.lstrip("-"):
            raise ValueError(f'best is {self.best!r}; it names a number of a validation, as in "-loss" where smaller is better')
        if self.shard and self.channels_last:
            raise ValueError("shard and channels_last do not go together: FSDP2 shares out contiguous weights alone")
        if self.save_steps is not None and self.save_steps < 1 or not self.save_seconds > 0:
            raise ValueError(f'save_every is {self.save_every!r}; write a number of steps, or seconds as "600s"')

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "config") -> TrainConfig:
        with suppress(msgspec.DecodeError):  # which is told next
            text = msgspec.json.encode(renamed(msgspec.json.decode(text)))
        return super().from_json(text, source)

    @property
    def decays(self) -> tuple[float, ...]:
        """The decay of each average of the weights."""
        return self.ema if isinstance(self.ema, tuple) else (self.ema,)

    @property
    def save_steps(self) -> int | None:
        """Steps between states, or None when they are saved by the clock."""
        return self.save_every if isinstance(self.save_every, int) else None

    @property
    def save_seconds(self) -> float:
        """Seconds between states; infinite when they are saved by step, NaN when unreadable."""
        if isinstance(self.save_every, int):
            return math.inf
        try:
            return float(self.save_every[:-1]) if self.save_every.endswith("s") else math.nan
        except ValueError:
            return math.nan

    def differences(self, other: TrainConfig) -> list[str]:
        """The settings in which two runs differ and which change what a step computes, as `name: a -> b`."""
        names = [name for name in self.__struct_fields__ if name not in FREE]
        pairs = [(name, _plain(getattr(self, name)), _plain(getattr(other, name))) for name in names]
        return [f"{name}: {a} -> {b}" for name, a, b in pairs if a != b]


def renamed(tree: Any) -> Any:
    """Settings as JSON has them, under the names that they have today."""
    return {RENAMED.get(name, name): value for name, value in tree.items()} if isinstance(tree, dict) else tree


def _plain(value: object) -> object:
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value

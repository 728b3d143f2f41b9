"""The plan of a training: from a task of fake or real components to gigabytes a card and days."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unclip.randomness import Noise
from unclip.training.blocks import blocks, recomputed
from unclip.training.config import TrainConfig
from unclip.training.run import prepare
from unclip.training.task import Task
from unclip.types import Batch

from .count import Count, count

MOST = 64  # samples that are run through; a card's share above it is read off the line through half as many


class Card(NamedTuple):
    """Bytes of memory; FLOP/s of dense matrix products in half precision and in plain float32, by the maker."""

    name: str
    memory: float
    half: float
    single: float


CARDS = {
    card.name: card
    for card in (
        Card("A100", 80e9, 312e12, 19.5e12),
        Card("A100-40GB", 40e9, 312e12, 19.5e12),
        Card("H100", 80e9, 989e12, 67e12),
        Card("H200", 141e9, 989e12, 67e12),
        Card("L40S", 48e9, 362e12, 91.6e12),
        Card("RTX4090", 24e9, 165e12, 82.6e12),
    )
}


class Memory(NamedTuple):
    """Bytes on one card.  `buckets`: DDP's copy of the gradients, or the blocks that FSDP has gathered."""

    weights: float
    teachers: float
    optimizer: float
    averages: float
    buckets: float
    step: float  # gradients and activations at their peak

    @property
    def total(self) -> float:
        return sum(self)


class Plan(NamedTuple):
    parameters: dict[str, int]  # of the model by component, the whole under ""
    teachers: int  # parameters
    trained: int
    steps: int
    batch: int
    cards: int
    share: int  # samples of a card in a step
    passes: int  # in so many pieces
    counted: Count  # of one piece, on one card
    sample: Count  # FLOPs of one sample; its memory fields mean nothing
    ddp: Memory
    fsdp: Memory
    card: Card
    utilisation: float
    precision: str

    @property
    def step_flops(self) -> float:
        return self.sample.flops * self.batch

    @property
    def run_flops(self) -> float:
        return self.step_flops * self.steps

    @property
    def speed(self) -> float:
        """FLOP/s of a card at its peak, in this precision."""
        return self.card.single if self.precision == "float32" else self.card.half

    @property
    def step_seconds(self) -> float:
        return self.step_flops / (self.cards * self.speed * self.utilisation)

    @property
    def days(self) -> float:
        return self.step_seconds * self.steps / 86_400

    def __str__(self) -> str:
        whole, components = self.parameters[""], [f"{name} {_millions(n)}" for name, n in self.parameters.items() if name]
        lines = [f"parameters  {_millions(whole)}: {', '.join(components)}"]
        lines += [f"            {_millions(self.trained)} of them trained"] if self.trained < whole else []
        lines += [f"            {_millions(self.teachers)} in frozen teachers"] if self.teachers else []
        pieces = f" in {self.passes} passes of {math.ceil(self.share / self.passes)}" if self.passes > 1 else ""
        lines.append(f"batch       {self.batch:,}: {self.share:,} on each of {self.cards:,} {self.card.name}{pieces}")
        unit, size = ("GB", 1e9) if self.ddp.total > 1e9 else ("MB", 1e6)
        lines.append(f"memory      {unit} a card weights teachers optimizer averages buckets    step   total")
        for name, memory in (("DDP", self.ddp), ("FSDP", self.fsdp)) if self.cards > 1 else (("one card", self.ddp),):
            columns = (f"{value / size:{width}.1f}" for value, width in zip((*memory, memory.total), (18, 8, 9, 8, 7, 7, 7)))
            fits = "" if memory.total <= self.card.memory else f"  more than {self.card.name}'s {self.card.memory / size:.0f}"
            lines.append(f"  {name:9} {' '.join(columns)}{fits}")
        activations, grads = (
            f"activations {self.counted.activations / size:.1f}",
            f"gradients {self.counted.gradients / size:.1f}",
        )
        lines.append(f"            step: {activations} when the forward pass ends and {grads}, at their peak")
        s = self.sample
        teachers = f", teachers {_flop(s.teachers)}" if s.teachers else ""
        each = f"forward {_flop(s.forward)}, backward {_flop(s.backward)}{teachers}"
        lines.append(f"work        {_flop(s.flops)} a sample ({each})")
        lines.append(f"            {_flop(self.step_flops)} a step, {self.run_flops:.3g} FLOP in {self.steps:,} steps")
        rate = f"{100 * self.utilisation:.0f} % of {self.speed / 1e12:.0f} TFLOP/s"
        length, step = _time(86_400 * self.days), _time(self.step_seconds)
        lines.append(f"time        {length} ({step} a step) on {self.cards:,} {self.card.name} at {rate}")
        return "\n".join(lines)


def plan(
    task: Task,
    train: TrainConfig,
    example: Callable[[int], Batch],
    cards: int = 1,
    card: Card = CARDS["A100"],
    utilisation: float = 0.4,
) -> Plan:
    """What training `task` with these settings will need on so many cards.

    task: of `fake` components, or real ones.  example: so many samples such as training will meet, on the CPU.  The step of one
    card is run, forwards and backwards, on the CPU; weights stay as they are.  ValueError: a batch that cannot be shared out.
    """
    if cards < 1 or train.batch % cards:
        raise ValueError(f"a batch of {train.batch} cannot be shared equally by {cards} cards")
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation is {utilisation}; it is the part of the cards' speed that is reached, in (0, 1]")
    modes = [(module, module.training) for module in task.modules()]
    # The layout of weights in memory changes no number here, and fake ones have none.
    model, share = prepare(task, train.replace(channels_last=False), None), train.batch // cards
    piece = min(train.micro_batch or share, share)
    passes = math.ceil(share / piece)
    try:
        counted = _count(task, train, example, piece, passes)
    finally:
        for module, training in modes:
            module.training = training
    again = 2 if getattr(task, "sam_rho", None) is not None else 1  # sharpness-aware: each step twice
    flops = [value * again / piece for value in counted[:3]]
    sample = counted._replace(forward=flops[0], teachers=flops[1], backward=flops[2])
    sizes = _sizes(task, train, counted, cards, again > 1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return Plan(
        _parts(model),
        sum(p.numel() for module in _teachers(task) for p in module.parameters()),
        sum(p.numel() for p in parameters),
        train.steps,
        train.batch,
        cards,
        share,
        passes,
        counted,
        sample,
        *sizes,
        card,
        utilisation,
        train.precision,
    )


def _count(task: Task, train: TrainConfig, example: Callable[[int], Batch], piece: int, passes: int) -> Count:
    if piece > MOST:
        half, whole = (_run(task, train, example(rows), rows, passes) for rows in (MOST // 2, MOST))
        return half.towards(whole, (piece - MOST // 2) / (MOST - MOST // 2))
    return _run(task, train, example(piece), piece, passes)


def _run(task: Task, train: TrainConfig, batch: Batch, rows: int, passes: int) -> Count:
    noise, precision = Noise.of(train.seed, range(rows)).at("loss"), getattr(torch, train.precision)

    def step() -> Tensor:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            return task(batch, noise[:]).total.float().mean()

    with torch.random.fork_rng(devices=[]), recomputed(task.model, train.checkpointing):
        return count(task.model, step, min(passes, 2))


def _sizes(task: Task, train: TrainConfig, counted: Count, cards: int, sam: bool) -> tuple[Memory, Memory]:
    """Of DDP and of FSDP.  Weights, moments and averages are float32."""
    weights = _bytes(task.model)
    trained = sum(4 * p.numel() for p in task.model.parameters() if p.requires_grad)
    teachers = sum(map(_bytes, _teachers(task)))
    averages = weights * len(train.decays)
    held = weights * (2 if sam else 1)  # beside the perturbed weights the unperturbed ones
    ddp = Memory(held, teachers, 2 * trained, averages, trained if cards > 1 else 0, counted.peak)
    # FSDP gathers what lies outside the blocks for the whole pass, and a block while the one before it runs; the gradients of a
    # block are whole until they have been averaged.
    units = sorted((sum(4 * p.numel() for p in block.parameters()) for block in blocks(task.model)), reverse=True)
    outside = sum(4 * p.numel() for p in task.model.parameters()) - sum(units)
    gathered = 0 if cards == 1 else 2 * outside + sum(units[:2]) + sum(units[:1])
    step = counted.working + counted.gradients / cards
    return ddp, Memory(held / cards, teachers, 2 * trained / cards, averages / cards, gathered, step)


def _parts(model: nn.Module) -> dict[str, int]:
    """Parameters of the model, of its components and of those of its network."""
    counts = {"": sum(p.numel() for p in model.parameters())}
    for name, child in model.named_children():
        if name == "network":
            inner = {f"{name}.{n}": sum(p.numel() for p in c.parameters()) for n, c in child.named_children()}
            rest = sum(p.numel() for p in child.parameters()) - sum(inner.values())
            counts |= inner | ({f"{name}, single": rest} if rest else {})
        else:
            counts[name] = sum(p.numel() for p in child.parameters())
    return {name: n for name, n in counts.items() if n}


def _teachers(task: Task) -> list[nn.Module]:
    """Modules beside `task.model`; tasks keep them in lists, out of torch's sight."""
    kept = [x for value in vars(task).values() if isinstance(value, list) for x in value]
    beside = [child for name, child in task.named_children() if name != "model"]
    return [x for x in (*beside, *kept) if isinstance(x, nn.Module)]


def _bytes(module: nn.Module) -> int:
    tensors = (*module.parameters(), *module.buffers())
    return sum(x.numel() * x.element_size() for x in tensors)


def _millions(n: int) -> str:
    return f"{n / 1e6:,.1f}M" if n >= 1e5 else f"{n / 1e3:,.1f}K"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60), ("s", 1)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1e3 * seconds:.3g} ms"


def _flop(value: float) -> str:
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e6:.3g} MFLOP"

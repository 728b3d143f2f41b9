"""Training log: running means over samples, JSON lines, one console line, grids of samples."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unclip.checks import path_of
from unclip.types import Losses


class Seen(NamedTuple):
    """What a step came to; not fine = its loss or gradient was not finite and it was skipped."""

    step: int
    fine: bool
    loss: float
    norm: float


class Pending(NamedTuple):
    step: int
    names: tuple[str, ...]
    values: Float[Tensor, "names b"]
    t: Int[Tensor, " b"] | None
    norm: Tensor
    bad: Tensor


class Meter:
    """Means over all samples since the last log line, of every process, with the loss by timestep quartile.

    `add` only keeps tensors; `flush` gathers and sums them, step by step in float64, so that the result depends neither
    on when it is called nor on how many processes share a batch.
    """

    def __init__(self, T: int | None, gather: Callable[[Tensor], Tensor] | None = None):
        self.T, self.gather = T, gather or (lambda tensor: tensor)
        self.sums: dict[str, list[float]] = {}  # name -> [sum, count]
        self.skipped = 0
        self._pending: list[Pending] = []

    def add(self, step: int, losses: Losses, norm: Tensor, bad: Tensor) -> None:
        names, total = ("loss", *losses.terms), losses.total.detach().float()
        terms = [term.detach().to(total).expand(len(total)) for term in losses.terms.values()]
        if self._pending and self._pending[-1].names != names:
            raise ValueError(f"loss terms must be the same at every step: {self._pending[-1].names}, then {names}")
        self._pending.append(Pending(step, names, torch.stack([total, *terms]), losses.t, norm, bad))

    def flush(self) -> list[Seen]:
        """Sum what was added since the last call and say what became of each step."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        # Samples come first, so that gathering puts processes into the order of the global batch.
        values = self.gather(torch.stack([p.values for p in pending]).permute(2, 0, 1).contiguous())
        values = values.cpu().double()  # b steps names; in this order, as MPS has no float64
        quarters = self._quarters([p.t for p in pending], pending[0].values.device)
        norms, bads = torch.stack([p.norm for p in pending]).tolist(), torch.stack([p.bad for p in pending]).tolist()
        report = []
        for i, (step, names, *_) in enumerate(pending):
            report.append(Seen(step, not bads[i], float(values[:, i, 0].mean()), norms[i]))
            if bads[i]:
                self.skipped += 1
                continue
            for j, name in enumerate(names):
                self._count(name, values[:, i, j])
            if quarters is not None:
                for q in range(4):
                    self._count(f"loss_q{q + 1}", values[quarters[:, i] == q, i, 0])
            self._count("grad_norm", torch.tensor([norms[i]], dtype=torch.float64))
        return report

    def take(self) -> dict[str, Any]:
        """The means, None where nothing was counted, and the number of skipped steps; starts anew."""
        means = {name: digits(total / count) if count else None for name, (total, count) in self.sums.items()}
        skipped = self.skipped
        self.sums, self.skipped = {}, 0
        return {**means, "skipped": skipped}

    def state(self) -> dict[str, Any]:
        return {"sums": self.sums, "skipped": self.skipped}

    def load(self, state: dict[str, Any]) -> None:
        self.sums = {name: list(pair) for name, pair in state["sums"].items()}
        self.skipped = state["skipped"]

    def _quarters(self, ts: list[Tensor | None], device: torch.device) -> Int[Tensor, "b steps"] | None:
        known = [t.to(device) for t in ts if t is not None]
        if self.T is None or len(known) < len(ts):
            return None
        t = self.gather(torch.stack(known, 1)).cpu()
        return ((t - 1) * 4 // self.T).clamp(0, 3)

    def _count(self, name: str, values: Tensor) -> None:
        pair = self.sums.setdefault(name, [0.0, 0])
        pair[0] += float(values.sum())
        pair[1] += len(values)


class Log:
    """`log.jsonl` in the run folder, and the console; lines after `step`, of a run that was cut off, are dropped.

    A full disk stops nothing: lines wait until there is room.
    """

    def __init__(self, run_dir: Path, step: int, active: bool = True, say: Callable[[str], object] | None = None):
        self.path, self.active, self.tell = run_dir / "log.jsonl", active, say or partial(print, flush=True)
        if active:
            run_dir.mkdir(parents=True, exist_ok=True)
            _cut(self.path, step)
            self._file = self.path.open("ab", buffering=0)  # a buffer would keep what the disk refused, and write it again
            self._end, self._pending = self.path.stat().st_size, b""

    def write(self, row: dict[str, Any]) -> None:
        if self.active:
            reported = bool(self._pending)
            self._pending += json.dumps({k: _finite(v) for k, v in row.items()}).encode() + b"\n"
            try:
                self._put()
            except OSError as error:
                if not reported:
                    self.say(f"{self.path} could not be written: {error}; training goes on, the lines follow when there is room")

    def say(self, text: str) -> None:
        if self.active:
            with suppress(OSError):  # the console may be a file on the same disk, or gone
                self.tell(text)

    def sync(self) -> None:
        """Onto the disk, before the state that counts on these lines.  OSError: they are not there."""
        if self.active:
            self._put()
            os.fsync(self._file.fileno())

    def _put(self) -> None:
        """Write what is pending.  OSError: it still is, and the file ends with a whole line."""
        rest = memoryview(self._pending)
        try:
            while rest:  # a disk that fills up takes a part first
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end, self._pending = self._end + len(self._pending), b""

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        if self.active:
            with suppress(OSError):
                self._put()
            with suppress(OSError):
                self._file.close()


def read_log(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's log, but for a last one that is not whole.  ValueError: another one cannot be read."""
    path = path_of(run_dir) / "log.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):  # the last one is what a kill or a full disk left
                raise ValueError(f"{path}, line {number} cannot be read: {error}") from None
    return rows


def console_line(row: dict[str, Any], steps: int) -> str:
    """One console line of a log row."""
    quarters = [f"{row[f'loss_q{q}']:.3g}" if row.get(f"loss_q{q}") is not None else "-" for q in range(1, 5)]
    columns = [f"step {row['step']}/{steps}", f"loss {_number(row.get('loss'))}"]
    if any(q != "-" for q in quarters):
        columns.append("by t " + " ".join(quarters))
    known = {"step", "samples", "loss", "grad_norm", "lr", "ema", "skipped", "samples_per_second", "seconds"}
    columns += [f"{k} {_number(v)}" for k, v in row.items() if k not in known and not k.startswith("loss_q")]
    columns += [f"grad {_number(row.get('grad_norm'))}", f"lr {_number(row['lr'])}", f"{row['samples_per_second']:.4g}/s"]
    columns += [f"skipped {row['skipped']}"] if row.get("skipped") else []
    return "  ".join(columns)


def digits(value: float) -> float:
    """Six significant digits: enough to read, short in the file."""
    return float(f"{value:.6g}")


def _cut(path: Path, step: int) -> None:
    """Keep the whole lines up to `step`."""
    if not path.exists():
        return
    kept = bytearray()
    for raw in path.read_bytes().splitlines(keepends=True):
        try:
            if not raw.endswith(b"\n") or json.loads(raw)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept += raw
    if len(kept) != path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(len(kept))


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no NaN


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "-"

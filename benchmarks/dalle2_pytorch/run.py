"""Runs the workers of `training.py`, some at a time, and keeps what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.dalle2_pytorch.jobs import Job
from benchmarks.dalle2_pytorch.tables import OURS, THEIRS

ROOT = Path(__file__).resolve().parents[2]
WORKERS = {OURS: "benchmarks.dalle2_pytorch.ours", THEIRS: "benchmarks.dalle2_pytorch.theirs"}  # run at ROOT


class Results:
    """What workers found, in a JSON file that is written as each of them ends."""

    def __init__(self, path: Path):
        self.path = path
        self.record: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def has(self, job: Job) -> bool:
        return job.name in self.record and self.record[job.name]["spec"] == json.loads(json.dumps(job.spec))

    def add(self, job: Job, found: dict[str, Any], measured: dict[str, Any] | None) -> None:
        from unclip.files import write_files

        self.record[job.name] = {"spec": json.loads(json.dumps(job.spec)), "found": found}
        if measured is not None:
            self.record[job.name]["measured"] = measured
        write_files([(self.path, f"{json.dumps(self.record)}\n".encode())])

    def of(self, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
        """Of these jobs, in their order."""
        return {job.name: self.record[job.name] for job in jobs if self.has(job)}


def lanes(jobs: int, threads: int) -> list[list[int]]:
    """The cores of each of the workers that run side by side; empty lists where a system does not tell or pin cores."""
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))
    if jobs * threads > len(cores):
        raise ValueError(f"{jobs} jobs of {threads} threads each need {jobs * threads} cores; there are {len(cores)}")
    return [cores[i * threads : (i + 1) * threads] for i in range(jobs)]


class Worker:
    """A process that does a job."""

    def __init__(self, job: Job, python: Path, cores: list[int], threads: int, runs: Path):
        stem = "".join(c if c.isalnum() else "-" for c in job.name)
        self.job, self.out, self.drawn = job, runs / "work" / f"{stem}.json", runs / "work" / f"{stem}.safetensors"
        self.log_path, spec_path = runs / "work" / f"{stem}.log", runs / "work" / f"{stem}.job"
        spec_path.parent.mkdir(parents=True, exist_ok=True)
        self.out.unlink(missing_ok=True)
        spec = job.spec | {"precision": job.spec.get("runs in", job.spec["precision"])}
        spec_path.write_text(json.dumps(spec | {"cores": cores, "out": str(self.out), "drawn": str(self.drawn)}))
        # Both on the CPU, where a GPU is to be had too: that is what is compared.
        variables = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
        self.began = time.perf_counter()
        self.log = self.log_path.open("w")
        command = [str(python), "-m", WORKERS[job.spec["system"]], str(spec_path)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=self.log, stderr=subprocess.STDOUT)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def result(self) -> dict[str, Any]:
        self.log.close()
        if self.process.returncode or not self.out.exists():
            tail = "".join(self.log_path.read_text().splitlines(keepends=True)[-15:])
            sys.exit(f"{self.job.name} ended with status {self.process.returncode}, {self.log_path}:\n{tail}")
        results: dict[str, Any] = json.loads(self.out.read_text())
        return results


def run_jobs(
    jobs: Sequence[Job],
    results: Results,
    cores: list[list[int]],
    threads: int,
    pythons: dict[str, Path],
    runs: Path,
    measure: Callable[[Job, Path], dict[str, Any]] | None = None,
) -> None:
    """As many at once as there are lists of cores, in the order of the jobs; those that have ended before are not run again."""
    waiting, running = [job for job in jobs if not results.has(job)], dict[int, Worker]()
    try:
        while waiting or running:
            for lane in range(len(cores)):
                if lane not in running and waiting:
                    job = waiting.pop(0)
                    running[lane] = Worker(job, pythons[job.spec["system"]], cores[lane], threads, runs)
            time.sleep(0.1)
            for lane, worker in [(lane, worker) for lane, worker in running.items() if worker.ended()]:
                outcome = worker.result()
                measured = measure(worker.job, worker.drawn) if measure else None
                results.add(worker.job, outcome, measured)
                worker.drawn.unlink(missing_ok=True)
                del running[lane]
                print(f"  {worker.job.name}: {time.perf_counter() - worker.began:.0f} s", file=sys.stderr, flush=True)
    finally:
        for worker in running.values():  # another one failed, or a signal ends this process
            worker.process.terminate()
            worker.process.wait()

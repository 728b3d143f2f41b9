"""The machine that numbers were measured on, in one line."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch


def describe() -> str:
    """CPU, cores, memory and versions in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else 0.0
    return (
        f"{_cpu()}, {cores} cores, {torch.get_num_threads()} threads, {gigabytes:.0f} GB, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}"
    )


def _cpu() -> str:
    """The model's name; where it says little ("AMD EPYC"), family and model tell which it is."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().split("\n\n", 1)[0].splitlines())
        fields = {key.strip(): value.strip() for key, _, value in lines}
        if "model name" in fields:
            return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"
    if platform.system() == "Darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return asked.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()

"""The record of the ablations as Markdown, each number beside its difference from the baseline's on the same pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from unclip.metrics import interval

BASELINE = "baseline"
GUESS = "RMS error of x0"
# (heading, split, name, whether it is a share)
COLUMNS = {
    "decoder": [
        ("error of x0, held out", "heldout", f"{GUESS}, mean over t", False),
        ("drawn, RMS to the truth, held out", "heldout", "guided, RMS to the true picture", False),
        ("top-1 / top-5 held out, guided", "heldout", "guided, nearest picture top-", True),
        ("unguided", "heldout", "unguided, nearest picture top-", True),
        ("trained, guided", "train", "guided, nearest picture top-", True),
        ("trained, unguided", "train", "unguided, nearest picture top-", True),
    ],
    "upsampler_256": [
        ("PSNR, dB", "heldout", "PSNR, dB", False),
        ("less bicubic's", "heldout", "PSNR less bicubic's, dB", False),
        ("gradient magnitude / truth's", "heldout", "gradient magnitude / truth's", False),
    ],
}


def markdown(path: Path) -> str:
    """Two tables: everything by variant, and the errors of x0 by timestep (decoder)."""
    if not path.exists():
        raise ValueError(f"{path} is not there: nothing has been measured yet")
    record = json.loads(path.read_text())
    columns, variants = COLUMNS[record["stage"]], record["variants"]
    heads = ["variant", "updates", "pictures", "ms per picture", *(column[0] for column in columns), "ms per evaluation"]
    rows = []
    for name, results in variants.items():
        settings = " ".join(results.get("settings", []))
        cells = [f"{name}{f' (`{settings}`)' if settings else ''}"]
        if "failed" in results:
            rows.append([*cells, f"failed: {results['failed']}", *[""] * (len(heads) - 2)])
            continue
        cells += [f"{results['updates']:,}", f"{results['pictures']:,}", f"{results['ms per picture']:.1f}"]
        cells += [cell(variants, name, *column[1:]) for column in columns]
        rows.append([*cells, f"{results['ms per evaluation']:.1f}"])
    about = (
        f"{record['CPU seconds']:g} CPU seconds of one thread each, measured on {record['n']} pictures. Brackets: the difference "
        "from the baseline on the same pictures with its bootstrap 95 % interval, in bold where it leaves out 0."
    )
    text = f"{about}\n\n{_table(heads, rows)}"
    return f"{text}\n\n{_by_timestep(variants)}" if record["stage"] == "decoder" else text


def cell(variants: dict[str, Any], name: str, split: str, number: str, share: bool) -> str:
    """A mean and its difference from the baseline; of shares top-1 / top-5 in per cent, with the difference of top-5."""
    own = variants[name]["numbers"][split]
    if share:
        means = " / ".join(f"{100 * own[f'{number}{k}']['mean']:.0f}" for k in (1, 5))
        return f"{means} %{_difference(variants, name, split, f'{number}5', 100, 0)}"
    return f"{own[number]['mean']:.3f}{_difference(variants, name, split, number, 1, 3)}"


def _difference(variants: dict[str, Any], name: str, split: str, number: str, scale: float, digits: int) -> str:
    base = variants.get(BASELINE, {}).get("numbers")
    if name == BASELINE or base is None:
        return ""
    pairs = (torch.tensor(x[split][number]["values"]).double() for x in (variants[name]["numbers"], base))
    mean, low, high = (scale * x for x in interval(next(pairs) - next(pairs))[:3])
    text = f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f" (**{text}**)" if low > 0 or high < 0 else f" ({text})"


def _by_timestep(variants: dict[str, Any]) -> str:
    done = {name: results["numbers"]["heldout"] for name, results in variants.items() if "numbers" in results}
    if not done:
        return ""
    steps = [key for key in next(iter(done.values())) if key.startswith(f"{GUESS} at")]
    heads = [f"{GUESS}, held out", *(key.removeprefix(f"{GUESS} at ") for key in steps)]
    rows = [[name, *(cell(variants, name, "heldout", key, False) for key in steps)] for name in done]
    return _table(heads, rows)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""Folders of models with one thing changed, by seed: refused in one line and status 2, or loaded with the right weights."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mutations
import pytest
import tiny
import typer

from unclip.cli.common import Errors
from unclip.pipelines.unclip import UnCLIP

SECONDS, BYTES = 30, 2 * 2**30  # that any of them may take


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    tiny.pipeline().save_pretrained(folder)
    return folder


@contextmanager
def limited() -> Iterator[None]:
    """At most so much time and memory; a test that takes more is ended by an error."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds of work, or ten times as long in all")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handlers = {number: signal.signal(number, late) for number in (signal.SIGPROF, signal.SIGALRM)}
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # the machine may be busy with other things, and what waits does not work
    signal.alarm(10 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in handlers.items():
            signal.signal(number, handler)


def attempt(folder: Path, capsys: pytest.CaptureFixture[str]) -> UnCLIP | None:
    """As the commands load a model: the pipeline, or None after one line and status 2."""
    capsys.readouterr()
    try:
        with limited(), Errors():
            return UnCLIP.from_pretrained(folder)
    except typer.Exit as exit:
        told = capsys.readouterr().err
        assert exit.exit_code == 2 and told.startswith("error: ") and told.count("\n") == 1, told
        assert told[:-1].isprintable() and len(told) < 2000 and "out of memory" not in told, told
        return None


def check(saved: Path, folder: Path, seed: int, truth: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    shutil.copytree(saved, folder)
    told = mutations.mutate(folder, seed)
    try:
        pipe = attempt(folder, capsys)
    except BaseException as error:
        raise AssertionError(f"mutation {told}: {type(error).__name__} {error}") from error
    shutil.rmtree(folder)
    if pipe is not None:
        found = {name: part.state_dict() for name, part in pipe.components.items()}
        assert list(found) == list(truth), told
        names = [(name, n) for name, state in truth.items() for n in state]
        wrong = [one for one in names if not mutations.same(found[one[0]][one[1]], truth[one[0]][one[1]])]
        assert wrong == [], f"mutation {told} loaded other weights: {wrong[:4]}"
    return f"{told} -> {'refused' if pipe is None else 'loaded'}"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of memory")
@pytest.mark.parametrize("first", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(60, 600, 60))])
def test_mutated_models(saved: Path, tmp_path: Path, first: int, capsys: pytest.CaptureFixture[str]) -> None:
    truth = {name: part.state_dict() for name, part in UnCLIP.from_pretrained(saved).components.items()}
    told = [check(saved, tmp_path / "mutated", seed, truth, capsys) for seed in range(first, first + 60)]
    loaded = [line for line in told if line.endswith("loaded")]
    assert 0 < len(loaded) < 40, json.dumps(told, indent=1)

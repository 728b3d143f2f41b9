"""What somebody sees who watches: a line at once, bars that stay as they ended; and nothing of it where nobody does."""

from __future__ import annotations

import os
import re
import select
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch

from unclip.pipelines.load import from_pretrained
from unclip.progress import Bars, is_watched
from unclip.types import Step

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.pipeline().save_pretrained(folder)
    return folder


def step(stage: str, number: int, steps: int, rows: slice, total: int) -> Step:
    return Step(stage, number, steps, 0, torch.zeros(1), rows, total)


def test_bars_of_chunks_are_one_and_each_is_closed_before_the_next(bars: list) -> None:
    with Bars() as shown:
        for number in (1, 2):
            shown(step("prior", number, 2, slice(0, 5), 5))
        for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
            for number in (1, 2, 3):
                shown(step("decoder", number, 3, rows, 5))
                assert bars[0] == ["prior (5 pictures)", 2, 2, True]
        assert bars[1] == ["decoder (5 pictures)", 9, 9, False]
        shown(step("decoder", 1, 3, slice(0, 2), 5))  # the same stage once more
        assert bars[1][3] and bars[2] == ["decoder (5 pictures)", 1, 9, False]
    assert all(bar[3] for bar in bars)


def test_bars_where_nobody_watches_are_none_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_watched()
    for shown in (None, False):
        with Bars(shown) as quiet:
            quiet.show("train", 1, 2)
            quiet.say("a line")
        assert capsys.readouterr() == ("a line\n", "")
    with Bars(True) as loud:
        loud.show("train", 1, 2, unit="step")
        loud.say("a line")
    told = capsys.readouterr()
    assert told.out == "a line\n" and "train:  50%" in told.err and "1/2" in told.err


def test_loading_a_pipeline_shows_how_many_bytes_are_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from_pretrained(folder)
    from_pretrained(folder, progress=False)
    assert capsys.readouterr().err == ""
    for offload in (False, True):
        from_pretrained(folder, progress=True, offload=offload)
        told = capsys.readouterr().err
        assert re.search(r"loading tiny:   0%.*loading tiny: 100%", told, re.DOTALL) and told.endswith("\n")


def test_pipelines_show_bars_where_somebody_watches(folder: Path, bars: list, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, steps = from_pretrained(folder), []
    plain = pipe.generate("two dogs", size=16, progress=False)
    assert bars == []
    made = pipe("two dogs", size=16, callback=steps.append)  # a callback goes on being told
    expected = [["prior", 3, 3, True], ["decoder", 3, 3, True]]
    assert bars == expected and len(steps) == 6 and torch.equal(made.images, plain.images)
    with Bars() as own:  # as the command's
        pipe.generate("two dogs", size=16, callback=own)
    assert bars == 2 * expected
    bars.clear()
    pipe.interpolate(["cats", "dogs"], steps=2, size=16)  # draws captions first, with the same bars
    assert [bar[0] for bar in bars] == ["prior (2 pictures)", "decoder (2 pictures)", "decoder (2 pictures)"]
    monkeypatch.setattr("unclip.progress.is_watched", lambda: False)
    bars.clear()
    pipe.generate("two dogs", size=16)
    assert bars == []
    pipe.generate("two dogs", size=16, progress=True)
    assert bars == expected
    with pytest.raises(TypeError, match="captions"):
        pipe.generate()


def test_a_pipeline_tells_what_it_is(folder: Path) -> None:
    told = repr(from_pretrained(folder).to(dtype="bfloat16")).splitlines()
    assert told[0].startswith("UnCLIP 'tiny': pictures of 16, 64, 256 pixels, ")
    assert told[0].endswith("M parameters, on cpu, bfloat16")
    assert [line.split(":")[0].strip() for line in told[1:]] == ["clip", "prior", "decoder", "upsampler_64", "upsampler_256"]
    assert repr(from_pretrained(folder, offload=True)).splitlines()[0].endswith("float32, offloaded")
    assert repr(from_pretrained(folder).cascade).startswith("Cascade 'tiny': pictures of 16, 64, 256 pixels")


def in_terminal(*arguments: str, cwd: Path) -> list[tuple[float, str]]:
    """Lines that a terminal is sent, and when; what overwrites a line is one of its own."""
    import fcntl
    import pty
    import struct
    import termios

    begun = time.monotonic()
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(cwd)
        os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
        os.execv(sys.executable, [sys.executable, "-m", "unclip.cli", *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    lines: list[tuple[float, str]] = []
    try:
        while select.select([terminal], [], [], 120)[0] and (data := os.read(terminal, 65536)):
            words = re.split(r"[\r\n]+", data.decode(errors="replace"))
            lines += [(time.monotonic() - begun, line) for line in words if line.strip()]
    except OSError:  # how Linux says that the process has gone
        pass
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, lines
    return lines


@pytest.mark.skipif(os.name != "posix", reason="a terminal of ours")
def test_a_terminal_is_told_at_once_and_keeps_every_bar_as_it_ended(folder: Path, tmp_path: Path) -> None:
    lines = in_terminal("generate", "two dogs", "--model", str(folder), "-o", "x.png", "--size", "64", cwd=tmp_path)
    told = [line for _, line in lines]
    assert told[0] == f"loading {folder} ..." and told[-1] == "x.png"
    assert lines[0][0] < 0.5 * lines[-1][0]  # long before the libraries are there
    for stage, steps in (("prior", 3), ("decoder", 3), ("upsampler_64", 3)):
        last = [line for line in told if line.startswith(f"{stage}:")][-1]
        assert last.startswith(f"{stage}: 100%") and f"{steps}/{steps}" in last

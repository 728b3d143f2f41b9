"""Two processes on the CPU against one: the same data, gradients, weights, logs and states, weights whole and sharded."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import torch
from processes import CONFIG, LOST, RUNS, Captioned, Recorded, prior
from test_training_loop import Circle, ToyTask

from unclip.training import load_ema, read_log, train
from unclip.training.state import newest

CLOCK = {"seconds", "samples_per_second"}
SCRIPT = Path(processes.__file__)
# Seconds for a launch; it takes minutes where other work has the cores.  A process that waits for a dead one waits for 1,800.
PATIENCE = 600


def launch(*arguments: str, script: Path = SCRIPT) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", str(script)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "UNCLIP_UNCHECKED": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *arguments], env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def wait(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=PATIENCE)[0]
    finally:
        process.send_signal(signal.SIGTERM)  # the launcher ends its workers
        if process.poll() is None:
            process.wait(30)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of `processes.RUNS` by two processes, in one launch."""
    folder = tmp_path_factory.mktemp("two")
    seen: list[str] = []
    train(prior(), Recorded(seen), CONFIG.replace(steps=3), folder / "handed")
    (folder / "seen.txt").write_text(" ".join(seen))
    train(prior(), Captioned(), CONFIG.replace(steps=3), folder / "handed-sharded")
    process = launch(str(folder), "main")
    printed = wait(process)
    assert process.returncode == 0, printed[-3000:]
    return folder


@pytest.fixture(scope="module", params=RUNS)
def name(request: pytest.FixtureRequest, alone: Path) -> str:
    processes.run(request.param, alone)
    return request.param


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs by this process."""
    return tmp_path_factory.mktemp("one")


def test_two_processes_train_as_one(out: Path, alone: Path, name: str) -> None:
    one, two = newest(alone / name), newest(out / name)
    assert one is not None and two is not None and one.step == two.step == 5
    start = dict(RUNS[name][0]().model.named_parameters())
    assert all(one.tensors[file].keys() == two.tensors[file].keys() for file in one.tensors)
    moved = 0.0
    for parameter in start:
        for file in ("model", "ema"):
            a, b = one.tensors[file][parameter], two.tensors[file][parameter]
            torch.testing.assert_close(b, a, rtol=0, atol=1e-5, msg=f"{file} {parameter}")
        moved = max(moved, float((one.tensors["model"][parameter] - start[parameter]).detach().abs().max()))
    assert moved > 1e-3
    for key, value in one.tensors["optimizer"].items():  # gradients, without Adam's division: its first moments
        if key.startswith("exp_avg/"):
            torch.testing.assert_close(two.tensors["optimizer"][key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_two_processes_log_what_one_does(out: Path, alone: Path, name: str) -> None:
    one, two = read_log(alone / name), read_log(out / name)
    assert [(row["step"], row.get("event")) for row in one] == [(row["step"], row.get("event")) for row in two]
    assert len(one) >= 5
    for a, b in zip(one, two):
        assert a.keys() == b.keys()
        for key in a.keys() - CLOCK:
            if isinstance(a[key], float):
                assert b[key] == pytest.approx(a[key], rel=2e-4, abs=1e-5), key
            else:
                assert b[key] == a[key], key


def test_one_bad_sample_is_skipped_by_all_processes_and_told_by_the_main_one(out: Path) -> None:
    for name in ("spoilt", "sharded-spoilt"):
        row = next(row for row in read_log(out / name) if row.get("event") == "skipped")
        assert row["step"] == 3 and row["module"] == "Spoilt" and row["direction"] == "forward"


def test_sharded_weights_draw_samples_too(out: Path, alone: Path) -> None:
    from PIL import Image

    pictures = [Image.open(run / "sharded-decoder/samples/step-00000005.png") for run in (alone, out)]
    one, two = (torch.tensor(list(picture.tobytes())).float() for picture in pictures)
    assert one.std() > 10 and float((one - two).abs().max()) <= 2  # of 255


def test_handing_a_run_from_one_process_to_two_and_back_keeps_data_and_result(out: Path, tmp_path: Path) -> None:
    straight: list[str] = []
    config = CONFIG.replace(steps=9)
    expected = train(prior(), Recorded(straight), config, tmp_path / "straight").ema
    last: list[str] = []
    for name in ("handed", "handed-sharded"):
        last.clear()
        found = train(prior(), Recorded(last), config, out / name).ema
        for parameter, _ in prior().model.named_parameters():
            torch.testing.assert_close(found[parameter], expected[parameter], rtol=0, atol=1e-5)
        assert [row["step"] for row in read_log(out / name)] == list(range(1, 10))
    # The middle three batches of 8 came from two processes, 4 samples each.
    halves = [(out / f"handed-{rank}.txt").read_text().split() for rank in range(2)]
    middle = [key for k in range(0, 12, 4) for half in halves for key in half[k : k + 4]]
    assert (out / "seen.txt").read_text().split() + middle + last == straight


# With three timesteps it happens in most steps that only one of the processes has a row for the network of the last one.
OWN_LAST_STEP = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import processes, tiny, torch
from unclip.randomness import Noise
from unclip.training import train
from unclip.types import Batch
from upsamplers import Upsampler, UpsamplerTask

class Pictures(processes.Captioned):
    def batch(self, indices, noise=None):
        return Batch([self.keys[i] for i in indices], Noise.of(1, indices).uniform((3, 64, 64)) * 2 - 1)

config = tiny.upsampler().config
config = config.replace(last_step="own", schedule=config.schedule.replace(steps=3))
for shard in (False, True):
    torch.manual_seed(0)
    settings = processes.PLAIN.replace(batch=4, micro_batch=1, validate_every=2, validation_samples=4, shard=shard)
    train(UpsamplerTask(Upsampler(config)), Pictures(), settings, Path(sys.argv[3]) / str(shard), held_out=Pictures())
processes.leave()
"""


def test_processes_train_an_upsampler_whose_last_step_is_its_own(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(OWN_LAST_STEP)
    tests = SCRIPT.parent
    process = launch(str(tests.parent), str(tests), str(tmp_path), script=program)
    printed = wait(process)
    assert process.returncode == 0, printed[-3000:]
    plain, shared = load_ema(tmp_path / "False"), load_ema(tmp_path / "True")
    for name, tensor in plain.items():
        torch.testing.assert_close(shared[name], tensor, rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_on_all_processes(tmp_path: Path) -> None:
    process, run = launch(str(tmp_path), "last"), tmp_path / "stopped"
    for _ in range(1200):
        time.sleep(0.1)
        if len(read_log(run)) > 3:
            break
    process.send_signal(signal.SIGTERM)
    printed = wait(process)
    assert "stopped by signal 15" in printed and process.returncode != 0
    state = newest(run)
    assert state is not None and state.step == read_log(run)[-1]["step"]
    config = LOST.replace(steps=state.step + 2)
    train(ToyTask(), Circle(), config, run)
    for name, tensor in train(ToyTask(), Circle(), config, tmp_path / "straight").ema.items():
        torch.testing.assert_close(load_ema(run)[name], tensor, rtol=0, atol=1e-5)


def test_a_lost_process_ends_the_others_and_the_same_command_goes_on(tmp_path: Path) -> None:
    begun = time.monotonic()
    process = launch(str(tmp_path), "lose")
    printed = wait(process)
    assert process.returncode not in (0, None), printed[-2000:]
    assert time.monotonic() - begun < PATIENCE, "nobody waits for the dead"
    rows = read_log(tmp_path / "lost")
    state = newest(tmp_path / "lost")
    assert state is not None and 4 <= state.step <= rows[-1]["step"] < 200
    config = LOST.replace(steps=state.step + 4)
    train(ToyTask(), Circle(), config, tmp_path / "lost")
    train(ToyTask(), Circle(), config, tmp_path / "straight")
    assert [row["step"] for row in read_log(tmp_path / "lost")] == list(range(1, state.step + 5))
    for name, tensor in load_ema(tmp_path / "straight").items():
        torch.testing.assert_close(load_ema(tmp_path / "lost")[name], tensor, rtol=0, atol=1e-5)

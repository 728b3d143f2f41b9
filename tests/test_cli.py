"""The command: what it writes and prints, and one clear line with status 2 for everything it cannot do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_pipelines_generation import full_disk
from typer.testing import CliRunner

from prior import ARNetworkConfig, ARPrior, ARPriorConfig, ARSampling, QuantizerConfig
from unclip import __version__, checkpoint, cli, hub
from unclip.cli import common
from unclip.images import metadata, to_pil
from unclip.nn.transformer import TransformerConfig
from unclip.pipelines.unclip import UnCLIP
from unclip.randomness import Noise
from unclip.sampling import Sampling

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "tiny"
    tiny.pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def run(folder: Path, *arguments: Any) -> Any:
    done = call("generate", *arguments, "--model", folder)
    assert done.exit_code == 0, done.output
    return done


def fails(*arguments: Any) -> str:
    """The one line of standard error, of a call that ends with status 2 and writes nothing."""
    before = sorted(Path.cwd().rglob("*"))
    done = call(*arguments)
    assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
    assert done.stdout == "" and sorted(Path.cwd().rglob("*")) == before
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_one_picture(folder: Path) -> None:
    done = run(folder, "a red heart", "-o", "x.png", "--seed", 3, "--first", 4)
    assert done.stdout == "x.png\n" and done.stderr == ""
    expected = {"caption": "a red heart", "seed": "3", "index": "4", "model": "tiny", "version": __version__}
    assert expected.items() <= metadata("x.png").items()
    made = UnCLIP.from_pretrained(folder).generate("a red heart", seed=3, first=4)
    with Image.open("x.png") as picture:
        assert picture.size == (256, 256) and picture.tobytes() == to_pil(made.images[0]).tobytes()


def test_several_pictures(folder: Path) -> None:
    done = run(folder, "a red heart", "", "-o", "out", "--n", 2, "--size", 16, "--seed", -1)
    assert done.stdout.splitlines() == [f"out/0000{k}.png" for k in range(4)]
    assert [metadata(f"out/0000{k}.png")["caption"] for k in range(4)] == ["a red heart", "a red heart", "", ""]
    run(folder, "a red heart", "-o", "y.png", "--n", 2, "--size", 16)
    assert sorted(p.name for p in Path().glob("*.png")) == ["y-0.png", "y-1.png"]
    with Image.open("out/00003.png") as picture:
        assert picture.size == (16, 16)


def test_options_reach_their_stages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    generate = UnCLIP.generate
    monkeypatch.setattr(UnCLIP, "generate", lambda self, *a, **k: asked.update(k, dtype=self.dtype) or generate(self, *a, **k))
    own = tiny.pipeline().components
    run(folder, "two dogs", "-o", "x.png", "--size", 16, "--guidance", 4, "--prior-guidance", 1.5, "--dtype", "bfloat16")
    assert asked["decoder"] == own["decoder"].config.sampling.replace(guidance=4.0)
    assert asked["prior"] == own["prior"].config.sampling.replace(guidance=1.5) and asked["dtype"] == torch.bfloat16
    assert asked["upsamplers"] == [own["upsampler_64"].config.sampling, own["upsampler_256"].config.sampling]
    run(folder, "two dogs", "-o", "y.png", "--size", 16, "--steps", "decoder=5, prior=4,upsampler_256=2", "--device", "cpu")
    assert (asked["decoder"].steps, asked["prior"].steps) == (5, 4)
    assert [s.steps for s in asked["upsamplers"]] == [tiny.STEPS, 2]


def test_the_papers_preset() -> None:
    measured, text = tiny.prior(), tiny.clip().encode_text(tiny.CAPTIONS)
    pipe = tiny.pipeline(prior=measured)
    with pytest.raises(ValueError, match="prior: its analytic variance was not measured at 64 of the 64 timesteps"):
        cli.settings(pipe, "paper", None, None, None)
    with torch.no_grad():
        measured.measure_variance(torch.randn(3, tiny.EMBED), text, 64, Noise.of(0, range(3)))
    paper = cli.settings(pipe, "paper", None, None, None)
    told = {name: (s.sampler, s.steps, s.variance) for name, s in paper.items()}
    assert told["prior"] == ("ddpm", 64, "analytic") and told["decoder"] == ("ddpm", 250, "small")
    assert told["upsampler_64"][:2] == ("ddim", 27) and told["upsampler_256"][:2] == ("ddim", 15)
    assert paper["decoder"].guidance == 2.0 and paper["decoder"].threshold == "static"  # the model's own
    assert cli.settings(pipe, "paper", "prior=64,decoder=9", 1.0, None)["decoder"].steps == 9
    with pytest.raises(ValueError, match=r"not measured at .* of steps 63; leave out the option .*prior.measure_variance"):
        cli.settings(pipe, "paper", "prior=63", None, None)
    made = pipe.generate("two dogs", size=16, prior=paper["prior"], decoder=paper["decoder"].replace(steps=3))
    assert torch.isfinite(made.images).all()


def test_info(folder: Path) -> None:
    done = call("info", folder)
    assert done.exit_code == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == f"tiny (unclip {__version__}); pictures of 16, 64, 256 pixels"
    assert [line.split()[:2] for line in lines[1:4]] == [["clip", "CLIP"], ["prior", "DiffusionPrior"], ["decoder", "Decoder"]]
    count = sum(p.numel() for part in tiny.pipeline().components.values() for p in part.parameters())
    assert lines[6].split() == ["all", f"{count / 1e6:.2f}M", "parameters"]
    assert "steps 3, guidance 2" in lines[3]
    assert lines[7:] == ["  data: random numbers", "  stages:", "    clip:", "      steps: 0"]


def test_info_tells_every_training_run_on_its_line(tmp_path: Path) -> None:
    runs = [{"step": 5, "settings": {}}, {"step": 7, "settings": {"train.lr": 0.1, "balance": 0.5}}]
    tiny.pipeline(provenance={"stages": {"clip": {"training_runs": runs}}}).save_pretrained(tmp_path / "m")
    lines = call("info", tmp_path / "m").stdout.splitlines()
    assert lines[-3:] == ["      training_runs:", "      - step 5", "      - step 7, settings (train.lr 0.1, balance 0.5)"]


def ar_prior(**changes: Any) -> ARPrior:
    network = ARNetworkConfig(
        transformer=TransformerConfig(width=16, layers=1, heads=2),
        embed_dim=tiny.EMBED,
        context=tiny.CONTEXT,
        states_width=tiny.WIDTH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        prior = ARPrior(ARPriorConfig(network=network, quantizer=QuantizerConfig(dims=5, buckets=16), **changes)).eval()
    embeds = Noise.of(0, range(60)).normal((2, tiny.EMBED))
    prior.fit(embeds[:, 0], embeds[:, 1])
    return prior


def test_a_pipeline_with_an_autoregressive_prior(bars: list) -> None:
    pipe = tiny.pipeline(prior=ar_prior(sampling=ARSampling(guidance=1.5, top_p=0.9)))
    pipe.save_pretrained("model")
    run(Path("model"), "two dogs", "-o", "own.png", "--size", 16)
    assert bars == [["prior", 6, 6, True], ["decoder", 3, 3, True]]  # a pass for each symbol: the dot product and five components
    run(
        Path("model"),
        "two dogs",
        "-o",
        "guided.png",
        "--size",
        16,
        "--prior-guidance",
        4,
        "--preset",
        "paper",
        "--steps",
        "decoder=3",
    )
    for name, prior in (("own", None), ("guided", Sampling(guidance=4.0))):
        decoder = cli.settings(pipe, "paper", "decoder=3", None, None)["decoder"] if prior else None
        made = pipe.generate("two dogs", size=16, prior=prior, decoder=decoder)
        with Image.open(f"{name}.png") as picture:
            assert picture.tobytes() == to_pil(made.images[0]).tobytes()
    ask = ("generate", "two dogs", "--model", "model", "-o", "x.png")
    assert "draws its 6 symbols one by one and has no steps" in fails(*ask, "--steps", "prior=64")
    assert "prior: guidance is nan" in fails(*ask, "--prior-guidance", "nan")
    line = call("info", "model").stdout.splitlines()[2]
    assert line.split()[:2] == ["prior", "ARPrior"] and line.endswith("autoregressive, 6 symbols, guidance 1.5")


def test_two_priors_in_one_model(folder: Path) -> None:
    prior = ar_prior()
    shutil.copytree(folder, "both")
    prior.save_pretrained("both/ar_prior")
    index = checkpoint.Index.load("both/unclip.json")
    Path("both/unclip.json").write_text(index.replace(components={**index.components, "ar_prior": "ARPrior"}).to_json())
    for kind, expected in (
        ((), tiny.pipeline()),
        (("--prior", "diffusion"), tiny.pipeline()),
        (("--prior", "ar"), tiny.pipeline(prior=prior)),
    ):
        run(Path("both"), "two dogs", "-o", "x.png", "--size", 16, "--overwrite", *kind)
        with Image.open("x.png") as picture:
            assert picture.tobytes() == to_pil(expected.generate("two dogs", size=16).images[0]).tobytes()
    ask = ("generate", "two dogs", "-o", "y.png", "--model")
    assert "has no component 'ar_prior'; its priors: prior" in fails(*ask, folder, "--prior", "ar")
    assert "no prior 'arr'; there are diffusion, ar" in fails(*ask, folder, "--prior", "arr")
    assert list(checkpoint.open_pipeline("both").components)[:4] == ["clip", "prior", "ar_prior", "decoder"]


def test_version_and_help() -> None:
    assert call("--version").stdout == f"unclip {__version__}\n"
    assert "generate" in call("--help").stdout
    text = call("generate", "--help").stdout
    options = "output model n seed first size guidance prior-guidance prior steps preset device dtype"
    assert [option for option in options.split() if f"--{option}" not in text] == []


GENERATE = ("generate", "a red heart", "-o", "x.png", "--model", "MODEL")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", 100), "size is 100; this pipeline makes pictures of 16, 64, 256 pixels"),
        (("--size", 0), "size is 0"),
        (("--steps", "decoder=0"), "decoder: steps is 0"),
        (("--steps", "decoder=1001"), "decoder: cannot take 1001 steps out of 1000"),
        (("--steps", "upsampler_256=1001"), "upsampler_256: cannot take 1001"),
        (("--steps", "decoder"), "--steps 'decoder' not understood: write prior|decoder|upsampler_64|upsampler_256=number"),
        (("--steps", "decodr=5"), "--steps 'decodr=5' not understood"),
        (("--steps", "decoder=-5"), "not understood"),
        (("--steps", "decoder=5,"), "not understood"),
        (("--guidance", "-1"), "decoder: guidance is -1.0; it must be a finite number of at least 0"),
        (("--guidance", "nan"), "decoder: guidance is nan"),
        (("--prior-guidance", "inf"), "prior: guidance is inf"),
        (("--preset", "papr"), "no preset 'papr'; there are paper"),
        (("--preset", "paper"), "prior: its analytic variance was not measured"),
        (("--dtype", "float64"), "no dtype 'float64'; there are float32, bfloat16, float16"),
        (("--dtype", "float16"), "use bfloat16 or float32"),
        (("--device", "gpu"), "device 'gpu' cannot be used here"),
        (("--device", "cuda:99"), "device 'cuda:99' cannot be used here"),
        (("--device", "meta"), "device 'meta' cannot be used here"),
        (("--model", "emoij"), "no model 'emoij': shipped are"),
        (("--model", "/no/such/folder"), "no model '/no/such/folder'"),
        (("-o", "x.gif"), "written as .png or .jpg or .jpeg or .webp or into a folder, not as '.gif'"),
        (("-o", "x.png", "--quality", "80"), "quality is 80, but PNG loses nothing: it is for JPEG and WebP"),
        (("-o", __file__ + "/x.png"), "cannot write"),
        (("-o", "/proc/unclip/x.png"), "cannot write"),
        (("-o", "n" * 300 + ".png"), "File name too long"),
    ],
)
def test_bad_options_end_with_one_line(folder: Path, arguments: tuple, message: str) -> None:
    assert message in fails(*(folder if word == "MODEL" else word for word in GENERATE), *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate",),
        ("generate", "a"),
        (*GENERATE, "--n", 0),
        (*GENERATE, "--first", -1),
        (*GENERATE, "--seed", "x"),
        (*GENERATE, "--stps", 3),
    ],
)
def test_usage_errors_end_with_status_2(arguments: tuple) -> None:
    done = call(*arguments)
    assert done.exit_code == 2 and "Error" in done.stderr and done.stdout == ""


def test_broken_models_end_with_one_line(folder: Path, here: Path) -> None:
    ask = ("generate", "a red heart", "-o", "x.png", "--model", "broken")
    shutil.copytree(folder, "broken")
    index = Path("broken/unclip.json").read_text()
    Path("broken/unclip.json").write_text(index.replace("Upsampler", "Upsmpler"))
    assert "knows no component 'Upsmpler'" in fails(*ask)
    Path("broken/unclip.json").write_text(index.replace('"embed_dim": 12', '"embed_dim": 13'))
    assert "another CLIP: expected embed_dim 13, given 12" in fails(*ask)
    Path("broken/unclip.json").write_text(index)
    weights = Path("broken/prior/model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    save_file({**tensors, "network.query": tensors["network.query"] * float("nan")}, weights)
    assert "model.safetensors is not what was saved" in fails(*ask)
    checkpoint.seal("broken/prior")
    assert "NaN or infinite weights in network.query" in fails(*ask)
    save_file({name: tensor for name, tensor in tensors.items() if "positions" not in name}, weights)
    assert "1 missing: network.positions" in fails(*ask) and "1 missing" in fails("info", "broken")
    weights.write_bytes(weights.read_bytes()[:500])
    assert "cannot be read as safetensors" in fails(*ask)
    tiny_prior = tiny.prior(scaling="statistics")
    shutil.rmtree("broken/prior")
    tiny_prior.save_pretrained("broken/prior")
    assert "statistics are missing" in fails(*ask)


def test_faults_of_the_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = ("generate", "a red heart", "-o", "x.png", "--model", folder, "--size", 64)
    with full_disk(2000):
        assert "cannot write x.png: File too large" in fails(*ask)

    def broken(error: Exception) -> None:
        def sample(*a: Any, **k: Any) -> None:
            raise error

        monkeypatch.setattr("upsamplers.upsampler.Upsampler.sample", sample)

    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")):
        broken(error)
        assert "out of memory: draw fewer pictures at once" in fails(*ask)
    broken(RuntimeError("a fault of ours"))
    done = call(*ask)
    assert done.exit_code == 1 and isinstance(done.exception, RuntimeError)  # with its traceback, for a report


def test_warnings_of_ours_are_one_line_and_libraries_are_quiet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show, disabled = warnings.showwarning, common.logging.root.manager.disable
    encode = tiny.CLIP.encode_text

    def noisy(self: Any, captions: list[str]) -> Any:
        warnings.warn_explicit("something is deprecated", UserWarning, torch.__file__, 1)
        common.logging.getLogger("library").warning("look here")
        return encode(self, captions)

    monkeypatch.setattr(tiny.CLIP, "encode_text", noisy)
    # In the tests calls pass through the type checker, which then looks like the file that warns.
    monkeypatch.setattr(common, "HOUSES", [*common.HOUSES, Path(jaxtyping.__file__).parent])
    long = "a cat with a red heart with a cat on a hat"
    done = run(folder, long, long + " hat", "-o", "x.png", "--size", 16, "--n", 2)
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and all(line.startswith("warning: the caption 'a cat") and "dropped" in line for line in lines)
    assert warnings.showwarning is show and common.logging.root.manager.disable == disabled
    fails("generate", "x", "-o", "x.png", "--model", "nowhere")
    assert warnings.showwarning is show and common.logging.root.manager.disable == disabled


def test_bars_count_the_steps_of_all_chunks_together(folder: Path, bars: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unclip.pipelines.cascade.PIXELS_AT_ONCE", 16 * 16)
    run(folder, "two dogs", "-o", "x.png", "--size", 16, "--n", 2, "--steps", "decoder=4")
    assert bars == [["prior (2 pictures)", 3, 3, True], ["decoder (2 pictures)", 8, 8, True]]


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_is_not_swallowed_by_an_import(here: Path, ignored: bool) -> None:
    Path("swallows.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    print('swallowed')\n"
    )
    Path("try.py").write_text(
        "import signal\nfrom unclip import cli\n\ndef command():\n"
        "    try:\n        signal.raise_signal(signal.SIGINT)\n        print('ignored')\n"
        "    except KeyboardInterrupt:\n        print('interrupted')\n    import swallows\n\n"
        # A shell's background job, as these tests may be, begins with Ctrl-C ignored.
        f"signal.signal(signal.SIGINT, signal.{'SIG_IGN' if ignored else 'default_int_handler'})\ncli.app = command\ncli.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run([sys.executable, "try.py"], capture_output=True, text=True, env=environment)
    assert done.stdout == ("ignored\n" if ignored else "interrupted\n") and done.stderr == ""
    assert done.returncode == (0 if ignored else -signal.SIGINT)


def test_as_a_program(folder: Path, here: Path) -> None:
    """A fresh process: nothing but the file's name is printed; bad input ends with one line and status 2."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"capture_output": True, "text": True, "env": environment, "cwd": here}
    start = [sys.executable, "-m", "unclip.cli", "generate", "a red heart", "--model", str(folder), "--size", "16", "-o"]
    done = subprocess.run([*start, "x.png"], **options)
    assert (done.returncode, done.stdout, done.stderr) == (0, "x.png\n", "") and metadata("x.png")["model"] == "tiny"
    done = subprocess.run([*start, "x.bmp"], **options)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_the_entry_point() -> None:
    text = (ROOT / "setup.cfg").read_text()
    assert "unclip = unclip.cli:main" in text and callable(cli.main)
    assert (hub.SHIPPED.parent / "py.typed").exists()

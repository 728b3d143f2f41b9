"""What the figure scripts share: options, pictures that nobody chose, progress, and files that tell how they came about.

A script is a function from a `Run` (options, pipeline, pictures) to `Drawn` (files and numbers); `main` calls it and writes
FOLDER/<name>.json beside its pictures.  In the numbers pixels are those of the decoder's size, in [-1, 1].
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm

from experiments.emoji.data import source
from experiments.emoji.data.emoji_data import EmojiData
from experiments.emoji.evaluation.measure import by_hash
from unclip import __version__, metrics
from unclip.checkpoint import fingerprint
from unclip.clip.preprocess import fit_square
from unclip.data.images import load_image
from unclip.editing.latent import Latent
from unclip.files import write_files
from unclip.images import animation, eight_bit, png_bytes, sheet, to_pil
from unclip.pipelines.unclip import UnCLIP
from unclip.sampling import Inversion

FOLDER = Path(__file__).parents[1] / "results"
CELL = 128  # pixels of a picture in a sheet, at most
AT_ONCE = 10  # pictures inverted together
BEST = 99.0  # dB, in place of infinity, which JSON does not know

Number = Mapping[str, float]
Numbers = dict[str, dict[str, Number]]  # by setting, then by name


@dataclass
class Drawn:
    """What a script hands back: files by what follows the script's name, numbers, and whatever else belongs in the record."""

    files: dict[str, bytes]
    numbers: Numbers
    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class Chosen:
    """Pictures (3, h, w) with what they show."""

    keys: list[str]
    captions: list[str]
    images: list[Float[Tensor, "3 h w"]]

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class Run:
    name: str
    options: argparse.Namespace
    pipe: UnCLIP
    metadata: dict[str, str]  # text fields of every picture

    @property
    def small(self) -> int:
        """The decoder's size, where everything is measured."""
        return self.pipe.sizes[0]

    @property
    def size(self) -> int:
        """What the pictures of the sheets are drawn at."""
        if getattr(self.options, "size", None) is not None:
            return int(self.options.size)
        return next((size for size in self.pipe.sizes if size >= CELL), self.pipe.sizes[-1])

    @property
    def inversion(self) -> Inversion | None:
        """None = the decoder's own."""
        inputs = {"steps": self.options.steps, "refine": self.options.refine}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        own = getattr(getattr(self.pipe.decoder, "config", None), "inversion", Inversion())
        return own.replace(**inputs) if inputs else None

    def pictures(self, size: int | None = None, n: int | None = None) -> Chosen:
        """The files of --pictures, else the first n held-out emoji by hash, rendered at `size` (default: the decoder's)."""
        if self.options.pictures:
            return read(self.options.pictures, self.options.captions)
        if self.options.captions:
            raise ValueError("--captions says what the files of --pictures show; without files the emoji's own are used")
        data = self.emoji("heldout", size)
        rows = by_hash(data.keys, data.captions, n or self.options.n)
        images = data.batch(rows).images
        assert images is not None
        return Chosen([data.keys[i] for i in rows], [data.captions[i] for i in rows], list(images))

    def emoji(self, split: str, size: int | None = None) -> EmojiData:
        """The emoji, where they are this model's data; else ValueError."""
        if not trained_on_emoji(self.pipe):
            raise ValueError(f"the model {self.pipe.name!r} was not trained on the emoji: name pictures with --pictures FILE...")
        try:
            return EmojiData(split, size or self.small)  # type: ignore[arg-type]
        except (ValueError, OSError) as error:
            raise ValueError(f"{error}; or name files with --pictures FILE...") from None

    def fitted(self, images: Sequence[Tensor]) -> Float[Tensor, "b 3 s s"]:
        """Pictures as the decoder sees them."""
        return torch.cat([fit_square(image[None].float(), self.small) for image in images])

    def invert(self, images: Sequence[Tensor]) -> list[Latent]:
        """The latent of each picture."""
        latents: list[Latent] = []
        with self.progress("inverting", len(images)) as bar:
            for start in range(0, len(images), AT_ONCE):
                chunk = self.pipe.invert(list(images[start : start + AT_ONCE]), self.inversion)
                latents += [chunk.rows(slice(i, i + 1)) for i in range(len(chunk))]
                bar.update(len(chunk))
        return latents

    @torch.no_grad()
    def embed(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit image embeddings of the pipeline's own CLIP."""
        return normalize(self.pipe.clip.encode_image(images.to(self.pipe.device)).float().cpu(), dim=-1)

    @torch.no_grad()
    def embed_text(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """Unit text embeddings of the pipeline's own CLIP."""
        return normalize(self.pipe.clip.encode_text(list(captions)).embed.float().cpu(), dim=-1)

    @contextmanager
    def progress(self, title: str, total: int, unit: str = " pictures", weigh: bool = False) -> Iterator[Any]:
        """A bar on standard error that also moves with each evaluation of the decoder's network; `weigh`: that is its unit."""
        network, evaluations = getattr(self.pipe.decoder, "network", None), 0
        with tqdm(total=total, desc=title, unit=unit, file=sys.stderr, disable=None) as bar:

            def count(module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
                nonlocal evaluations
                evaluations += 1
                if weigh:
                    bar.update(len(given[0]))
                else:
                    bar.set_postfix_str(f"{evaluations} network evaluations", refresh=False)
                    bar.update(0)

            hook = network.register_forward_hook(count) if isinstance(network, nn.Module) else None
            try:
                yield bar
            finally:
                if hook is not None:
                    hook.remove()

    def sheet(self, rows: Sequence[Sequence[Tensor | Image.Image]], labels: Sequence[Sequence[str]], title: str = "") -> bytes:
        """A PNG of pictures above their labels."""
        return png_bytes(sheet([[shown(picture) for picture in row] for row in rows], labels, title), self.metadata)

    def animation(self, frames: Sequence[Sequence[Sequence[Tensor]]]) -> bytes:
        """A GIF there and back; a frame is rows of pictures."""
        pages = [mosaic([[shown(picture) for picture in row] for row in frame]) for frame in frames]
        return animation(pages + pages[-2:0:-1], ".gif")


Draw = Callable[[Run], "Drawn | None"]  # None = there is nothing to write yet


def base_parser(doc: str | None, n: int, what: str) -> argparse.ArgumentParser:
    """The options that all have.  n: how many of `what` by default."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model", nargs="?", default="emoji", help="a shipped name, a folder, or a hub id (default: emoji)")
    made.add_argument("-o", "--output", type=Path, default=FOLDER, metavar="FOLDER", help="default: experiments/results")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--n", type=int, default=n, help=f"{what} (default: {n})")
    made.add_argument("--device", default="cpu")
    return made


def parser(doc: str | None, n: int) -> argparse.ArgumentParser:
    """Those of a script that inverts pictures.  n: how many by default."""
    made = base_parser(doc, n, "pictures, when none are named")
    made.add_argument("--pictures", type=Path, nargs="+", default=[], metavar="FILE", help="instead of held-out emoji by hash")
    made.add_argument("--captions", nargs="+", default=[], metavar="TEXT", help="what the files show; default: their names")
    made.add_argument("--size", type=int, help=f"resolution of the sheets' pictures; default: the first of {CELL} or more")
    made.add_argument("--steps", type=int, help="of the inversion; default: the decoder's own")
    made.add_argument("--refine", type=int, help="fixed-point iterations of each of its steps; default: the decoder's own")
    return made


def main(name: str, options: argparse.ArgumentParser, draw: Draw, arguments: Sequence[str] | None) -> None:
    """Run a script: bad input is one line and status 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    inputs = options.parse_args(arguments)
    began = time.perf_counter()
    try:
        if inputs.n < 1:
            raise ValueError(f"--n is {inputs.n}; it must be at least 1")
        pipe = UnCLIP.from_pretrained(inputs.model).to(inputs.device)
        if getattr(inputs, "size", None) not in (None, *pipe.sizes):  # before minutes are spent on inverting
            raise ValueError(f"--size is {inputs.size}; this pipeline makes pictures of {', '.join(map(str, pipe.sizes))} pixels")
        command = shlex.join(["python", "-m", f"experiments.figures.{name}", *arguments])
        message = {"experiment": name, "model": pipe.name, "seed": str(inputs.seed), "commit": commit(), "command": command}
        drawn = draw(Run(name, inputs, pipe, message))
        if drawn is None:
            return
        record = message | {
            "seed": inputs.seed,
            "weights": {part: fingerprint(module) for part, module in pipe.components.items()},
            "versions": {"python": platform.python_version(), "unclip": __version__, "torch": torch.__version__}
            | {"numpy": np.__version__, "pillow": PIL.__version__},
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {pipe.device}",
            "seconds": round(time.perf_counter() - began, 1),
            **drawn.about,
            "numbers": drawn.numbers,
        }
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        files = [(inputs.output / f"{name}{suffix}", data) for suffix, data in drawn.files.items()]
        write_files([*files, (inputs.output / f"{name}.json", text.encode())])
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    print(table(drawn.numbers))
    for path in (*(path for path, _ in files), inputs.output / f"{name}.json"):
        print(path)


def commit() -> str:
    """What the working tree is at; "-dirty" when it has changes."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() or "unknown"


def table(numbers: Numbers) -> str:
    lines = []
    for setting, rows in numbers.items():
        lines.append(setting)
        width = max(map(len, rows))
        for name, row in rows.items():
            lines.append(f"  {name:{width}}  " + ", ".join(f"{key} {value:.5g}" for key, value in row.items()))
    return "\n".join(lines)


def trained_on_emoji(pipe: UnCLIP) -> bool:
    """Whether the held-out emoji were held out of this model's training."""
    return str(pipe.provenance.get("data", "")).startswith(source.PACKAGE)


def read(files: Sequence[Path], captions: Sequence[str]) -> Chosen:
    """Pictures from files; without captions their names say what they show."""
    if captions and len(captions) != len(files):
        raise ValueError(f"{len(captions)} captions for {len(files)} pictures: give one each, or none")
    named = list(captions) or [path.stem.replace("_", " ").replace("-", " ") for path in files]
    return Chosen([path.name for path in files], named, [load_image(path) for path in files])


def shown(picture: Tensor | Image.Image) -> Image.Image:
    """As a sheet shows it: no larger than its cell."""
    image = to_pil(picture) if isinstance(picture, Tensor) else picture
    return image if image.width <= CELL else image.resize((CELL, CELL), Image.Resampling.LANCZOS)


def mosaic(rows: Sequence[Sequence[Image.Image]], gap: int = 4) -> Image.Image:
    """Pictures of one size side by side on white."""
    side = rows[0][0].width + gap
    page = Image.new("RGB", (side * max(map(len, rows)) + gap, side * len(rows) + gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            page.paste(picture, (gap + x * side, gap + y * side))
    return page


def mean(values: Sequence[float] | Tensor) -> Number:
    """With its bootstrap 95 % interval."""
    return metrics.interval(values)._asdict()


def median(values: Sequence[float] | Tensor) -> Number:
    """With the quartiles and the least."""
    items = torch.as_tensor(values).double()
    low, middle, high = items.quantile(items.new_tensor([0.25, 0.5, 0.75])).tolist()
    return {"median": middle, "quartile 1": low, "quartile 3": high, "least": float(items.min()), "n": len(items)}


def psnr(images: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """dB of pictures as 8 bits hold them, at most `BEST`."""
    return metrics.psnr(eight_bit(images), eight_bit(truth)).clamp(max=BEST)


def rms(a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Root of the mean squared pixel difference."""
    return (a - b).double().square().flatten(1).mean(1).sqrt()


def spread(images: Float[Tensor, "b 3 h w"]) -> float:
    """Mean RMS difference over the pairs of pictures."""
    first, second = torch.triu_indices(len(images), len(images), offset=1)
    return float(rms(images[first], images[second]).mean())

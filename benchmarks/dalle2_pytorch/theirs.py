"""dalle2-pytorch's side of `training.py`, run by its own environment's Python: a job's JSON in, its result's JSON out.

The package's trainers do the steps: forward and backward, `update`, its averaged weights.  Its embeddings are unit vectors, as
its CLIP adapters give them, text states are zero at padding, which is how it tells it, pictures lie in [0, 1].
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # a bar for each batch that is sampled

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.dalle2_pytorch.common import Clock, Spec, Ticks, begin, finish, shuffled, speed_of
from benchmarks.machine import memory


class Material:
    """CLIP's answers and the pictures, in this package's units."""

    def __init__(self, path: str, reads_pictures: bool):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            self.image_embed = normalize(file.get_tensor("image_embed"), dim=-1)
            self.text_embed = normalize(file.get_tensor("text.embed"), dim=-1)
            self.states = file.get_tensor("text.states") * file.get_tensor("text.mask")[..., None]
            self.train = file.get_tensor("train").nonzero()[:, 0]
            self.pictures = file.get_tensor("pictures") if reads_pictures else None

    def prior_batch(self, rows: Tensor) -> dict[str, Tensor]:
        # image_embed is indexed, so copied: the package multiplies what it is given in place.
        return {
            "text_embed": self.text_embed[rows], "image_embed": self.image_embed[rows], "text_encodings": self.states[rows]
        }  # fmt: skip

    def decoder_batch(self, rows: Tensor) -> dict[str, Tensor]:
        assert self.pictures is not None
        images = self.pictures[rows].float().div_(255)
        return {"image": images, "image_embed": self.image_embed[rows], "text_encodings": self.states[rows]}


def accelerator(precision: str) -> Any:
    from accelerate import Accelerator

    return Accelerator(mixed_precision={"float32": "no", "bfloat16": "bf16"}[precision], cpu=True)


def make_prior(spec: Spec, material: Material) -> Any:
    from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork, DiffusionPriorTrainer

    network = DiffusionPriorNetwork(**spec["net"])
    dim = material.image_embed.shape[1]
    prior = DiffusionPrior(network, clip=lookup(material), image_embed_dim=dim, **spec["model"])
    return DiffusionPriorTrainer(prior, accelerator(spec["precision"]), **spec["trainer"])


def lookup(material: Material) -> Any:
    """A CLIP whose "tokens" are numbers of captions: with it the trainer samples as its README shows."""
    from dalle2_pytorch.dalle2_pytorch import BaseClipAdapter, EmbeddedText

    def find(rows: Tensor) -> Any:  # a function, which copies of the model share, where tensors would be copied
        return EmbeddedText(material.text_embed[rows], material.states[rows])

    class Lookup(BaseClipAdapter):
        image_channels, image_size = 3, 64
        dim_latent, max_text_len = material.image_embed.shape[1], material.states.shape[1]

        def embed_text(self, text: Tensor) -> Any:
            return find(text)

    return Lookup(torch.nn.Identity())


def make_decoder(spec: Spec, material: Material) -> Any:
    from dalle2_pytorch import Decoder, DecoderTrainer, Unet

    model = spec["model"] | {"image_sizes": tuple(spec["model"]["image_sizes"])}
    unet = Unet(**spec["net"] | {"dim_mults": tuple(spec["net"]["dim_mults"])})
    return DecoderTrainer(Decoder(unet=unet, **model), accelerator(spec["precision"]), **spec["trainer"])


def trainer_of(spec: Spec, material: Material) -> tuple[Any, Callable[[Tensor], None]]:
    """The trainer, and what one step of it is, for rows of the material."""
    if spec["stage"] == "prior":
        trainer = make_prior(spec, material)
        read, update = material.prior_batch, trainer.update
    else:
        trainer = make_decoder(spec, material)
        read = material.decoder_batch

        def update() -> None:
            trainer.update(1)

    named = {} if spec["stage"] == "prior" else {"unet_number": 1}

    def step(rows: Tensor) -> None:
        batch = read(rows)
        # The trainer cuts positional tensors and named ones alike; the first must be a tensor.
        images = [batch.pop("image")] if "image" in batch else []
        trainer(*images, **batch, **named, max_batch_size=spec["at_once"])
        update()

    return trainer, step


def parameters(trainer: Any, stage: str) -> int:
    model = trainer.diffusion_prior.net if stage == "prior" else trainer.decoder
    return sum(p.numel() for p in model.parameters())


def speed(spec: Spec) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    start = memory("VmRSS")
    material = Material(spec["material"], spec["stage"] == "decoder")
    trainer, step = trainer_of(spec, material)
    order, ticks = shuffled(len(material.train), spec["batch"], spec["seed"]), Ticks()
    for _ in range(spec["repeats"] + 1):
        ticks()
        step(material.train[next(order)])
    ticks()
    few = spec["at_once"] or spec["batch"]
    with FlopCounterMode(display=False) as counter:
        step(material.train[:few])
    gflop = counter.get_total_flops() / few / 1e9
    finish(spec, speed_of(ticks, spec["batch"], start, parameters(trainer, spec["stage"]), gflop))


def learn(spec: Spec) -> None:
    material = Material(spec["material"], spec["stage"] == "decoder")
    trainer, step = trainer_of(spec, material)
    order, updates = shuffled(len(material.train), spec["batch"], spec["seed"]), 0
    clock = Clock(spec["threads"])
    while clock.seconds() < spec["seconds"] or not updates:
        step(material.train[next(order)])
        updates += 1
    results = {"updates": updates, "samples": updates * spec["batch"], "seconds": clock.seconds()}
    results |= {"wall": time.perf_counter() - clock.wall, "parameters": parameters(trainer, spec["stage"])}
    began = time.process_time()
    # Until `ema_update_after_step` the averaged weights are a copy of the last ones, a few steps old.
    names = ["last weights", *(["averaged weights"] if updates > spec["trainer"]["ema_update_after_step"] else [])]
    trainer.eval()
    drawn = draw_prior(spec, trainer, names) if spec["stage"] == "prior" else draw_decoder(spec, trainer, material, names)
    finish(spec, results | {"sampling seconds": time.process_time() - began}, drawn)


def draw_prior(spec: Spec, trainer: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """As its README samples: the better of two draws, by all timesteps or those of `sample_timesteps`."""
    results = {}
    for name in names:
        torch.manual_seed(spec["seed"])
        trainer.use_ema = name == "averaged weights"
        results[name] = trainer.sample(torch.tensor(spec["rows"]))
    return results


def draw_decoder(spec: Spec, trainer: Any, material: Material, names: Sequence[str]) -> dict[str, Tensor]:
    """By DDIM, pictures in [-1, 1], for each scale of guidance."""
    rows, results = torch.tensor(spec["rows"]), {}
    inputs = {"image_embed": material.image_embed[rows], "text_encodings": material.states[rows]}
    for name in names:
        for scale in spec["guidance"]:
            torch.manual_seed(spec["seed"])
            last = name == "last weights"
            pictures = trainer.sample(**inputs, cond_scale=scale, max_batch_size=20, use_non_ema=last)
            results[f"{name}, guidance {scale:g}"] = pictures.clamp(0, 1) * 2 - 1
    return results


if __name__ == "__main__":
    spec = begin(sys.argv[1])
    {"speed": speed, "learn": learn}[spec["task"]](spec)

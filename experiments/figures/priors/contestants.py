"""The priors that are compared: those of the checkpoint, and those that it takes minutes to train beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.emoji.evaluation.measure import Subject
from experiments.recipes import emoji
from prior import (
    ARNetworkConfig,
    ARPrior,
    ARPriorConfig,
    ContrastivePrior,
    ContrastivePriorConfig,
    DiffusionPrior,
    LinearPrior,
    LinearPriorConfig,
    PriorConfig,
    PriorTask,
)
from unclip.checkpoint import open_pipeline
from unclip.data.embeddings import Embeddings
from unclip.data.reader import Embedded
from unclip.randomness import Noise
from unclip.training import TrainConfig, train
from unclip.trees import move
from unclip.types import Text, best_of

TRAIN = emoji.prior().train.replace(log_every=250)
DIFFUSION, AR, CONTRASTIVE, LINEAR = "diffusion prior", "AR prior", "contrastive regression", "linear regression"
TEXT, CAPTION = "text embedding as z_i", "caption only (null z_i)"
NAMES = (DIFFUSION, AR, CONTRASTIVE, LINEAR, TEXT, CAPTION)
Draw = Callable[[Text, Noise, int], Tensor]  # raw embeddings (b, n, d)


class Contestant(NamedTuple):
    name: str
    draw: Draw | None  # None: the decoder gets no embedding
    candidates: int = 1  # of which the one nearest the caption is kept
    parameters: int = 0
    flops: float = 0.0  # of its whole training

    def embed(self, text: Text, noise: Noise) -> Tensor | None:
        """What the decoder gets: (b, d), or None."""
        if self.draw is None:
            return None
        return best_of(self.draw(text, noise, self.candidates), text.embed).float().cpu()


def contestants(subject: Subject, model: str, runs: Path, steps: int) -> list[Contestant]:
    """All of `NAMES`.  What the checkpoint lacks is trained in a folder of `runs`, or taken from there."""
    pipe, stored = subject.pipe, open_pipeline(model)
    provenance = pipe.provenance.get("stages", {})
    results: dict[str, Contestant] = {}
    priors: dict[str, tuple[Any, int]] = {DIFFUSION: (pipe.prior, _samples(provenance.get("prior", {})))}
    if "ar_prior" in stored.components:
        priors[AR] = (stored.components["ar_prior"](), _samples(provenance.get("ar_prior", {})))
    for name in (AR, CONTRASTIVE):
        if name not in priors:
            config = TRAIN.replace(steps=steps)
            priors[name] = trained(subject, name, config, runs / name.replace(" ", "_")), steps * config.batch
    for name, (prior, samples) in priors.items():
        results[name] = of_prior(name, prior.to(pipe.device).eval(), training_flops(subject, prior) * samples)
    linear = LinearPrior(LinearPriorConfig(embed_dim=pipe.clip.embed_dim))
    known = train_embeddings(subject)
    assert known.text is not None
    linear.fit(known.image_embed, known.text.embed)
    n, d = known.image_embed.shape
    results[LINEAR] = of_prior(LINEAR, linear.to(pipe.device).eval(), 8.0 * n * d * d)  # about what the decomposition takes
    results[TEXT] = Contestant(TEXT, as_text)
    results[CAPTION] = Contestant(CAPTION, None)
    return [results[name] for name in NAMES]


def of_prior(name: str, prior: Any, flops: float = 0.0, sampling: Any = None) -> Contestant:
    count = sum(p.numel() for p in prior.parameters())

    def draw(text: Text, noise: Noise, n: int) -> Tensor:
        drawn: Tensor = prior.sample(text, noise=noise, n=n, sampling=sampling)
        return drawn

    return Contestant(name, draw, int(getattr(prior, "candidates", 2)), count, flops)


def as_text(text: Text, noise: Noise, n: int) -> Tensor:
    """The caption's own embedding in the image's place (unCLIP, Fig. 8), as long as CLIP makes it."""
    return text.embed[:, None].expand(-1, n, -1)


def train_embeddings(subject: Subject) -> Embeddings:
    return subject.embeddings.select([subject.data.keys[i] for i in subject.members["train"]])


def fresh(subject: Subject, name: str, seed: int) -> Any:
    """An untrained prior of a kind, statistics fitted; like the pipeline's diffusion prior in width, depth and conditions."""
    own = subject.pipe.prior
    if not isinstance(own, DiffusionPrior):
        raise ValueError(f"others are made like the pipeline's diffusion prior; this one has a {type(own).__name__}")
    base: PriorConfig = own.config
    known = train_embeddings(subject)
    assert known.text is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == AR:
            net = base.network
            network = ARNetworkConfig(
                transformer=net.transformer,
                embed_dim=net.embed_dim,
                text="clip_states",
                context=net.context,
                states_width=known.text.states.shape[2],
            )
            ar = ARPrior(ARPriorConfig(network=network).resolve(known.image_embed))
            ar.fit(known.image_embed, known.text.embed)
            return ar
        made: Any = {
            DIFFUSION: lambda: DiffusionPrior(base),
            CONTRASTIVE: lambda: ContrastivePrior(ContrastivePriorConfig(network=base.network)),
        }[name]()
        made.fit(known.image_embed)
        return made


def trained(subject: Subject, name: str, config: TrainConfig, run_dir: Path) -> Any:
    """A prior of a kind, trained in `run_dir`, where an interrupted training goes on and an ended one is taken."""
    prior = fresh(subject, name, config.seed)
    done = train(PriorTask(prior), Embedded(train_embeddings(subject), name), config, run_dir)
    prior.load_state_dict(done.ema)
    return ready(subject, prior.eval())


@torch.no_grad()
def ready(subject: Subject, prior: Any, n: int = 256) -> Any:
    """A diffusion prior's analytic variance, which is measured after training; nothing for the others."""
    if isinstance(prior, DiffusionPrior):
        known = train_embeddings(subject)
        rows = known.select(known.keys[:: max(1, len(known) // n)][:n])
        assert rows.text is not None
        noise = Noise.of(0, range(len(rows))).at("measure")
        prior.measure_variance(rows.image_embed, rows.text, prior.config.sampling.steps, noise)
    return prior


def training_flops(subject: Subject, prior: Any, batch: int = 32) -> float:
    """Floating-point operations of a training step per sample, forward and backward, as torch counts them."""
    rows = subject.rows("train", batch)
    chunk = subject.embeddings.select([subject.data.keys[i] for i in rows])
    assert chunk.text is not None
    state = [p.requires_grad for p in prior.parameters()]
    counter = FlopCounterMode(display=False)
    with counter, torch.enable_grad():
        for p in prior.parameters():
            p.requires_grad_(True)
        some_text = move(chunk.text, prior.device)
        prior.loss(chunk.image_embed, some_text, noise=Noise.of(0, range(len(rows)))).total.mean().backward()
    prior.zero_grad(set_to_none=True)
    for p, wanted in zip(prior.parameters(), state):
        p.requires_grad_(wanted)
    return counter.get_total_flops() / len(rows)


def _samples(stage: dict[str, Any]) -> int:
    """Samples seen, of what a pipeline tells of a stage's training; 0 = it does not."""
    return sum(int(run.get("samples", 0)) for run in stage.get("training_runs", []))

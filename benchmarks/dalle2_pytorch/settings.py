"""What `training.py` compares: the settings of both systems, as values.

Theirs: dalle2-pytorch 1.15.6, https://github.com/lucidrains/DALLE2-pytorch, keyword by keyword as its README ("Training
wrapper"), prior.md or configs/*.example.json write them.  The data force these changes alone: the embedding and the text states
have 128 dimensions (so `dim` of a prior), captions 24 positions (`max_text_len`: as long as CLIP's context, like there), pictures
64 pixels, and `cond_dim` is 64, that of configs/train_decoder_config.example.json: with the README's 128, by chance the width of
these embeddings, the package leaves out the projection to image tokens and fails.

Ours: the shipped recipes, experiments/recipes/emoji.py, and settings that replace theirs, in the words of the command line.
"""

from __future__ import annotations

from typing import Any, NamedTuple

PACKAGE, VERSION = "dalle2-pytorch", "1.15.6"
STAGES = ("prior", "decoder")


class Data(NamedTuple):
    """Widths of CLIP's answers, and pictures' pixels."""

    embed: int = 128
    states: int = 128
    context: int = 24
    pixels: int = 64


class Theirs(NamedTuple):
    """Keywords of the network, of DiffusionPrior or Decoder, and of its trainer."""

    net: dict[str, Any]
    model: dict[str, Any]
    trainer: dict[str, Any]
    batch: int
    at_once: int | None = None  # the trainer's max_batch_size: gradients of so many samples add up
    guidance: tuple[float, ...] = (1.0,)  # cond_scale of sampling; the better one counts
    precision: str = "float32"  # of accelerate, which its trainers are built on; its README names none


class Ours(NamedTuple):
    """Settings that replace those of the recipe emoji.<stage>."""

    changes: tuple[str, ...] = ()


EMOJI = Data()
README_TRAINER = {"lr": 3e-4, "wd": 1e-2, "ema_beta": 0.99, "ema_update_after_step": 1000, "ema_update_every": 10}


def prior_readme(data: Data = EMOJI, batch: int = 512) -> Theirs:
    net = {"dim": data.embed, "depth": 6, "dim_head": 64, "heads": 8, "max_text_len": data.context}
    return Theirs(net, {"timesteps": 100, "cond_drop_prob": 0.2}, README_TRAINER, batch)


def prior_guide(data: Data = EMOJI) -> Theirs:
    """prior.md and configs/train_prior_config.example.json."""
    net = {"dim": data.embed, "depth": 12, "num_timesteps": 1000, "max_text_len": data.context, "num_time_embeds": 1}
    net |= {"num_image_embeds": 1, "num_text_embeds": 1, "dim_head": 64, "heads": 12, "ff_mult": 4, "norm_out": True}
    net |= {"attn_dropout": 0.05, "ff_dropout": 0.05, "final_proj": True, "normformer": True, "rotary_emb": True}
    trainer = {"lr": 1.1e-4, "wd": 6.02e-2, "max_grad_norm": 0.5, "ema_beta": 0.9999, "ema_update_after_step": 50}
    return Theirs(net, {"timesteps": 1000, "sample_timesteps": 64, "cond_drop_prob": 0.1}, trainer | {"warmup_steps": 50}, 128)


def decoder_readme(data: Data = EMOJI, dim: int = 128, multiple: tuple[int, ...] = (1, 2, 4, 8)) -> Theirs:
    """dim 128: of its section on training; dim 32: of the first UNet of its first cascade."""
    net = {"dim": dim, "image_embed_dim": data.embed, "text_embed_dim": data.states, "cond_dim": 64, "channels": 3}
    net |= {"dim_mults": multiple, "cond_on_text_encodings": True, "max_text_len": data.context}
    model = {"image_sizes": (data.pixels,), "timesteps": 1000, "sample_timesteps": 250}
    model |= {"image_cond_drop_prob": 0.1, "text_cond_drop_prob": 0.5}
    return Theirs(net, model, README_TRAINER, batch=32, at_once=4, guidance=(2.0, 1.0))


class Pair(NamedTuple):
    """A row of the table of speeds."""

    stage: str
    title: str
    theirs: Theirs
    ours: Ours
    data: Data
    precisions: tuple[str, ...]  # "own": that of the settings
    judged: bool  # ours must be at least as fast, in at most as much memory
    repeats: int | None = None  # timed steps, where steps take too long for the usual number


BOTH = ("float32", "bfloat16")
WIDE = Data(embed=512, states=512, context=28)  # 32 tokens with z_t, timestep, noised z_i and query


def _wide_prior(layers: int) -> Ours:
    network = f"model.network.transformer.width=512 model.network.transformer.heads=8 model.network.transformer.layers={layers}"
    clip = f"model.network.embed_dim={WIDE.embed} model.network.states_width={WIDE.states} model.network.context={WIDE.context}"
    return Ours((*network.split(), *clip.split(), "model.network.transformer.dropout=0.0", "train.batch=64"))


def _equal_decoder() -> tuple[Theirs, Ours]:
    """Three levels from 64 channels and 21 residual blocks, both in torch's usual memory layout.

    Theirs: 64, 128, 256 channels, but on the way down the narrower of two neighbours'.  Ours: 64, 128, 192 both ways, which is
    about the same work.
    """
    theirs = decoder_readme(dim=64, multiple=(1, 2, 4))._replace(batch=16, at_once=None)
    unet = "channels=64 multiple=[1,2,3] depth=2 attention=[2] patch=1"
    changes = (*(f"model.unet.{setting}" for setting in unet.split()), "train.batch=16", "train.channels_last=false")
    return theirs, Ours(changes)


PAIRS = (
    Pair("prior", "equal width and depth", prior_readme(WIDE, 64), _wide_prior(6), WIDE, BOTH, True),
    Pair("prior", "equal width and parameters", prior_readme(WIDE, 64), _wide_prior(7), WIDE, BOTH, True),
    Pair("decoder", "equal width, blocks and work", *_equal_decoder(), EMOJI, BOTH, True),
    Pair("prior", "own settings", prior_readme(), Ours(), EMOJI, ("own",), False),
    Pair("decoder", "own settings", decoder_readme(), Ours(), EMOJI, ("own",), False, repeats=1),
)

# Of each stage by name; the better one of theirs counts.
LEARNERS: dict[str, dict[str, Theirs]] = {
    "prior": {
        "README": prior_readme(),
        "README, bfloat16": prior_readme()._replace(precision="bfloat16"),
        "prior.md": prior_guide(),
        "prior.md, bfloat16": prior_guide()._replace(precision="bfloat16"),
    },
    # The README's UNet of 186M parameters sees some hundred pictures in half an hour on a core (its own settings above).
    "decoder": {
        "README, dim 32": decoder_readme(dim=32),
        "README, dim 32, bfloat16": decoder_readme(dim=32)._replace(precision="bfloat16"),
        "README, dim 128": decoder_readme(),
    },
}
# What runs unless others are asked for: in bfloat16 their trainers, too, take more steps in the same time.
USUAL = {"prior": ("README, bfloat16",), "decoder": ("README, dim 32, bfloat16",)}

RECIPE = "recipe"
UNPATCHED = ("model.unet.patch=1", "model.unet.channels=32", "model.unet.multiple=[1,2,4,8]", "model.unet.attention=[3]")
# Our recipe with one thing as theirs has it.
ABLATIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "prior": {
        RECIPE: (),
        "width of the embedding": ("model.network.transformer.width=128", "model.network.transformer.heads=2"),
        "no dropout": ("model.network.transformer.dropout=0.0",),
        "z_i with variance 1": ("model.scaling=sqrt_d",),
        "constant rate 3e-4": ("train.lr=3e-4", "train.warmup=0", "train.decay=constant", "train.weight_decay=0.01"),
        "batch 512": ("train.batch=512",),
        "no averaged weights": ("train.ema=0.0",),  # theirs are a copy until update 1000
        "float32": ("train.precision=float32",),
    },
    "decoder": {
        RECIPE: (),
        "no patches, their widths": UNPATCHED,
        "predicts eps": ("model.predicts=eps", "model.weighting=none"),
        "unweighted": ("model.weighting=none",),
        "constant rate 3e-4": ("train.lr=3e-4", "train.warmup=0", "train.decay=constant"),
        "no averaged weights": ("train.ema=0.0",),
        "float32": ("train.precision=float32",),
    },
}


def small(pair: Pair) -> Pair:
    """A row of tiny networks, to see that everything runs."""
    return pair._replace(theirs=small_theirs(pair.stage, pair.theirs), ours=small_ours(pair.stage, pair.ours))


def small_theirs(stage: str, theirs: Theirs) -> Theirs:
    if stage == "prior":
        return theirs._replace(net=theirs.net | {"depth": 1}, batch=8)
    model = theirs.model | {"sample_timesteps": 4}
    return theirs._replace(net=theirs.net | {"dim": 16, "dim_mults": (1, 2)}, model=model, batch=2, at_once=None, guidance=(1.0,))


def small_ours(stage: str, ours: Ours) -> Ours:
    tiny = {
        "prior": ("model.network.transformer.layers=1", "train.batch=8"),
        "decoder": (
            "model.unet.channels=32", "model.unet.multiple=[1,2]", "model.unet.attention=[1]", "model.unet.patch=4",
            "model.unet.depth=1", "model.sampling.steps=4", "train.batch=2",
        ),
    }  # fmt: skip
    return Ours((*ours.changes, *tiny[stage]))

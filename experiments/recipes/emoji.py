"""The emoji recipes: every stage of the shipped pipeline, sized for two CPU cores.

Order: clip, embed (python -m experiments.emoji.ship embed), wording, embed again; then prior, decoder, upsampler_256 and
upsampler_1024 in any order.
The shipped weights come from fewer steps, in sittings: `unclip info` tells (provenance).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from torch import nn

from decoder import Decoder, DecoderConfig, DecoderTask
from experiments.emoji.data import source
from experiments.emoji.data.emoji_data import EmojiData
from experiments.emoji.data.wording import Wording
from experiments.recipes import Recipe
from prior import (
    ARNetworkConfig,
    ARPrior,
    ARPriorConfig,
    ARSampling,
    ContrastivePrior,
    ContrastivePriorConfig,
    DiffusionPrior,
    PriorConfig,
    PriorTask,
    QuantizerConfig,
)
from prior.network import PriorNetworkConfig
from unclip.clip.encoder import CLIP, Architecture, CLIPConfig, TextTower, VisionTower
from unclip.clip.task import CLIPTask, CLIPTaskConfig
from unclip.clip.tokenizer import compact_token_ids
from unclip.conditions import Caption, Conditions, ImageEmbedding
from unclip.diffusion.schedule import ScheduleConfig
from unclip.nn.transformer import TransformerConfig
from unclip.nn.unet import UNetConfig
from unclip.sampling import Sampling
from unclip.training import TrainConfig
from unclip.training.task import Task
from upsamplers import CorruptionConfig, Upsampler, UpsamplerConfig, UpsamplerTask

EMBED, WIDTH, CONTEXT = 128, 128, 24  # of the emoji CLIP: embedding, text width, text context


def embeddings_path() -> Path:
    """Where the trained CLIP's answers for all emoji are kept (made by `python -m experiments.emoji.ship embed`)."""
    return source.cache_folder() / "embeddings.safetensors"


class ClipRecipe(Recipe, frozen=True, kw_only=True):
    model: CLIPConfig
    task: CLIPTaskConfig
    split: Literal["train", "all"] = "train"

    def build(self) -> tuple[Task, EmojiData]:
        model = self.fresh(lambda: CLIP(self.model))
        return CLIPTask(model, self.task), EmojiData(self.split, 64)


def clip() -> ClipRecipe:
    train_captions = [row.caption for row in source.read_captions() if row.split == "train"]
    return ClipRecipe(
        model=CLIPConfig(
            architecture=Architecture(
                embed_dim=EMBED,
                vision=VisionTower(image_size=64, patch_size=8, width=128, layers=6, head_width=32),
                text=TextTower(
                    context_length=CONTEXT, width=WIDTH, layers=4, heads=4, token_ids=tuple(compact_token_ids(train_captions))
                ),
            ),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        task=CLIPTaskConfig(),  # as the shipped one: pictures unmoved, bare captions (`wording` comes after it)
        train=TrainConfig(
            steps=1300, batch=128, lr=1e-3, warmup=100, weight_decay=0.1, betas=(0.9, 0.98), ema=0.99, precision="bfloat16"
        ),
    )


class WordingRecipe(Recipe, frozen=True, kw_only=True):
    model: CLIPConfig
    split: Literal["train", "all"] = "train"

    def build(self) -> tuple[Task, EmojiData]:
        return Wording(self.fresh(lambda: CLIP(self.model))), EmojiData(self.split, 64, embeddings=embeddings_path())

    def finish(self, model: nn.Module, run_dir: Path) -> None:
        """The CLIP as a part, for `clip=` of the stages that read other wordings."""
        assert isinstance(model, CLIP)
        shutil.rmtree(run_dir / "model", ignore_errors=True)
        model.save_pretrained(run_dir / "model")


def wording() -> WordingRecipe:
    """To be started from the trained `clip` (`--init`): its text tower learns to read other words around a caption."""
    return WordingRecipe(
        model=clip().model,
        train=TrainConfig(
            steps=1200, batch=256, lr=5e-4, warmup=50, weight_decay=0.01, ema=0.99, sample_every=None,
            freeze=("network.visual*", "network.logit_scale"),
        ),
    )  # fmt: skip


def judge() -> ClipRecipe:
    """The CLIP that evaluation looks with: the same, from another seed, so that no part of the pipeline has seen its answers."""
    recipe = clip()
    return recipe.replace(train=recipe.train.replace(seed=1))


def reader(folder: str | None) -> CLIP | None:
    """The frozen CLIP that reads captions which are not among the stored embeddings."""
    return CLIP.from_pretrained(folder).requires_grad_(False) if folder else None


class PriorRecipe(Recipe, frozen=True, kw_only=True):
    model: PriorConfig
    split: Literal["train", "all"] = "train"
    wording: float = 0.0  # the part of captions said in other words (EmojiData), which `clip`, a part's folder, reads
    clip: str | None = None

    def build(self) -> tuple[Task, EmojiData]:
        data = EmojiData(self.split, 64, embeddings=embeddings_path(), wording=self.wording)
        model = self.fresh(lambda: DiffusionPrior(self.model))
        assert data.embeddings is not None
        model.fit(data.embeddings.image_embed)
        return PriorTask(model, reader(self.clip)), data


def prior() -> PriorRecipe:
    return PriorRecipe(
        model=PriorConfig(
            network=PriorNetworkConfig(
                transformer=TransformerConfig(width=256, layers=6, heads=4, dropout=0.1),
                embed_dim=EMBED,
                text="clip_states",
                context=CONTEXT,
                states_width=WIDTH,
            ),
            scaling="std",
        ),
        train=TrainConfig(
            steps=2500, batch=128, lr=5e-4, warmup=200, weight_decay=0.06, betas=(0.9, 0.96), ema=0.999, precision="bfloat16"
        ),
    )


class ARPriorRecipe(Recipe, frozen=True, kw_only=True):
    model: ARPriorConfig  # a share of the variance becomes a number of components when the recipe is built
    split: Literal["train", "all"] = "train"
    wording: float = 0.0  # as in `PriorRecipe`
    clip: str | None = None

    def build(self) -> tuple[Task, EmojiData]:
        data = EmojiData(self.split, 64, embeddings=embeddings_path(), wording=self.wording)
        found = data.embeddings
        assert found is not None and found.text is not None
        config = self.model.resolve(found.image_embed)
        model = self.fresh(lambda: ARPrior(config))
        model.fit(found.image_embed, found.text.embed)
        return PriorTask(model, reader(self.clip)), data


def ar_prior() -> ARPriorRecipe:
    """The diffusion prior's transformer with two thirds of its layers: all shipped weights together shall take 90 MB.

    A sample costs twice the diffusion prior's compute all the same, and the data are learnt by heart sooner: with six layers
    held-out draws were worse after 2,500 steps than after 800.
    """
    base = prior()
    network = base.model.network
    return ARPriorRecipe(
        model=ARPriorConfig(
            network=ARNetworkConfig(
                transformer=network.transformer.replace(layers=4),
                embed_dim=EMBED,
                text="clip_states",
                context=network.context,
                states_width=network.states_width,
            ),
            quantizer=QuantizerConfig(dims=0.99, buckets=1024),
            # At temperature 1 a symbol in the tail now and then spoils a draw; at 0 nothing is drawn.
            sampling=ARSampling(temperature=0.5),
        ),
        train=base.train.replace(steps=800, warmup=100),
    )


class ContrastivePriorRecipe(Recipe, frozen=True, kw_only=True):
    model: ContrastivePriorConfig
    split: Literal["train", "all"] = "train"

    def build(self) -> tuple[Task, EmojiData]:
        data = EmojiData(self.split, 64, embeddings=embeddings_path())
        model = self.fresh(lambda: ContrastivePrior(self.model))
        assert data.embeddings is not None
        model.fit(data.embeddings.image_embed)
        return PriorTask(model), data


def contrastive_prior() -> ContrastivePriorRecipe:
    """Not shipped: for comparison.  The diffusion prior's network, and a training of its length."""
    base = prior()
    return ContrastivePriorRecipe(model=ContrastivePriorConfig(network=base.model.network), train=base.train)


class DecoderRecipe(Recipe, frozen=True, kw_only=True):
    model: DecoderConfig
    split: Literal["train", "all"] = "train"
    shift: int = 0  # augmentation, in pixels
    zoom: float = 0.0
    balance: float = 0.0  # how much rare motifs are drawn above their number (EmojiData)
    wording: float = 0.0  # the part of captions said in other words, which `clip`, a part's folder, reads
    clip: str | None = None

    def build(self) -> tuple[Task, EmojiData]:
        data = EmojiData(
            self.split, 64, embeddings=embeddings_path(), shift=self.shift, zoom=self.zoom, balance=self.balance,
            wording=self.wording,
        )  # fmt: skip
        return DecoderTask(self.fresh(lambda: Decoder(self.model)), reader(self.clip)), data


def decoder() -> DecoderRecipe:
    return DecoderRecipe(
        model=DecoderConfig(
            unet=UNetConfig(channels=128, multiple=(1, 1, 2), depth=2, attention=(1, 2), patch=4),
            conditions=Conditions(
                image_embed=ImageEmbedding(embed_dim=EMBED),
                text=Caption(kind="clip_states", context=CONTEXT, states_width=WIDTH, embed_dim=EMBED),
                width=128,
            ),
            predicts="x0",
            variance="fixed",
            weighting="clamped_snr",
            sampling=Sampling(sampler="dpmpp_2m", steps=25, guidance=3.0, interval=(200, 1000), threshold="static"),
        ),
        train=TrainConfig(
            steps=12500, batch=32, lr=4e-4, warmup=300, ema=0.9995, precision="bfloat16",
            channels_last=True, sample_every=1000,
        ),
    )  # fmt: skip


class UpsamplerRecipe(Recipe, frozen=True, kw_only=True):
    model: UpsamplerConfig
    size: int  # of the pictures trained on: what the upsampler makes
    split: Literal["train", "all"] = "train"

    def build(self) -> tuple[Task, EmojiData]:
        model = self.fresh(lambda: Upsampler(self.model))
        return UpsamplerTask(model), EmojiData(self.split, self.size)


def upsampler_256() -> UpsamplerRecipe:
    return UpsamplerRecipe(
        size=256,
        model=UpsamplerConfig(
            unet=UNetConfig(channels=64, multiple=(1, 1, 2), depth=2, patch=4),
            predicts="x0",
            output="mixture",
            weighting="clamped_snr",
            norm="l1_gradient",
            corruption=CorruptionConfig(kind="blur", probability=0.5),
            crops_per_image=2,
            sampling=Sampling(sampler="ddim", steps=4, threshold="static"),
        ),
        train=TrainConfig(
            steps=4000, batch=16, lr=6e-4, warmup=100, ema=0.998, precision="bfloat16",
            channels_last=True, sample_every=1000,
        ),
    )  # fmt: skip


def upsampler_1024() -> UpsamplerRecipe:
    """To be started from the trained `upsampler_256` (`--init`): edges look alike at every size."""
    small = upsampler_256()
    model = small.model.replace(
        schedule=ScheduleConfig(name="linear"),
        corruption=CorruptionConfig(kind="bsr_light", probability=0.5),
        crop=0.125,
        crops_per_image=4,
    )
    return small.replace(size=1024, model=model, train=small.train.replace(steps=500, batch=4, lr=3e-4, warmup=20, ema=0.99))

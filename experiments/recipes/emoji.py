"""The emoji recipes: every stage of the shipped pipeline, sized for two CPU cores.

Order: clip, embed (python -m experiments.emoji.ship embed), paraphrase, embed again; then prior, decoder, upsampler_256 and
upsampler_1024 in any order.
The shipped weights come from fewer steps, in several training runs: `unclip info` tells (provenance).
"""

from __future__ import annotations

from decoder import DecoderConfig
from experiments.emoji.data import source
from experiments.emoji.data.emoji_data import EmojiDataConfig
from experiments.emoji.data.paraphrase import ParaphraseConfig
from prior import ARNetworkConfig, ARPriorConfig, ARSampling, ContrastivePriorConfig, PriorConfig, QuantizerConfig
from prior.network import PriorNetworkConfig
from unclip.clip.encoder import Architecture, CLIPConfig, TextTower, VisionTower
from unclip.clip.task import CLIPTaskConfig
from unclip.clip.tokenizer import compact_token_ids
from unclip.conditions import Caption, Conditions, ImageEmbedding
from unclip.diffusion.schedule import ScheduleConfig
from unclip.nn.transformer import TransformerConfig
from unclip.nn.unet import UNetConfig
from unclip.runs import Training
from unclip.sampling import Sampling
from unclip.training import TrainConfig
from upsamplers import CorruptionConfig, UpsamplerConfig

EMBED, WIDTH, CONTEXT = 128, 128, 24  # of the emoji CLIP: embedding, text width, text context
EMBEDDED = EmojiDataConfig(embeddings=True)
TRANSFORMER = TransformerConfig(width=256, layers=6, heads=4, dropout=0.1)  # of the diffusion prior
PRIOR_NETWORK = PriorNetworkConfig(
    transformer=TRANSFORMER, embed_dim=EMBED, text="clip_states", context=CONTEXT, states_width=WIDTH
)
UPSAMPLER = UpsamplerConfig(
    unet=UNetConfig(channels=64, multiple=(1, 1, 2), depth=2, patch=4),
    predicts="x0",
    output="mixture",
    weighting="clamped_snr",
    norm="l1_gradient",
    corruption=CorruptionConfig(kind="blur", probability=0.5),
    crops_per_image=2,
    sampling=Sampling(sampler="ddim", steps=4, threshold="static"),
)


def clip() -> Training:
    train_captions = [row.caption for row in source.read_captions() if row.split == "train"]
    return Training(
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
        task=CLIPTaskConfig(),  # as the shipped one: pictures unmoved, bare captions (`paraphrase` comes after it)
        data=EmojiDataConfig(),
        train=TrainConfig(
            steps=1300, batch=128, lr=1e-3, warmup=100, weight_decay=0.1, betas=(0.9, 0.98), ema=0.99, precision="bfloat16"
        ),
    )


def paraphrase() -> Training:
    """To be started from the trained `clip` (`--start`): its text tower learns to read paraphrases of a caption."""
    return Training(
        model=clip().model,
        task=ParaphraseConfig(),
        data=EMBEDDED,
        train=TrainConfig(
            steps=1200, batch=256, lr=5e-4, warmup=50, weight_decay=0.01, ema=0.99, sample_every=None,
            freeze=("network.visual*", "network.logit_scale"),
        ),
    )  # fmt: skip


def judge() -> Training:
    """The CLIP that evaluation looks with: the same, from another seed, so that no part of the pipeline has seen its answers."""
    recipe = clip()
    return recipe.replace(train=recipe.train.replace(seed=1))


def prior() -> Training:
    return Training(
        model=PriorConfig(network=PRIOR_NETWORK, scaling="std"),
        data=EMBEDDED,
        train=TrainConfig(
            steps=2500, batch=128, lr=5e-4, warmup=200, weight_decay=0.06, betas=(0.9, 0.96), ema=0.999, precision="bfloat16"
        ),
    )


def ar_prior() -> Training:
    """The diffusion prior's transformer with two thirds of its layers: all shipped weights together shall take 90 MB.

    A sample costs twice the diffusion prior's compute all the same, and the data are learnt by heart sooner: with six layers
    held-out draws were worse after 2,500 steps than after 800.
    """
    return Training(
        model=ARPriorConfig(
            network=ARNetworkConfig(
                transformer=TRANSFORMER.replace(layers=4),
                embed_dim=EMBED,
                text="clip_states",
                context=CONTEXT,
                states_width=WIDTH,
            ),
            quantizer=QuantizerConfig(dims=0.99, buckets=1024),  # a share of the variance, counted on the data
            # At temperature 1 a symbol in the tail now and then spoils a draw; at 0 nothing is drawn.
            sampling=ARSampling(temperature=0.5),
        ),
        data=EMBEDDED,
        train=prior().train.replace(steps=800, warmup=100),
    )


def contrastive_prior() -> Training:
    """Not shipped: for comparison.  The diffusion prior's network, and a training of its length."""
    return prior().replace(model=ContrastivePriorConfig(network=PRIOR_NETWORK))


def decoder() -> Training:
    return Training(
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
        data=EMBEDDED,
        train=TrainConfig(
            steps=12500, batch=32, lr=4e-4, warmup=300, ema=0.9995, precision="bfloat16",
            channels_last=True, sample_every=1000,
        ),
    )  # fmt: skip


def upsampler_256() -> Training:
    return Training(
        model=UPSAMPLER,
        data=EmojiDataConfig(size=256),
        train=TrainConfig(
            steps=4000, batch=16, lr=6e-4, warmup=100, ema=0.998, precision="bfloat16",
            channels_last=True, sample_every=1000,
        ),
    )  # fmt: skip


def upsampler_1024() -> Training:
    """To be started from the trained `upsampler_256` (`--start`): edges look alike at every size."""
    model = UPSAMPLER.replace(
        schedule=ScheduleConfig(name="linear"),
        corruption=CorruptionConfig(kind="bsr_light", probability=0.5),
        crop=0.125,
        crops_per_image=4,
    )
    train = upsampler_256().train.replace(steps=500, batch=4, lr=3e-4, warmup=20, ema=0.99)
    return Training(model=model, data=EmojiDataConfig(size=1024), train=train)

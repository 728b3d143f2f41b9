"""The second generation of emoji: four styles, captions as people say them in five languages, sized for two CPU cores.

Order: clip, embed (python -m experiments.emoji.data embed RUN); then prior, decoder in any order.
"""

from __future__ import annotations

from pathlib import Path

from decoder import DecoderConfig
from experiments.emoji.data.styled import StyledEmojiConfig
from prior import PriorConfig
from prior.network import PriorNetworkConfig
from unclip.clip.encoder import Architecture, CLIPConfig, TextTower, VisionTower
from unclip.clip.task import CLIPTaskConfig
from unclip.conditions import Caption, Conditions, ImageEmbedding
from unclip.nn.transformer import TransformerConfig
from unclip.nn.unet import UNetConfig
from unclip.runs import Training
from unclip.sampling import Sampling
from unclip.training import TrainConfig

EMBED, WIDTH, CONTEXT = 128, 192, 24  # of the CLIP: embedding, text width, text context
PIECES = Path(__file__).parents[1] / "emoji" / "pieces.txt"  # of the train captions; `python -m experiments.emoji.data tables`
CLIP = "runs/emoji2.clip"  # whose text tower reads the captions, which are other ones in each epoch
EMBEDDED = StyledEmojiConfig(embeddings=True, balance=0.5)


def clip() -> Training:
    return Training(
        model=CLIPConfig(
            architecture=Architecture(
                embed_dim=EMBED,
                vision=VisionTower(image_size=64, patch_size=8, width=160, layers=6, head_width=32),
                text=TextTower(
                    context_length=CONTEXT,
                    width=WIDTH,
                    layers=4,
                    heads=4,
                    pieces=tuple(PIECES.read_text(encoding="utf-8").split()),
                ),
            ),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        task=CLIPTaskConfig(shift=0.06, drop_words=0.05),
        data=StyledEmojiConfig(balance=0.5),
        train=TrainConfig(
            steps=3000, batch=128, lr=1e-3, warmup=200, weight_decay=0.1, betas=(0.9, 0.98), ema=0.995, precision="bfloat16"
        ),
    )


def prior() -> Training:
    return Training(
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
        clip=CLIP,
        data=EMBEDDED,
        train=TrainConfig(
            steps=3000, batch=128, lr=5e-4, warmup=200, weight_decay=0.06, betas=(0.9, 0.96), ema=0.999, precision="bfloat16"
        ),
    )


def decoder() -> Training:
    """Half the width of the first generation's: on a core without AMX a picture costs 16 ms to train against 34.

    In float32, as bfloat16 takes 22 here: at this width its casts cost more than its products save.
    """
    return Training(
        model=DecoderConfig(
            unet=UNetConfig(channels=64, multiple=(1, 1, 2), depth=2, attention=(1, 2), patch=4, head_channels=32),
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
        clip=CLIP,
        data=EMBEDDED,
        train=TrainConfig(
            steps=60000, batch=16, lr=4e-4, warmup=500, ema=0.9995, channels_last=True, sample_every=2000,
        ),
    )  # fmt: skip

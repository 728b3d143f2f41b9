"""GLIDE (arXiv 2112.10741) at the paper's size: a base of 3.5B for 64 pixels, an upsampler of 1.5B to 256, both reading captions.

Where the paper is silent a comment says what was taken instead; the optimiser is that of unCLIP's decoder, which is this base
with the same settings.  Captions are read with CLIP's byte pairs, which come with open_clip (GLIDE's: GPT-2's), cut at 128:

    unclip train glide.base data.source=pictures
    unclip train glide.base_guided data.source=pictures
"""

from __future__ import annotations

from decoder import DecoderConfig
from experiments.recipes.paper import GLIDE_UNET
from unclip.conditions import Caption, Conditions, Known
from unclip.data.open import DataConfig
from unclip.diffusion.schedule import ScheduleConfig
from unclip.nn.transformer import TransformerConfig
from unclip.nn.unet import UNetConfig
from unclip.runs import Training
from unclip.sampling import Sampling
from unclip.training import TrainConfig
from upsamplers import CorruptionConfig, UpsamplerConfig

CONTEXT = 128  # of the code
BASE_RUN, GUIDED_RUN, UPSAMPLER_RUN = (f"runs/glide.{name}/model" for name in ("base", "base_guided", "upsampler"))
EMPTY = 0.2  # of the captions, in fine-tuning
FINE_TUNING = 100_000  # steps; not given
IMAGES = DataConfig(source="pictures", size=256)  # those of DALL-E, 250M


def base() -> Training:
    """ADM's network for 64 pixels with 512 channels, 2.3B, and a text transformer of 1.2B; captions are never dropped."""
    return Training(
        model=DecoderConfig(
            image_size=64,
            unet=GLIDE_UNET,
            # 32 heads: not given, as wide as everywhere.
            conditions=Conditions(text=_caption(TransformerConfig(width=2048, layers=24, heads=32), drop=0.0)),
            schedule=ScheduleConfig(name="cosine"),
            predicts="eps",
            variance="learned",
            sampling=Sampling(sampler="ddpm", steps=150, variance="learned", threshold="static"),  # 250 where it is measured
        ),
        data=IMAGES.replace(size=64),
        train=TrainConfig(
            steps=2_500_000, batch=2048, lr=1.2e-4, warmup=1000, decay="constant", weight_decay=0.0,
            betas=(0.9, 0.999), eps=1e-8, ema=0.9999, precision="bfloat16", channels_last=True,
        ),
    )  # fmt: skip


def base_guided() -> Training:
    """The base, trained on with a fifth of the captions empty, for classifier-free guidance."""
    trained = base()
    conditions = Conditions(text=_caption(trained.model.conditions.text.transformer, drop=EMPTY))
    guided = trained.model.sampling.replace(guidance=3.0)  # of the human evaluation; 1.5 is best by FID
    return trained.replace(
        model=trained.model.replace(conditions=conditions, sampling=guided),
        start=BASE_RUN,
        train=trained.train.replace(steps=FINE_TUNING),
    )


def upsampler() -> Training:
    """ADM's 64 -> 256 with 384 channels, on the whole picture, and a text transformer half as wide as the base's."""
    return Training(
        model=UpsamplerConfig(
            scale=4,
            # ADM's has 4 heads everywhere; GLIDE's code has heads of 64.  Dropout as in the base.
            unet=UNetConfig(
                channels=384, depth=2, multiple=(1, 1, 2, 2, 4, 4), attention=(3, 4, 5), head_channels=64, dropout=0.1
            ),
            # Width 1024.  As deep as the base's and with heads as wide, which is not given: 1.64B; 16 layers make 1.54B.
            conditions=Conditions(text=_caption(TransformerConfig(width=1024, layers=24, heads=16), drop=0.0)),
            schedule=ScheduleConfig(name="linear"),
            predicts="eps",
            variance="learned",
            resize="bilinear",  # the code; the paper says bicubic
            low_res="8bit",
            noise_scale=0.997,  # the code
            corruption=CorruptionConfig(kind="none"),  # none is mentioned
            crop=1.0,
            sampling=Sampling(sampler="ddim", steps="fast27", threshold="static"),
        ),
        data=IMAGES,
        train=base().train.replace(steps=1_600_000, batch=512),
    )


def base_inpaint() -> Training:
    """The guided base with channels for known pixels, trained on with regions erased; the paper does not say which."""
    trained = base_guided()
    model = trained.model
    # Steps and guidance of the code.  A fourth of the pictures is erased whole, so that it still draws those, too.
    return trained.replace(
        model=model.replace(
            conditions=model.conditions.replace(known=Known(drop=0.25)), sampling=model.sampling.replace(steps=100, guidance=5.0)
        ),
        start=GUIDED_RUN,
    )


def upsampler_inpaint() -> Training:
    """The upsampler, which sees the whole low resolution, and of the high one what is not erased."""
    trained = upsampler()
    model = trained.model
    return trained.replace(
        model=model.replace(
            conditions=model.conditions.replace(known=Known(drop=0.25)),
            sampling=model.sampling.replace(sampler="ddpm", variance="learned"),
        ),
        start=UPSAMPLER_RUN,
        train=trained.train.replace(steps=FINE_TUNING),
    )


def _caption(transformer: TransformerConfig, drop: float) -> Caption:
    return Caption(kind="tokens", context=CONTEXT, transformer=transformer, states="direct", tokenizer="clip", drop=drop)

"""Table 3 of unCLIP (arXiv 2204.06125, App. C) as values: every stage at the paper's size, trained as it says.

Where the paper is silent a comment says what was taken instead.  Silent for all stages: warm-up and decay of the learning rate
(here: constant after 1,000 steps; ADM keeps it constant), gradient clipping (1.0), precision (bfloat16; GLIDE float16).
Pictures and captions come from the folder `pictures`, or what else `DataConfig` reads; the CLIP that the priors and the decoder
learn from is that of a run of `paper.clip`:

    unclip train paper.clip data.source=pictures
    unclip train paper.decoder data.source=pictures clip=runs/paper.clip/model
"""

from __future__ import annotations

from decoder import DecoderConfig
from prior import ARNetworkConfig, ARPriorConfig, ARSampling, PriorConfig, PriorNetworkConfig, QuantizerConfig
from unclip.clip.encoder import Architecture, CLIPConfig, TextTower, VisionTower
from unclip.clip.task import CLIPTaskConfig
from unclip.conditions import Caption, Conditions, ImageEmbedding
from unclip.data.open import DataConfig
from unclip.diffusion.schedule import ScheduleConfig
from unclip.nn.transformer import TransformerConfig
from unclip.nn.unet import UNetConfig
from unclip.runs import Training
from unclip.sampling import Sampling
from unclip.training import TrainConfig
from upsamplers import CorruptionConfig, UpsamplerConfig

CLIP_SIZE, EMBED = 256, 1024
TEXT = TransformerConfig(width=2048, layers=24, heads=32)  # of the priors, and of the decoder's text encoder
# Text context 256.  Token ids come from CLIP's tokenizer, which cuts captions at 77, so that the rest is always padding.
CONTEXT = 256
# GLIDE's, for 64 pixels, 2.3B; attention at 32, 16 and 8 of them.
GLIDE_UNET = UNetConfig(channels=512, depth=3, multiple=(1, 2, 3, 4), attention=(1, 2, 3), head_channels=64, dropout=0.1)
CLIP_RUN = "runs/paper.clip/model"  # the trained `clip`
# About 650M pictures for CLIP, of which the 250M of DALL-E's set for all other stages.
IMAGES = DataConfig(source="pictures", size=CLIP_SIZE)


def clip() -> Training:
    """ViT-H/16 at 256 pixels; "everything else as in CLIP", so what App. C does not name is from Radford et al. 2021."""
    return Training(
        model=CLIPConfig(
            architecture=Architecture(
                embed_dim=EMBED,
                # Heads are in neither paper: 16 of 80 as in every ViT-H, 16 of 64 as in every text tower of CLIP.
                vision=VisionTower(image_size=CLIP_SIZE, patch_size=16, width=1280, layers=32, head_width=80),
                text=TextTower(context_length=77, width=1024, layers=24, heads=16),
            )
        ),
        # Rho of SAM, perturbed per replica with 64 samples each.  CLIP's only augmentation, random square crops, is left
        # out: pictures are cropped at the centre.
        task=CLIPTaskConfig(sam=0.1),
        data=IMAGES,
        # Steps are not given: CLIP's 32 epochs over 650M pictures.  CLIP keeps no average of its weights.
        train=TrainConfig(
            steps=32 * 650_000_000 // 32_768, batch=32_768, lr=3e-4, warmup=2000, decay="cosine", weight_decay=0.2,
            betas=(0.9, 0.98), eps=1e-6, ema=0.0, precision="bfloat16",
        ),
    )  # fmt: skip


def prior() -> Training:
    """The diffusion prior; its 24 blocks hold 1.21B weights where Table 3 says 1B."""
    return Training(
        model=PriorConfig(
            network=PriorNetworkConfig(transformer=TEXT, embed_dim=EMBED, text="tokens", context=CONTEXT),
            schedule=ScheduleConfig(name="cosine"),
            embedding="unit",
            scaling="std",  # 17.2 for unit vectors of 1,024 dimensions
            text_drop=0.1,
            sampling=Sampling(sampler="ddpm", steps=64, variance="analytic"),
        ),
        data=IMAGES,
        clip=CLIP_RUN,
        train=TrainConfig(
            steps=600_000, batch=4096, lr=1.1e-4, warmup=1000, decay="constant", weight_decay=6.0e-2,
            betas=(0.9, 0.96), eps=1e-6, ema=0.9999, precision="bfloat16",
        ),
    )  # fmt: skip


def ar_prior() -> Training:
    """The autoregressive prior: 319 of 1,024 components, which explained 99 % of the variance of the paper's CLIP.

    A CLIP trained without SAM may need more: `model.quantizer.dims`.  Table 3's two transformers hold 2.0B, not "1B".
    """
    return Training(
        model=ARPriorConfig(
            network=ARNetworkConfig(
                transformer=TransformerConfig(width=1664, layers=24, heads=26),
                embed_dim=EMBED,
                text="tokens",
                context=CONTEXT,
                text_transformer=TEXT,
            ),
            quantizer=QuantizerConfig(dims=319, buckets=1024),  # equal or unequal buckets: not given
            embedding="unit",
            text_drop=0.1,
            sampling=ARSampling(percentile=50.0),  # the best of 50, 70, 85 and 95; temperature and guidance are not given
        ),
        data=IMAGES,
        clip=CLIP_RUN,
        train=prior().train.replace(steps=1_000_000, lr=1.6e-4, weight_decay=4.0e-2, betas=(0.9, 0.91), eps=1e-10, ema=0.999),
    )


def decoder() -> Training:
    """GLIDE's 3.5B: a UNet of 2.3B and a text transformer of 1.2B, with the CLIP embedding added."""
    return Training(
        model=DecoderConfig(
            image_size=64,
            unet=GLIDE_UNET,
            conditions=Conditions(
                # Section 2.1; 5.1 and Fig. 8 say that 5 % are dropped, perhaps those that keep the caption, 10 % x 50 %.
                image_embed=ImageEmbedding(embed_dim=EMBED, scale="unit", tokens=4, drop=0.1),
                text=Caption(kind="tokens", context=CONTEXT, transformer=TEXT, drop=0.5),
                width=2048,
            ),
            schedule=ScheduleConfig(name="cosine"),
            predicts="eps",
            variance="learned",
            # 1.25 is best by FID (Table 2); the figures use other scales, mostly not published.
            sampling=Sampling(sampler="ddpm", steps=250, variance="learned", guidance=1.25, threshold="static"),
        ),
        data=IMAGES,
        clip=CLIP_RUN,
        # Table 3 has no weight decay here; ADM, whose settings these are, has none either.
        train=TrainConfig(
            steps=800_000, batch=2048, lr=1.2e-4, warmup=1000, decay="constant", weight_decay=0.0,
            betas=(0.9, 0.999), eps=1e-8, ema=0.9999, precision="bfloat16", channels_last=True,
        ),
    )  # fmt: skip


def upsampler_256() -> Training:
    """64 -> 256 pixels, trained on crops of a quarter of the side."""
    return Training(
        model=UpsamplerConfig(
            unet=UNetConfig(channels=320, depth=3, multiple=(1, 2, 3, 4), dropout=0.1),
            schedule=ScheduleConfig(name="cosine"),
            predicts="eps",
            resize="bicubic",  # GLIDE's paper; its code is bilinear
            # Kernel 3, sigma 0.6.  How many pictures are blurred is not given; half of them in cascaded diffusion.
            corruption=CorruptionConfig(kind="blur", probability=0.5, kernel=3, sigma=(0.6, 0.6)),
            crop=0.25,
            # 27 steps; GLIDE's own 27, "fast27", are spaced unevenly, and the paper does not say which.
            sampling=Sampling(sampler="ddim", steps=27, threshold="static"),
        ),
        data=IMAGES,
        train=decoder().train.replace(steps=1_000_000, batch=1024),
    )


def upsampler_1024() -> Training:
    """256 -> 1024 pixels: ADM's 256-pixel layout without attention, on a linear schedule."""
    base = upsampler_256()
    return base.replace(
        data=IMAGES.replace(size=1024),
        model=base.model.replace(
            unet=UNetConfig(channels=192, depth=2, multiple=(1, 1, 2, 2, 4, 4)),  # dropout is not given
            schedule=ScheduleConfig(name="linear"),
            corruption=CorruptionConfig(kind="bsr"),  # latent diffusion's; the paper does not say full or light
            sampling=base.model.sampling.replace(steps=15),
        ),
        train=base.train.replace(batch=512, lr=1.0e-4),
    )

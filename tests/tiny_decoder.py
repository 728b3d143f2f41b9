"""Decoders of a few thousand weights, and captions for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from decoder import Decoder, DecoderConfig
from unclip.conditions import Caption, Conditions, ImageEmbedding
from unclip.nn.transformer import TransformerConfig
from unclip.nn.unet import UNetConfig
from unclip.sampling import Sampling
from unclip.types import Cond, Text

EMBED, STATES, CONTEXT, VOCAB = 10, 12, 7, 50
TOKENS = Caption(kind="tokens", context=CONTEXT, vocab=VOCAB, transformer=TransformerConfig(width=16, layers=2, heads=2))
CLIP_STATES = Caption(kind="clip_states", context=CONTEXT, states_width=STATES, embed_dim=EMBED)
TEXTS = {"no text": None, "tokens": TOKENS, "clip_states": CLIP_STATES}
UNET = UNetConfig(channels=32, depth=1, multiple=(1, 2), attention=(1,), head_channels=16)


def conditions(text: str = "no text", image_drop: float = 0.1, text_drop: float = 0.5, **image) -> Conditions:
    caption = TEXTS[text] and TEXTS[text].replace(drop=text_drop)
    return Conditions(image_embed=ImageEmbedding(embed_dim=EMBED, drop=image_drop, **image), text=caption, width=24)


def config(text: str = "no text", **changes) -> DecoderConfig:
    drops = {name: changes.pop(name) for name in ("image_drop", "text_drop") if name in changes}
    defaults = {
        "unet": UNET,
        "conditions": conditions(text, **drops),
        "sampling": Sampling(sampler="ddim", steps=4, threshold="static"),
    }
    return DecoderConfig(**{"image_size": 8, **defaults, **changes})


def build(module: type | None = None, text: str = "no text", std: float = 0.3, **changes) -> Decoder:
    """A seeded decoder; with `std`, every weight is disturbed, zero-initialised ones and nulls too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (module or Decoder)(config(text, **changes)).eval()
        disturb(model, std)
    return model


@torch.no_grad()
def disturb(module: nn.Module, std: float) -> None:
    for parameter in module.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.add_(std / 0.3 * scale * torch.randn_like(parameter))


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def embeds(b: int, seed: int = 4) -> Tensor:
    return 3 * random(b, EMBED, seed=seed)


def texts(lengths: tuple[int, ...], context: int = 6, strings: list[str] | None = None, seed: int = 5) -> Text:
    """Captions with so many real tokens; what stands behind them is not zero, and must not matter."""
    b, generator = len(lengths), torch.Generator().manual_seed(seed)
    return Text(
        strings or [f"caption {i}" for i in range(b)],
        torch.randint(1, VOCAB, (b, context), generator=generator),
        torch.randn(b, EMBED, generator=generator),
        torch.randn(b, context, STATES, generator=generator),
        torch.arange(context) < torch.tensor(lengths)[:, None],
    )


def conds(text: str, lengths: tuple[int, ...] = (3, 6, 5)) -> Cond:
    return Cond(image_embed=embeds(len(lengths)), text=None if text == "no text" else texts(lengths))


def pictures(b: int, seed: int = 6) -> Tensor:
    return 0.8 * random(b, 3, 8, 8, seed=seed).tanh()

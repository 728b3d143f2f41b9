"""CLIP's two transformers: a vision transformer and a causal text transformer with a projection each (Radford et al. 2021).

open_clip has the same; this is for CLIPs that are described by an `Architecture`, as the shipped one, because importing open_clip
brings torchvision, timm and transformers, 2.8 s of CPU time before the first picture.  Tensors have open_clip's names, numbers
are its own to the last bit, new weights are drawn as it draws them; tests hold all three.  Unlike its `encode_text`, this one
also returns the states of the tokens, so that threads need not wait for each other's hooks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that OpenAI's CLIP was trained on, in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)


class EncodedText(NamedTuple):
    embed: Float[Tensor, "b d"]  # raw: projected, not normalised
    states: Float[Tensor, "b l w"]  # after the final norm


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), which OpenAI's weights were trained with in place of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class FeedForward(nn.Module):
    def __init__(self, width: int, activation: Callable[[], nn.Module]):
        super().__init__()
        self.c_fc, self.gelu, self.c_proj = nn.Linear(width, 4 * width), activation(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Pre-norm attention and a feed-forward layer of four times the width."""

    def __init__(self, width: int, heads: int, activation: Callable[[], nn.Module]):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, activation)

    def forward(self, x: Float[Tensor, "b l w"], mask: Float[Tensor, "l l"] | None = None) -> Float[Tensor, "b l w"]:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, activation: Callable[[], nn.Module]):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))

    def forward(self, x: Float[Tensor, "b l w"], mask: Float[Tensor, "l l"] | None = None) -> Float[Tensor, "b l w"]:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTransformer(nn.Module):
    """Pictures (b, 3, s, s), standardised -> raw embeddings (b, d): patches and a class token, which is read at the end."""

    def __init__(
        self, size: int, patch: int, width: int, layers: int, heads: int, embed_dim: int, activation: Callable[[], nn.Module]
    ):
        super().__init__()
        self.image_size = size
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn((size // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Blocks(width, layers, heads, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        x = self.conv1(images).flatten(2).transpose(1, 2)  # (b, patches, w)
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)  # (b, 1, w)
        x = torch.cat([first, x], dim=1) + self.positional_embedding.to(x.dtype)
        x = self.ln_post(self.transformer(self.ln_pre(x)))
        return x[:, 0] @ self.proj


class Towers(nn.Module):
    """Both transformers and the temperature of the contrastive loss.  visual: None where captions are all that is read."""

    def __init__(
        self,
        embed_dim: int,
        visual: VisionTransformer | None,
        vocab: int,
        context: int,
        width: int,
        layers: int,
        heads: int,
        activation: Callable[[], nn.Module],
    ):
        super().__init__()
        self.visual = visual
        self.token_embedding = nn.Embedding(vocab, width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.transformer = Blocks(width, layers, heads, activation)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._draw_text()

    def _draw_text(self) -> None:
        """New weights of the text tower (the code that came with Radford et al. 2021); the vision tower's are torch's."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        width, layers = self.positional_embedding.shape[1], len(self.transformer.resblocks)
        narrow = width**-0.5 * (2 * layers) ** -0.5
        for block in self.transformer.resblocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=narrow)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=narrow)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def encode_image(self, images: Float[Tensor, "b 3 s s"], normalize: bool = False) -> Float[Tensor, "b d"]:
        assert self.visual is not None
        embed = self.visual(images)
        return nn.functional.normalize(embed, dim=-1) if normalize else embed

    def read(self, ids: Int[Tensor, "b l"]) -> EncodedText:
        """Embedding and states of captions; the end token, which has the largest id, stands for the caption."""
        block = self.transformer.resblocks[0]
        assert isinstance(block, Block)
        dtype = block.mlp.c_fc.weight.dtype
        x = self.token_embedding(ids).to(dtype) + self.positional_embedding.to(dtype)
        causal = torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=dtype, device=x.device).triu(1)
        states = self.ln_final(self.transformer(x, causal))  # (b, l, w)
        ends = states[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)]  # (b, w)
        return EncodedText(ends @ self.text_projection, states)

    def encode_text(self, ids: Int[Tensor, "b l"], normalize: bool = False) -> Float[Tensor, "b d"]:
        embed = self.read(ids).embed
        return nn.functional.normalize(embed, dim=-1) if normalize else embed

"""Contrastive training of a CLIP through open_clip's own loss."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unclip.config import Config
from unclip.randomness import Noise
from unclip.training.evaluation import caption_ids, chance, retrieval
from unclip.training.task import Task, require
from unclip.types import Batch, Losses

from .encoder import CLIP, CLIPConfig
from .pieces import PieceTokenizer
from .tokenizer import UNKNOWN, BytePairTokenizer


class CLIPTaskConfig(Config, frozen=True, kw_only=True):
    sam: float | None = None  # rho of sharpness-aware minimisation; 0.1 in unCLIP App. C
    shift: float = 0.0  # pictures move and zoom by up to this part of their side; no flips: captions say left and right
    drop_words: float = 0.0  # part of the words read as unknown, which trains the compact vocabulary's unknown row

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sam is not None and not 0 < self.sam < math.inf:
            raise ValueError(f"sam is {self.sam}; rho must be positive (the paper: 0.1), or null for plain training")
        if not 0 <= self.shift < 0.5:
            raise ValueError(f"shift is {self.shift}; it must be in [0, 0.5), a part of the picture's side")
        if not 0 <= self.drop_words < 1:
            raise ValueError(f"drop_words is {self.drop_words}; it must be in [0, 1)")


class CLIPTask(Task):
    """Batch.images and Batch.captions to ClipLoss; several processes share their negatives as open_clip does it."""

    config_class = CLIPTaskConfig
    model: CLIP

    def __init__(self, model: CLIP, config: CLIPTaskConfig | None = None):
        super().__init__()
        self.model = model
        self.config = config or CLIPTaskConfig()
        self.sam_rho = self.config.sam  # read by the training loop
        tokenizer = model.tokenizer
        compact = isinstance(tokenizer, BytePairTokenizer) and tokenizer.token_ids is not None
        if self.config.drop_words and not (compact or isinstance(tokenizer, PieceTokenizer)):
            raise ValueError("drop_words needs a compact vocabulary (token_ids or pieces): other CLIPs have no unknown token")

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        require(batch, ["images", "captions"], "CLIPTask")
        images, captions = batch.images, batch.captions
        assert images is not None and captions is not None
        training = self.model.training  # the task itself stays in evaluation mode, for its teachers' sake
        if training:
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=math.log(100))  # CLIP 2.5
            images = jitter(images, self.config.shift, noise.at("jitter"))
        ids, mask = self.model.tokenize(captions)
        if training and self.config.drop_words:
            ids = drop_words(ids, mask, self.config.drop_words, noise.at("words"))
        z_i = F.normalize(self.model.encode_image(images).float(), dim=-1)
        z_t = F.normalize(self.model.encode_tokens(captions, ids, mask).z_t.float(), dim=-1)
        scale = self.model.logit_scale.float().exp()
        # The loss couples the samples, so every sample of the batch carries the batch's mean.
        total = clip_loss(z_i, z_t, scale).expand(len(z_i))
        terms = {
            "image_to_text": _hits(z_i.detach(), z_t.detach()),
            "text_to_image": _hits(z_t.detach(), z_i.detach()),
            "logit_scale": scale.detach().expand(len(z_i)),
        }
        return Losses(total, None, terms)

    @classmethod
    def reads(cls, config: Config) -> tuple[str, ...]:
        return "images", "captions"

    @classmethod
    def image_size(cls, config: Config) -> int:
        assert isinstance(config, CLIPConfig)
        if config.architecture is not None:
            return config.architecture.vision.image_size if config.architecture.vision else 0
        from open_clip import get_model_config

        assert config.name is not None
        known = get_model_config(config.name)
        if known is None:  # only its weights tell, those of a repository
            raise ValueError(f'data.size is missing: the side of the pictures that {config.name} sees, for instance "size": 224')
        size = known["vision_cfg"].get("image_size", 224)
        return int(size if isinstance(size, int) else size[0])

    def validate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Both unit embeddings: what is to be known of them couples all samples."""
        require(batch, ["images", "captions"], "CLIPTask")
        assert batch.images is not None and batch.captions is not None
        z_i = F.normalize(self.model.encode_image(batch.images).float(), dim=-1)
        z_t = F.normalize(self.model.encode_text(batch.captions).z_t.float(), dim=-1)
        scale = self.model.logit_scale.float().exp().expand(len(z_i))
        return {"image": z_i, "text": z_t, "scale": scale, "caption": caption_ids(batch.captions).to(z_i.device)}

    def summarize(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """The loss of all samples as one batch, and R@k among them both ways, beside chance."""
        z_i, z_t, ids, scale = rows["image"], rows["text"], rows["caption"], rows["scale"][0]
        logits, targets = scale * z_i @ z_t.T, torch.arange(len(z_i))
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        numbers = {"loss": float(loss), "loss/chance": math.log(len(z_i))}
        for name, queries, candidates in (("image_to_text", z_i, z_t), ("text_to_image", z_t, z_i)):
            for k, value in retrieval(queries, candidates, ids).items():
                numbers |= {f"{name}_{k}": value, f"{name}_{k}/chance": chance(ids, int(k[2:]))}
        return numbers


def clip_loss(z_i: Float[Tensor, "b d"], z_t: Float[Tensor, "b d"], scale: Tensor) -> Tensor:
    """open_clip's ClipLoss on unit embeddings, over the negatives of all processes when there are several."""
    from open_clip.loss import ClipLoss

    rank, world = _processes()
    return ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world)(z_i, z_t, scale)


def jitter(images: Float[Tensor, "b 3 h w"], amount: float, noise: Noise) -> Float[Tensor, "b 3 h w"]:
    """Move each picture and zoom it by up to `amount` of its side; what comes in from outside repeats the border."""
    if not amount:
        return images
    draws = (noise.uniform((3,)) * 2 - 1).to(images) * amount
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + draws[:, 0]
    theta[:, :, 2] = 2 * draws[:, 1:]  # grid_sample's square is two units wide
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 has 8 bits for a place in the picture
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def drop_words(ids: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"], fraction: float, noise: Noise) -> Int[Tensor, "b l"]:
    """Read some real tokens, never start and end, as the unknown one."""
    inner = mask.clone()
    inner[:, 0] = False
    inner[torch.arange(len(ids)), mask.sum(1) - 1] = False
    return ids.masked_fill(inner & (noise.uniform((ids.shape[1],)) < fraction), UNKNOWN)


def _hits(a: Tensor, b: Tensor) -> Tensor:
    """1 where the nearest of the global batch is one's own, else 0."""
    rank, world = _processes()
    everyone = b
    if world > 1:
        pieces = [torch.empty_like(b) for _ in range(world)]
        torch.distributed.all_gather(pieces, b.contiguous())
        everyone = torch.cat(pieces)
    return ((a @ everyone.T).argmax(1) == rank * len(a) + torch.arange(len(a), device=a.device)).float()


def _processes() -> tuple[int, int]:
    """Own number, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1

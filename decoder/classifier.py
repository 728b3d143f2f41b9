"""ADM's classifier: which class a noised picture is of.  The gradient of its log probability guides a decoder (ADM 4.1)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, scaled_dot_product_attention, silu

from unclip.checkpoint import Component
from unclip.clip.preprocess import fit_square
from unclip.config import Config, Pixels
from unclip.data.images import check_images
from unclip.diffusion.schedule import ScheduleConfig
from unclip.nn.cpu.linear import Linear
from unclip.nn.embeddings import TimestepEmbedding
from unclip.nn.unet import UNetConfig, UNetEncoder
from unclip.randomness import Noise, check_noise
from unclip.training.evaluation import losses, mean_losses
from unclip.training.task import Answers, Task, require
from unclip.types import Batch, Cond, Guide, Losses


class ClassifierConfig(Config, frozen=True, kw_only=True):
    """`schedule` and `image_size` are those of the decoder that is to be guided: another's timesteps mean other noise."""

    image_size: Pixels = 64
    unet: UNetConfig  # of which the encoder half is built
    classes: int
    names: tuple[str, ...] = ()  # of the classes, where they have some
    schedule: ScheduleConfig = ScheduleConfig()
    first_timestep: Literal[0, 1] = 1  # what the network sees for t = 1; public weights count from 0
    scale: float = 1.0  # of the gradient, where nothing else is asked for

    def __post_init__(self) -> None:
        super().__post_init__()
        grid = self.unet.multiple_of
        if self.image_size < 1 or self.image_size % grid:
            raise ValueError(f"image_size is {self.image_size}; pictures of this UNet have a side that divides by {grid}")
        if self.classes < 2:
            raise ValueError(f"classes is {self.classes}; a classifier tells at least 2 apart")
        if self.names and (len(self.names) != self.classes or len(set(self.names)) < len(self.names)):
            raise ValueError(f"{len(self.names)} names for {self.classes} classes; give one each, all different, or none")
        if not abs(self.scale) < float("inf"):
            raise ValueError(f"scale is {self.scale}; it must be a finite number")
        width = self.unet.channels * self.unet.multiple[-1]
        if width % (self.unet.heads or self.unet.head_channels):
            raise ValueError(f"the pool's width {width} must be a multiple of the UNet's heads, or of head_channels")


class AttentionPool(nn.Module):
    """Features (b, width, side, side) -> (b, out): what their mean sees among them, by attention (CLIP's pool, ADM 4.1)."""

    def __init__(self, width: int, heads: int, side: int, out: int):
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.randn(side**2 + 1, width) * width**-0.5)  # the mean's first
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, out)

    def forward(self, x: Float[Tensor, "b w h v"]) -> Float[Tensor, "b out"]:
        x = x.flatten(2).transpose(1, 2)  # (b, h v, width)
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + self.positions  # (b, 1 + h v, width)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (b, heads, 1 + h v, d)
        return self.out(scaled_dot_product_attention(q[:, :, :1], k, v).flatten(1))  # (b, heads, 1, d) -> (b, width)


class ClassifierNetwork(nn.Module):
    """(x_t, t) -> logits (b, classes)."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        unet = config.unet
        width, side = unet.channels * unet.multiple[-1], config.image_size // unet.multiple_of
        self.unet = UNetEncoder(unet)
        self.time = TimestepEmbedding(unet.sinusoid, unet.emb, config.first_timestep)
        self.norm = nn.GroupNorm(32, width)
        self.pool = AttentionPool(width, unet.heads or width // unet.head_channels, side, config.classes)

    def forward(self, x_t: Float[Tensor, "b 3 h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b classes"]:
        x = self.unet(x_t.to(self.unet.input.weight.dtype), self.time(t.to(x_t.device)))  # (b, width, h', w')
        return self.pool(silu(self.norm(x)))


class Classifier(Component[ClassifierConfig]):
    """P(label | x_t), at any timestep.  `Cascade(decoder, upsamplers, guide=classifier)` is guided by it."""

    config_class = ClassifierConfig
    task_class = "ClassifierTask"

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.image_size, self.scale = config.image_size, config.scale
        self.schedule = config.schedule.build()
        self.network = ClassifierNetwork(config)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes; () where they have none."""
        return self.config.names

    def forward(self, x_t: Float[Tensor, "b 3 h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b classes"]:
        """Logits of noised pictures; t in 1..T.  ValueError for pictures of another size."""
        size = self.image_size
        if x_t.shape[1:] != (3, size, size):
            raise ValueError(f"this classifier reads pictures of shape (b, 3, {size}, {size}), not {tuple(x_t.shape)}")
        return self.network(x_t, t)

    def loss(self, images: Float[Tensor, "b 3 h w"], cond: Cond, *, noise: Noise) -> Losses:
        """Cross-entropy of `cond.label` for pictures noised to t ~ U{1..T}; the term `accuracy` is 1 where the guess is right."""
        check_noise(noise, len(images), "pictures")
        check_images(images)
        label = self._label(cond, len(images)).to(images.device)
        t = noise.at("t").integers(1, self.schedule.T + 1)
        eps = noise.at("eps").normal(images.shape[1:]).to(images)
        alpha, sigma = self.schedule.at(t, images)
        logits = self(alpha * images + sigma * eps, t).float()
        total = cross_entropy(logits, label, reduction="none")
        return Losses(total, t, {"accuracy": (logits.argmax(1) == label).to(total.dtype)})

    def log_probability(self, label: Int[Tensor, " b"]) -> Guide:
        """(x_t, t) -> (b) log P(label | x_t), in float32 whatever type the decoder computes in (`gradient_guidance`)."""
        label = self._label(Cond(label=label), len(label))

        def log_p(x_t: Tensor, t: Tensor) -> Tensor:
            # In half precision a gradient is noise where sigma is small.
            if self.network.unet.input.weight.dtype != torch.float32:
                raise ValueError("a classifier guides in float32: load it so, or classifier.float()")
            with torch.autocast(x_t.device.type, enabled=False):
                probabilities = log_softmax(self(x_t.float(), t), dim=1)  # (b, classes)
            return probabilities.gather(1, label.to(x_t.device)[:, None])[:, 0]  # (b)

        return log_p

    def guide(self, cond: Cond) -> Guide:
        """The log probability of the conditions' label; ValueError where there is none."""
        if cond.label is None:
            raise ValueError("a classifier guides towards a label, and there is none: give labels, or guide_scale 0")
        return self.log_probability(cond.label)

    def _label(self, cond: Cond, count: int) -> Int[Tensor, " b"]:
        label = cond.label
        if label is None or label.shape != (count,) or label.is_floating_point():
            actual = "none" if label is None else f"{label.dtype} {tuple(label.shape)}"
            raise ValueError(f"{count} pictures need as many whole numbers as labels; got {actual}")
        wrong = sorted({int(i) for i in label if not 0 <= int(i) < self.config.classes})
        if wrong:
            raise ValueError(f"labels {wrong} were given; this classifier's classes are 0 to {self.config.classes - 1}")
        return label.long()


class ClassifierTask(Task):
    """Batches hold `images` and `labels`; held-out accuracy is told by quartile of t, beside chance."""

    def __init__(self, model: Classifier):
        super().__init__()
        self.model: Classifier = model

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        require(batch, ["images", "labels"], "ClassifierTask")
        assert batch.images is not None
        return self.model.loss(fit_square(batch.images, self.model.image_size), Cond(label=batch.labels), noise=noise)

    def validate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Losses and right guesses at several timesteps of each picture."""
        return losses(lambda noise: self(batch, noise), noise, terms=["accuracy"])

    def summarize(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Means, by quartile of t too: `accuracy_q1` (least noise) to `accuracy_q4`, each beside that of a guess."""
        T = self.model.schedule.T
        accuracy = mean_losses(rows, T, "accuracy")
        chance = {f"{name}/chance": 1 / self.model.config.classes for name in accuracy}
        return mean_losses(rows, T) | accuracy | chance

    @classmethod
    def reads(cls, config: Config) -> tuple[str, ...]:
        return ("images", "labels")

    @classmethod
    def resolve(cls, config: Config, answers: Answers) -> Config:
        """With the names of the data's classes."""
        assert isinstance(config, ClassifierConfig)
        if not answers.classes or config.names == answers.classes:
            return config
        if config.names or config.classes != len(answers.classes):
            known = ", ".join(config.names) or f"{config.classes} classes"
            there = ", ".join(answers.classes)
            raise ValueError(f"the classifier's labels are {known}, those of the data {there}: they must be the same")
        return config.replace(names=answers.classes)

    @classmethod
    def image_size(cls, config: Config) -> int:
        assert isinstance(config, ClassifierConfig)
        return config.image_size

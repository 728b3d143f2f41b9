"""P(z_i | y), symbol by symbol: draws CLIP image embeddings for captions autoregressively (unCLIP 2.2).

An embedding is written as  z_i . z_t, component 1, component 2, ...,  each one of 1,024 symbols.  The dot product comes
first, so that sampling can ask for embeddings near to the caption: it is drawn from the upper half of its distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from unclip.checkpoint import Component
from unclip.checks import check_int
from unclip.config import Config
from unclip.nn.transformer import Cache
from unclip.randomness import Noise, check_noise
from unclip.sampling import Sampling
from unclip.trees import tree_map
from unclip.types import Losses, Text, check_text, joined

from .ar_network import ARNetwork, ARNetworkConfig
from .network import Prompt
from .quantizer import Buckets, Quantizer, QuantizerConfig, count_dims
from .scaling import Scaling


class ARSampling(Config, frozen=True, kw_only=True):
    """How an AR prior samples: a value, saved with it as its default."""

    guidance: float = 1.0  # 1 = off
    temperature: float = 1.0  # 0 = the most probable symbol
    top_p: float = 1.0  # only the most probable symbols that reach this share together; 1 = all
    percentile: float = 50.0  # z_i . z_t is drawn from above this percentile of its distribution; 0 = from all of it

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance is {self.guidance}; it must be a finite number of at least 0 (1 = off)")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be a finite number of at least 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it is a share of the probability, in (0, 1]")
        if not 0 <= self.percentile < 100:
            raise ValueError(f"percentile is {self.percentile}; it must lie in [0, 100)")


class ARPriorConfig(Config, frozen=True, kw_only=True):
    network: ARNetworkConfig
    quantizer: QuantizerConfig = QuantizerConfig()
    embedding: Literal["unit", "raw"] = "unit"
    text_drop: float = 0.1
    sampling: ARSampling = ARSampling()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.text_drop <= 1:
            raise ValueError(f"text_drop is a probability, not {self.text_drop}")

    def resolve(self, image_embeds: Float[Tensor, "n d"]) -> ARPriorConfig:
        """The config with the number of components, where it gives a share of the variance of these raw embeddings."""
        if not isinstance(self.quantizer.dims, float):
            return self
        scaling = Scaling(self.network.embed_dim, "std", self.embedding)
        scaling.fit(image_embeds)
        dims = count_dims(scaling.scale(image_embeds), self.quantizer.dims)
        return self.replace(quantizer=self.quantizer.replace(dims=dims))


class ARPrior(Component[ARPriorConfig]):
    """Predicts an embedding's symbols one after the other, with cross-entropy."""

    config_class = ARPriorConfig
    task_class = "PriorTask"
    candidates = 1  # of its own dot product it draws the upper half already

    def __init__(self, config: ARPriorConfig):
        super().__init__()
        self.config = config
        self.embed_dim = config.network.embed_dim
        self.scaling = Scaling(self.embed_dim, "std", config.embedding)
        self.quantizer = Quantizer(self.embed_dim, config.quantizer)
        self.dot = Buckets(1, config.quantizer.buckets, config.quantizer.edges)
        self.length = 1 + self.quantizer.dims  # symbols of an embedding, and passes of the network that draw one
        self.network = ARNetwork(config.network, self.length, config.quantizer.buckets)

    def loss(self, image_embed: Float[Tensor, "b d"], text: Text, *, noise: Noise) -> Losses:
        """-log p(symbol | those before, y) per sample, mean over its symbols; a caption is dropped in 10 % of them.

        Terms, in nats but for the accuracy: the dot product's symbol, the first 8 components, how many symbols were right.
        """
        check_noise(noise, len(image_embed), "embeddings")
        check_noise(noise, len(check_text(text).strings), "captions")
        drop = noise.at("drop").uniform() < self.config.text_drop
        prompt = self._prompt(text, drop)
        symbols = self.symbols(image_embed, text.z_t)
        logits, _ = self.network(symbols[:, :-1], prompt)
        nats = cross_entropy(logits.flatten(0, 1).float(), symbols.flatten(), reduction="none").view_as(symbols)
        # Every number falls into some bucket, a broken one too: the training loop shall see it.
        finite = torch.isfinite(image_embed).all(1) & torch.isfinite(text.z_t).all(1)
        total = torch.where(finite.to(nats.device), nats.mean(1), float("nan"))
        right = (logits.detach().argmax(-1) == symbols).float().mean(1)
        return Losses(total, None, {"dot": nats[:, 0], "first": nats[:, 1:9].mean(1), "accuracy": right})

    @property
    def sampling(self) -> ARSampling:
        """How it samples by default."""
        return self.config.sampling

    def describe(self) -> str:
        """How it samples by default, in a few words."""
        return f"autoregressive, {self.length} symbols, guidance {self.sampling.guidance:g}"

    def resolve(self, sampling: ARSampling | Sampling | None = None) -> ARSampling:
        """`sampling`, or the prior's own; of a `Sampling` the guidance is taken, and other settings are refused."""
        return self._settings(sampling)

    @torch.no_grad()
    def sample(
        self,
        text: Text,
        *,
        noise: Noise,
        n: int = 1,
        sampling: ARSampling | Sampling | None = None,
        negative: Text | None = None,
        on_step: Callable[[int, int, Tensor], object] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Draw n raw embeddings for each caption; one noise stream per caption.  A `Sampling` may bring its guidance only.

        One number per symbol is drawn from a row's stream and looked up in the cumulated probabilities, so that a row's
        draw is the same whatever the batch (up to a number that falls on a border: it then gets the neighbouring bucket).
        negative: captions, one or one each, that guidance leads away from, in place of the null.  on_step: called after each
        symbol with its number, how many there will be, and those drawn so far (b * n, number).
        """
        settings = self._settings(sampling)
        check_noise(noise, len(check_text(text).strings), "captions")
        n = check_int("n", n, 1, "how many embeddings for each caption")
        numbers = noise.repeat(n).at("symbols").uniform((self.length,)).to(self.device)
        share = settings.percentile / 100
        numbers[:, 0] = share + (1 - share) * numbers[:, 0]
        guided = settings.guidance != 1
        logits, prefix = self._begin(text, guided, negative)
        logits = logits.repeat_interleave(n, dim=0)
        symbols: list[Tensor] = []
        drawn: Cache | None = None
        while True:
            logits = logits[:, -1].float()
            if guided:
                conditional, null = logits.chunk(2)
                logits = null + settings.guidance * (conditional - null)
            symbols.append(draw(logits, numbers[:, len(symbols)], settings.temperature, settings.top_p))
            if on_step is not None:
                on_step(len(symbols), self.length, torch.stack(symbols, dim=1))
            if len(symbols) == self.length:
                break
            new = symbols[-1].repeat(2 if guided else 1)[:, None]
            logits, drawn = self.network(new, prefix, drawn)
        x = self.quantizer.decode(torch.stack(symbols[1:], dim=1))
        return self.scaling.unscale(x).unflatten(0, (-1, n))  # (b n, d) -> (b, n, d)

    def _begin(self, text: Text, guided: bool, negative: Text | None) -> tuple[Float[Tensor, "r 1 v"], Cache]:
        """Logits of the first symbol and the prompts' cache; guided, as many rows of the null follow, run once."""
        rows = len(text.strings)
        prompt = self._prompt(text if negative is None or not guided else joined([text, negative]))
        if guided and negative is None:
            prompt = tree_map(lambda a, b: torch.cat([a, b]), prompt, self.network.null(prompt.mask.shape[1]))
        begun = self.network(torch.zeros(len(prompt.mask), 0, dtype=torch.int64), prompt)
        if not guided:
            return begun
        return tree_map(lambda x: torch.cat([x[:rows], x[rows:].expand_as(x[:rows])]), begun)

    def symbols(self, image_embed: Float[Tensor, "b d"], text_embed: Float[Tensor, "b _"]) -> Int[Tensor, "b length"]:
        """Raw embeddings as what the network predicts: the dot product of directions, then the components."""
        self._check(image_embed)
        image_embed = image_embed.to(self.device)
        components = self.quantizer.encode(self.scaling.scale(image_embed))
        dot = _dot(image_embed, text_embed.to(self.device))
        return torch.cat([self.dot.encode(dot), components], dim=1)

    @property
    def fitted(self) -> bool:
        return not bool(self.dot.edges.isnan().any())

    def fit(self, image_embeds: Float[Tensor, "n d"], text_embeds: Float[Tensor, "_ _"]) -> None:
        """Take components, buckets and how often each is met from raw embeddings of the training data and its captions.

        Before training, which learns how a caption departs from those frequencies.
        """
        self._check(image_embeds)
        if image_embeds.shape != text_embeds.shape:
            raise ValueError(
                f"image embeddings {tuple(image_embeds.shape)} must come with as many of their captions, "
                f"not {tuple(text_embeds.shape)}"
            )
        self.scaling.fit(image_embeds)
        self.quantizer.fit(self.scaling.scale(image_embeds))
        self.dot.fit(_dot(image_embeds, text_embeds))
        self.network.set_frequencies(self.symbols(image_embeds, text_embeds))

    def check(self) -> None:
        self.scaling.check()
        self.quantizer.check()
        self.dot.check()
        if not (self.network.frequencies <= 1e-4).all():  # logarithms; zero = not measured
            raise ValueError("the frequencies of the prior's symbols cannot be: some are above 1, or NaN")

    def _prompt(self, text: Text, drop: Tensor | None = None) -> Prompt:
        return self.network.prompt(text._replace(embed=self.scaling.text(text.z_t)), drop)

    def _settings(self, sampling: ARSampling | Sampling | None) -> ARSampling:
        if sampling is None or isinstance(sampling, ARSampling):
            return sampling or self.config.sampling
        default = Sampling()
        names = [f for f in sampling.__struct_fields__ if f != "guidance" and getattr(sampling, f) != getattr(default, f)]
        if names:
            raise ValueError(
                f"an autoregressive prior draws its {self.length} symbols one by one and has no {', '.join(names)}: "
                f"sample it with ARSampling({', '.join(ARSampling.__struct_fields__)})"
            )
        return self.config.sampling.replace(guidance=sampling.guidance)

    def _check(self, image_embed: Tensor) -> None:
        if image_embed.ndim != 2 or image_embed.shape[1] != self.embed_dim:
            raise ValueError(
                f"the prior expects image embeddings of shape (b, {self.embed_dim}), got {tuple(image_embed.shape)}: "
                "were they made by another CLIP?"
            )


def draw(logits: Float[Tensor, "b v"], number: Float[Tensor, " b"], temperature: float, top_p: float) -> Int[Tensor, " b"]:
    """The symbol at `number`, in [0, 1), of the cumulated distribution; the most probable one at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1)
    p = (logits / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        p = p * torch.zeros_like(p).scatter_(-1, order, (before < top_p).to(p))
    cumulated = p.cumsum(-1)
    total = cumulated[:, -1:]
    last = (cumulated < total).sum(-1)  # with any probability: rounding must not lead beyond it
    return torch.minimum((cumulated <= number[:, None] * total).sum(-1), last)


def _dot(image_embed: Tensor, text_embed: Tensor) -> Float[Tensor, "b 1"]:
    return (normalize(image_embed.float(), dim=-1) * normalize(text_embed.float(), dim=-1)).sum(-1, keepdim=True)

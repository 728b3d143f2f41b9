"""text -> embedding -> image -> upsample: P(x | y) = P(x | z_i, y) P(z_i | y) (unCLIP, section 2)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unclip import checkpoint
from unclip.checks import dtype_of
from unclip.clip.identity import identity, same_identity
from unclip.config import Config
from unclip.editing import edits
from unclip.editing.latent import Latent
from unclip.editing.pca import PCA
from unclip.index import same_sizes
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.trees import move
from unclip.types import (
    Adjustable,
    Callback,
    Cond,
    Decoder,
    Guide,
    GuideModel,
    ImageTextEncoder,
    Prior,
    Text,
    Upsampler,
    best_of,
    keep_contract,
)

from . import store
from .cascade import Cascade
from .generation import Generation
from .over import OverCascade
from .stage import (
    Told,
    captions_of,
    check_drawn,
    check_settings,
    chunks,
    move_parts,
    negative_text,
    numbers_of,
    passes,
    run_stage,
    settle,
    warn_inert,
)

EMBEDDINGS_AT_ONCE = 64
NO_PRIOR = "give one: UnCLIP(clip, prior, ...), or pipe.with_prior(...)"


class UnCLIP(OverCascade):
    """A CLIP, a prior, and a cascade of decoder and upsamplers that were trained with that CLIP's embeddings.

    Parts are anything that keeps the contracts of `unclip.types`; modules among them are put in evaluation mode.  Without a
    prior (None) a pipeline varies, interpolates and edits pictures, but draws none for captions.
    `candidates`: how many embeddings are drawn per picture, of which the one nearest the caption is kept; by default what the
    prior says of itself, else two (unCLIP 2.2).
    `clip_identity`: what the CLIP that the parts were trained with answers to fixed inputs; another CLIP is refused.  Parts that
    `from_pretrained` has loaded bring theirs along.
    """

    def __init__(
        self,
        clip: ImageTextEncoder,
        prior: Prior | None,
        decoder: Decoder,
        upsamplers: Sequence[Upsampler] = (),
        *,
        candidates: int | None = None,
        name: str = "",
        provenance: Mapping[str, Any] | None = None,
        clip_identity: Mapping[str, Any] | None = None,
        components: PCA | None = None,
    ):
        keep_contract(clip, ImageTextEncoder)
        if prior is not None:
            keep_contract(prior, Prior)
        self.clip, self.prior = clip, prior
        self.cascade = Cascade(decoder, upsamplers, name=name, provenance=provenance)
        self.decoder, self.upsamplers = self.cascade.decoder, self.cascade.upsamplers
        candidates = int(getattr(prior, "candidates", 2)) if candidates is None else candidates
        if candidates < 1:
            raise ValueError(f"candidates is {candidates}; at least one embedding must be drawn")
        self.candidates, self.pca = candidates, components
        self.cascade.device, self.cascade.offload = settle(self.parts)
        with warnings.catch_warnings():  # a short context cuts the fixed captions, which tells nobody anything
            warnings.simplefilter("ignore")
            own = identity(clip)
        known = [clip_identity, *(getattr(part, "clip_identity", None) for part in (prior, decoder))]
        expected = [dict(record) for record in known if record is not None]
        for record in expected:
            same_identity(record, own)
        self.clip_identity = expected[0] if expected else own

    @property
    def parts(self) -> dict[str, Any]:
        """The components by the names they are stored under."""
        return {"clip": self.clip} | ({} if self.prior is None else {"prior": self.prior}) | self.cascade.parts

    def with_prior(self, prior: Prior | str | Path, part: str = "prior", candidates: int | None = None) -> UnCLIP:
        """This pipeline with another prior, all other parts shared.

        prior: an object, or the shipped name, folder or hub id of a pipeline whose prior is taken (`part`: "prior" or
        "ar_prior"); it goes where this one is, with the candidates of its pipeline unless others are given.  ValueError: it
        was trained with another CLIP.
        """
        if isinstance(prior, (str, Path)):
            stored = checkpoint.open_pipeline(prior)
            load = store.prior_of(stored, part, prior)
            loaded: Any = self.offload.add(load) if self.offload else load().to(self.device)
            loaded.clip_identity = stored.clip_identity
            if candidates is None and part == checkpoint.PRIORS[0]:
                candidates = stored.candidates
        else:
            loaded = prior
        made = UnCLIP(
            self.clip,
            loaded,
            self.decoder,
            self.upsamplers,
            candidates=candidates,
            name=self.name,
            provenance=self.provenance,
            clip_identity=self.clip_identity,
            components=self.pca,
        )
        made.cascade.device, made.cascade.dtype = self.device, self.dtype
        return made

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None) -> UnCLIP:
        """Move all parts to a device; `dtype` is what networks compute in (autocast), weights stay float32."""
        dtype = self.dtype if dtype is None else dtype_of(dtype)
        self.cascade.device = move_parts(self.parts, self.offload, self.device if device is None else device, dtype)
        self.cascade.dtype = dtype
        return self

    @torch.no_grad()
    def generate(
        self,
        captions: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        first: int = 0,
        size: int | None = None,
        prior: Config | None = None,
        decoder: Sampling | None = None,
        upsamplers: Sequence[Sampling | None] | None = None,
        negative: str | Sequence[str] | None = None,
        guide: Guide | GuideModel | None = None,
        guide_scale: float = 1.0,
        callback: Callback | None = None,
    ) -> Generation:
        """n pictures for each caption; an empty caption gives an unconditional picture.

        size: side length in pixels, one of `sizes`; None = the largest.  Picture k of the result (caption-major) is number
        first + k of the seed: `generate(its_caption, seed=seed, first=first + k)` makes it again alone.  `prior`, `decoder`
        and `upsamplers` replace the parts' own `Sampling` (`ARSampling` for an AR prior).  negative: captions, one or one each,
        that prior and decoder are guided away from.  guide: as in `Cascade.generate`.  callback: told of every step; raising
        `Cancelled` in it ends the run.  Returns images (len(captions) * n, 3, size, size) in [-1, 1].
        """
        captions = captions_of(captions)
        n, seed, first = numbers_of(n, seed, first)
        stages, settings = self.stages(size), self.cascade.settings(decoder, upsamplers)
        if self.prior is None:
            remedy = self.provenance.get("no_prior", NO_PRIOR)
            raise ValueError(f"this pipeline has no prior, so it cannot draw pictures for captions: {remedy}")
        if isinstance(self.prior, Adjustable):  # a prior from outside may be told in its own way
            check_settings("prior", prior, type(self.prior.sampling))
        how = self.decoder.resolve(decoder)  # before anything is drawn: refuses steps that the schedule has not
        noise = Noise.of(seed, range(first, first + len(captions) * n))

        with self.cascade.autocast():
            text = self._read(captions).repeat(n)
            away = None if negative is None else negative_text(self._read, negative, len(captions), n)
            steering = self.cascade.steering(away, guide, guide_scale, callback, how.guidance)
            image_embed = self._embeddings(text, noise.at("prior"), prior, away, callback)
            size_0 = self.decoder.image_size
            x_t = noise.at("decoder").at("x_T").normal((3, size_0, size_0))
            latent = Latent(image_embed, x_t, how, tuple(text.strings), self.models())
            cond = Cond(image_embed, text)
            small = self.cascade.decode(cond, x_t, latent.t, noise.at("decoder"), how, callback, steering)
            images = self.cascade.enlarge(small, stages, noise, settings, Cond(text=text), callback)
        return Generation(
            images=images[stages[-1]],
            latent=latent,
            stages=images,
            captions=tuple(text.strings),
            seeds=tuple((seed, first + i) for i in range(len(noise))),
            model=self.name,
        )

    @torch.no_grad()
    def draw(
        self, latent: Latent, sampling: Sampling, noise: Noise, size: int | None = None, callback: Callback | None = None
    ) -> dict[int, Tensor]:
        """The pictures of latents at every size up to `size`, decoded in float32, where an inversion is exact."""
        stages = self.stages(size)
        cond = Cond(latent.image_embed, self.clip.encode_text(list(latent.captions)))
        small = self.cascade.decode(cond, latent.x_t, latent.t, noise.at("decoder"), sampling, callback)
        with self.cascade.autocast():
            settings = [None] * len(self.upsamplers)
            return self.cascade.enlarge(small, stages, noise, settings, Cond(text=cond.text), callback)

    def condition(self, image_embed: Tensor, captions: Sequence[str]) -> Cond:
        """What this decoder takes of embeddings and captions."""
        text = self.clip.encode_text(list(captions)) if "text" in self.decoder.takes else None
        return self.cascade.offer(Cond(image_embed, text), self.decoder.takes)

    invert = edits.invert
    reconstruct = edits.reconstruct
    vary = edits.vary
    interpolate = edits.interpolate
    text_diff = edits.text_diff
    reconstruct_pca = edits.reconstruct_pca

    def _read(self, captions: list[str]) -> Text:
        return move(self.clip.encode_text(captions), None, torch.float32)

    def _embeddings(
        self, text: Text, noise: Noise, sampling: Config | None, negative: Text | None, callback: Callback | None
    ) -> Tensor:
        assert self.prior is not None
        steps, total, kept = passes(self.prior, sampling), len(noise), []
        how = sampling or (self.prior.sampling if isinstance(self.prior, Adjustable) else None)
        if negative is not None and getattr(how, "guidance", None) == 1:
            warn_inert("prior")
        for rows in chunks(total, EMBEDDINGS_AT_ONCE):
            some, away = text.rows(rows), None if negative is None else negative.rows(rows)
            options = {"noise": noise[rows], "n": self.candidates, "sampling": sampling}
            drawn = run_stage(self.prior.sample, [some], options, Told(callback, "prior", steps, rows, total), away)
            check_drawn(self.prior, drawn, (len(some.strings), self.candidates, self.clip.embed_dim))
            # Without a caption there is nothing to be near to: the first draw is the unconditional one.
            nearest, blank = best_of(drawn, some.z_t), some.blank.to(drawn.device)
            kept.append(torch.where(blank[:, None], drawn[:, 0], nearest).float().cpu())
        return torch.cat(kept)

    def models(self) -> dict[str, str]:
        """What a latent belongs to, by name and by fingerprint."""
        clip = store.clip_fingerprint(self.clip, self.clip_identity)
        return {"pipeline": self.name, "clip": clip, "decoder": checkpoint.fingerprint(self.decoder)}

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | str | None = None, ar_prior: checkpoint.Part[Any] | None = None
    ) -> None:
        """Write every part and the index into a new `folder`; parameters in `dtype`, when given (float16 halves the size).

        ar_prior: a second prior beside the own one, for `from_pretrained(folder, prior="ar_prior")`.
        """
        name = self.name or Path(folder).name
        parts = self.parts if ar_prior is None else self.parts | {"ar_prior": ar_prior}

        def index(kinds: dict[str, str]) -> checkpoint.Index:
            return checkpoint.Index(name=name, candidates=self.candidates, parts=kinds, clip_identity=self.clip_identity)

        store.save(folder, parts, index, self.provenance, dtype, self.pca)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        classes: Mapping[str, type[checkpoint.Part[Any]]] | None = None,
        dtype: torch.dtype | str | None = None,
        prior: str = "prior",
        offload: bool = False,
        variant: str | None = None,
        revision: str | None = None,
    ) -> UnCLIP:
        """Load "emoji" (shipped with the package), a folder, or a Hugging Face hub id "owner/name"; also Karlo's weights.

        classes: what class names of the checkpoint mean that are not unclip's own, as {"MyPrior": MyPrior}.
        dtype: what the weights are held in, float32 when not given; half of it halves the memory.  Rounded to bfloat16 they are
        another decoder's to a latent, which only its own decoder leads back to its picture.
        prior: which of the parts draws the embeddings; "ar_prior" where there is one.
        offload: at most one part's weights are in memory, read from the files when it is used (see unclip.offload); the same
        pictures to the last bit.
        variant: which weights, where folders hold several, as "fp16" ("plain" for those that name none).  revision: of a
        repository of the hub, a branch, tag or commit; also as "owner/name@revision".
        """
        stored = checkpoint.open_pipeline(source, classes, dtype, variant, revision)
        store.refuse_kind(stored, "UnCLIP", source)
        parts = store.load(store.with_prior(stored, prior, source), offload)
        pipe = cls(
            parts["clip"],
            parts.get(prior),
            parts["decoder"],
            [part for name, part in parts.items() if name.startswith("upsampler_")],
            candidates=stored.candidates if prior == checkpoint.PRIORS[0] else None,  # which it was stored for
            name=stored.name,
            provenance=stored.provenance,
            clip_identity=stored.clip_identity,
            components=store.components_of(stored),
        )
        same_sizes(stored.parts, pipe.parts, str(source))
        for name in {prior, "decoder"} & set(parts):  # in a pipeline of other parts they still know their CLIP
            parts[name].clip_identity = pipe.clip_identity
        return pipe

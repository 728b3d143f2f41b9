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
from unclip.contracts import keep_contract
from unclip.deprecation import renamed_arguments
from unclip.editing.init_image import InitImages
from unclip.editing.latent import Latent
from unclip.editing.pca import PCA
from unclip.index import same_sizes
from unclip.progress import with_bars
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.trees import move
from unclip.types import Adjustable, Callback, Cond, Decoder, Guide, GuideModel, ImageTextEncoder, Prior, Text, Upsampler

from . import store
from .candidates import draw_embeddings
from .cascade import Cascade
from .drawing import Drawing, Ranking, draws
from .generation import Generation
from .over import OverCascade
from .stage import captions_of, check_settings, move_parts, numbers_of, settings_of, settle
from .steering import Steering, check_steering, init_rows, negative_text
from .verbs import LatentEdits

NO_PRIOR = "give one: UnCLIP(clip, prior, ...), or pipe.with_prior(...)"


class UnCLIP(OverCascade, LatentEdits):
    """A CLIP, a prior, and a cascade of decoder and upsamplers that were trained with that CLIP's embeddings.

    Components are anything that keeps the contracts of `unclip.types`; modules among them are put in evaluation mode.  Without a
    prior (None) a pipeline varies, interpolates and edits pictures, but draws none for captions.
    `candidates`: how many embeddings are drawn per picture, of which the one nearest the caption is kept; by default what the
    prior says of itself, else two (unCLIP 2.2).
    `clip_identity`: what the CLIP that the components were trained with answers to fixed inputs; another CLIP is refused.
    Components that `from_pretrained` has loaded bring theirs along.
    """

    @renamed_arguments(components="pca")
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
        pca: PCA | None = None,
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
        self.candidates, self.pca = candidates, pca
        self.cascade.device, self.cascade.offload = settle(self.components)
        with warnings.catch_warnings():  # a short context cuts the fixed captions, which tells nobody anything
            warnings.simplefilter("ignore")
            actual = identity(clip)
        known = [clip_identity, *(getattr(component, "clip_identity", None) for component in (prior, decoder))]
        expected = [dict(record) for record in known if record is not None]
        for record in expected:
            same_identity(record, actual)
        self.clip_identity = expected[0] if expected else actual

    @property
    def components(self) -> dict[str, Any]:
        """The components by the names they are stored under."""
        return {"clip": self.clip} | ({} if self.prior is None else {"prior": self.prior}) | self.cascade.components

    @renamed_arguments(part="component")
    def with_prior(self, prior: Prior | str | Path, component: str = "prior", candidates: int | None = None) -> UnCLIP:
        """This pipeline with another prior, all other components shared.

        prior: an object, or the shipped name, folder or hub id of a pipeline whose prior is taken (`component`: "prior" or
        "ar_prior"); it goes where this one is, with the candidates of its pipeline unless others are given.  ValueError: it
        was trained with another CLIP.
        """
        if isinstance(prior, (str, Path)):
            stored = checkpoint.open_pipeline(prior)
            load = store.prior_of(stored, component, prior)
            loaded: Any = self.offload.add(load) if self.offload else load().to(self.device)
            loaded.clip_identity = stored.clip_identity
            if candidates is None and component == checkpoint.PRIORS[0]:
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
            pca=self.pca,
        )
        made.cascade.device, made.cascade.dtype = self.device, self.dtype
        return made

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None) -> UnCLIP:
        """Move all components to a device; `dtype` is what networks compute in (autocast), weights stay float32."""
        dtype = self.dtype if dtype is None else dtype_of(dtype)
        self.cascade.device = move_parts(self.components, self.offload, self.device if device is None else device, dtype)
        self.cascade.dtype = dtype
        return self

    @with_bars
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
        guide_scale: float | None = None,
        init: InitImages | None = None,
        best_of: int | None = None,
        callback: Callback | None = None,
        progress: bool | None = None,
    ) -> Generation:
        """n pictures for each caption; an empty caption gives an unconditional picture.

        size: side length in pixels, one of `sizes`; None = the largest.  Picture k of the result (caption-major) is number
        first + k of the seed: `generate(its_caption, seed=seed, first=first + k)` makes it again alone.  `prior`, `decoder`
        and `upsamplers` replace the defaults, each a `Sampling` (`ARSampling` for an AR prior).  negative: captions, one or
        one each, that prior, decoder and upsamplers are guided away from.  guide: as in `Cascade.generate`.  init: pictures to
        start from or to draw around (see `img2img`, `inpaint`).  best_of: so many pictures are drawn for each caption, of
        which the n that CLIP finds nearest to it are kept, the best first.  callback: told of every step; raising `Cancelled`
        in it ends the run.  progress: bars; None = where somebody watches.  Returns images (b, 3, size, size) in [-1, 1].
        """
        captions = captions_of(captions)
        n, seed, first = numbers_of(n, seed, first)
        each, ranking = draws(n, best_of), None if best_of is None else Ranking(self.clip, captions, n)
        stages, settings = self.stages(size), settings_of(decoder, upsamplers, len(self.upsamplers))
        init = init_rows(init, len(captions), each)
        image_embed = None if init is None else init.image_embed
        if image_embed is None:
            self._need_prior()
        if isinstance(self.prior, Adjustable):  # a prior from outside may be told in its own way
            check_settings("prior", prior, type(self.prior.sampling))
        sampling = self.decoder.resolve(decoder)  # before anything is drawn: refuses steps that the schedule has not
        noise = Noise.of(seed, range(first, first + len(captions) * each))
        x_t = noise.at("decoder").at("x_T").normal((3, self.sizes[0], self.sizes[0]))

        with self.cascade.autocast():
            text = self._read(captions).repeat(each)
            away = None if negative is None else negative_text(self._read, captions_of(negative), len(captions), each)
            steering = Steering(away, guide, guide_scale, init)
            check_steering(steering, self, stages, sampling, settings, callback)
            if image_embed is None:
                image_embed = self.embed(text, noise.at("prior"), prior, away, callback)
            if init is not None:
                x_t, sampling = init.start(self.decoder, sampling, x_t)
            latent = Latent(image_embed, x_t, sampling, tuple(text.strings), self.models())
            drawing = Drawing(
                cond=Cond(image_embed, text),
                noise=noise,
                x_t=x_t,
                sampling=sampling,
                steering=steering,
                captions=latent.captions,
                seeds=tuple((seed, first + i) for i in range(len(noise))),
                latent=None if init and init.keep else latent,  # what known pixels have shaped is not of z_i and x_T alone
            )
            return self.cascade.finish(drawing, stages, settings, ranking, callback)

    @torch.no_grad()
    def draw(
        self, latent: Latent, sampling: Sampling, noise: Noise, size: int | None = None, callback: Callback | None = None
    ) -> dict[int, Tensor]:
        """The pictures of latents at every size up to `size`, decoded in float32, where an inversion is exact."""
        stages = self.stages(size)
        cond = Cond(latent.image_embed, self.clip.encode_text(list(latent.captions)))
        drawing = Drawing(cond, noise, latent.x_t, sampling)
        small = self.cascade.decode(drawing, callback)
        with self.cascade.autocast():
            return self.cascade.enlarge(small, drawing, stages, [None] * len(self.upsamplers), callback)

    def embed(
        self,
        text: Text,
        noise: Noise,
        sampling: Config | None = None,
        negative: Text | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """The prior's image embeddings (b, d) of captions, on the CPU: of the candidates drawn for each the nearest to it."""
        prior, width = self._need_prior(), self.clip.embed_dim
        return draw_embeddings(prior, text, self.candidates, width, noise, sampling, negative, callback)

    def _need_prior(self) -> Prior:
        if self.prior is None:
            remedy = self.provenance.get("no_prior", NO_PRIOR)
            raise ValueError(f"this pipeline has no prior, so it cannot draw pictures for captions: {remedy}")
        return self.prior

    def condition(self, image_embed: Tensor, captions: Sequence[str]) -> Cond:
        """What this decoder takes of embeddings and captions."""
        text = self.clip.encode_text(list(captions)) if "text" in self.decoder.takes else None
        return self.cascade.offer(Cond(image_embed, text), self.decoder.takes)

    def _read(self, captions: list[str]) -> Text:
        return move(self.clip.encode_text(captions), None, torch.float32)

    def models(self) -> dict[str, str]:
        """What a latent belongs to, by name and by fingerprint."""
        clip = store.clip_fingerprint(self.clip, self.clip_identity)
        return {"pipeline": self.name, "clip": clip, "decoder": checkpoint.fingerprint(self.decoder)}

    def save_pretrained(
        self,
        folder: str | Path,
        dtype: torch.dtype | str | None = None,
        ar_prior: checkpoint.Component[Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write every component and the index into a new `folder`; parameters in `dtype`, when given (float16 halves the size).

        ar_prior: a second prior beside the own one, for `from_pretrained(folder, prior="ar_prior")`.  overwrite: a pipeline that
        is there already is replaced.
        """
        name = self.name or Path(folder).name
        components = self.components if ar_prior is None else self.components | {"ar_prior": ar_prior}

        def index(kinds: dict[str, str]) -> checkpoint.Index:
            return checkpoint.Index(name=name, candidates=self.candidates, components=kinds, clip_identity=self.clip_identity)

        store.save(folder, components, index, self.provenance, dtype, self.pca, overwrite)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        classes: Mapping[str, type[checkpoint.Component[Any]]] | None = None,
        dtype: torch.dtype | str | None = None,
        prior: str = "prior",
        offload: bool = False,
        variant: str | None = None,
        revision: str | None = None,
        progress: bool | None = None,
    ) -> UnCLIP:
        """Load "emoji" (shipped with the package), a folder, or a Hugging Face hub id "owner/name"; also Karlo's weights.

        classes: what class names of the checkpoint mean that are not unclip's own, as {"MyPrior": MyPrior}.
        dtype: what the weights are held in, float32 when not given; half of it halves the memory.  Rounded to bfloat16 they are
        another decoder's to a latent, which only its own decoder leads back to its picture.
        prior: which of the components draws the embeddings; "ar_prior" where there is one.
        offload: at most one component's weights are in memory, read from the files when it is used (see unclip.offload); the same
        pictures to the last bit.
        variant: which weights, where folders hold several, as "fp16" ("plain" for those that name none).  revision: of a
        repository of the hub, a branch, tag or commit; also as "owner/name@revision".  progress: a bar while weights are read;
        None = where somebody watches.
        """
        stored = checkpoint.open_pipeline(source, classes, dtype, variant, revision)
        store.refuse_kind(stored, "UnCLIP", source)
        components = store.load(stored, store.with_prior(stored, prior, source), offload, progress)
        pipe = cls(
            components["clip"],
            components.get(prior),
            components["decoder"],
            [component for name, component in components.items() if name.startswith("upsampler_")],
            candidates=stored.candidates if prior == checkpoint.PRIORS[0] else None,  # which it was stored for
            name=stored.name,
            provenance=stored.provenance,
            clip_identity=stored.clip_identity,
            pca=store.pca_of(stored),
        )
        same_sizes(stored.components, pipe.components, str(source))
        for name in {prior, "decoder"} & set(components):  # in a pipeline of other components they still know their CLIP
            components[name].clip_identity = pipe.clip_identity
        return pipe

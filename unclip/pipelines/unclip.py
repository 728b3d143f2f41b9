"""text -> embedding -> image -> upsample: P(x | y) = P(x | z_i, y) P(z_i | y) (unCLIP, section 2)."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unclip import checkpoint
from unclip.clip.identity import identity, same_identity
from unclip.config import Config
from unclip.editing import edits as manipulate
from unclip.editing import pca
from unclip.editing.latent import Latent
from unclip.files import write_folder
from unclip.offload import Offload
from unclip.randomness import Noise
from unclip.types import (
    Cond,
    Decoder,
    ImageTextEncoder,
    Prior,
    Sampling,
    Text,
    Upsampler,
    best_of,
    keep_contract,
    move,
    whole_number,
)

from .generation import Generation

Progress = Callable[[str, int, int], None]  # (stage, pictures done, pictures in all)
PIXELS_AT_ONCE = 512 * 512  # pictures go through a stage in chunks of about this size, which bounds memory
EMBEDDINGS_AT_ONCE = 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class UnCLIP:
    """A CLIP, a prior, a decoder and upsamplers that were trained with that CLIP's embeddings.

    Parts are anything that keeps the contracts of `unclip.types`; modules among them are put in evaluation mode.
    `candidates`: how many embeddings are drawn per picture, of which the one nearest the caption is kept; by default what the
    prior says of itself, else two (unCLIP 2.2).
    `clip_identity`: what the CLIP that the parts were trained with answers to fixed inputs; another CLIP is refused.  Parts that
    `from_pretrained` has loaded bring theirs along.
    """

    def __init__(
        self,
        clip: ImageTextEncoder,
        prior: Prior,
        decoder: Decoder,
        upsamplers: Sequence[Upsampler] = (),
        *,
        candidates: int | None = None,
        name: str = "",
        provenance: Mapping[str, Any] | None = None,
        clip_identity: Mapping[str, Any] | None = None,
        components: pca.PCA | None = None,
    ):
        self.clip, self.prior, self.decoder, self.upsamplers = clip, prior, decoder, tuple(upsamplers)
        keep_contract(clip, ImageTextEncoder)
        keep_contract(prior, Prior)
        keep_contract(decoder, Decoder)
        for upsampler in self.upsamplers:
            keep_contract(upsampler, Upsampler)
            if upsampler.scale < 2:
                raise ValueError(f"an upsampler multiplies the resolution by 2 or more; this one's scale is {upsampler.scale}")
        candidates = int(getattr(prior, "candidates", 2)) if candidates is None else candidates
        if candidates < 1:
            raise ValueError(f"candidates is {candidates}; at least one embedding must be drawn")
        modules = [part for part in self.parts.values() if isinstance(part, nn.Module)]
        for module in modules:
            module.eval()
        for part in (decoder, *self.upsamplers):
            if isinstance(part, checkpoint.Part):  # convolutions read their weights faster so
                part.to(memory_format=torch.channels_last)
        self.offload: Offload | None = next((found for m in modules if (found := getattr(m, "offload", None))), None)
        places = [getattr(module, "offload", None) or next(module.parameters(), None) for module in modules]
        self.device = next((place.device for place in places if place is not None), torch.device("cpu"))
        self.dtype = torch.float32
        self.candidates, self.name, self.provenance = candidates, name, dict(provenance or {})
        self.pca = components
        with warnings.catch_warnings():  # a short context cuts the fixed captions, which tells nobody anything
            warnings.simplefilter("ignore")
            own = identity(clip)
        known = [clip_identity, *(getattr(part, "clip_identity", None) for part in (prior, decoder))]
        expected = [dict(record) for record in known if record is not None]
        for record in expected:
            same_identity(record, own)
        self.clip_identity = expected[0] if expected else own

    @property
    def sizes(self) -> tuple[int, ...]:
        """Side lengths of the pictures that the stages make, in pixels."""
        sizes = [self.decoder.image_size]
        for upsampler in self.upsamplers:
            sizes.append(sizes[-1] * upsampler.scale)
        return tuple(sizes)

    @property
    def parts(self) -> dict[str, Any]:
        """The parts by the names they are stored under."""
        parts: dict[str, Any] = {"clip": self.clip, "prior": self.prior, "decoder": self.decoder}
        return parts | {f"upsampler_{size}": u for size, u in zip(self.sizes[1:], self.upsamplers)}

    def with_prior(self, prior: Prior | str | Path, part: str = "prior", candidates: int | None = None) -> UnCLIP:
        """This pipeline with another prior, all other parts shared.

        prior: an object, or the shipped name, folder or hub id of a pipeline whose prior is taken (`part`: "prior" or
        "ar_prior"); it goes where this one is, with the candidates of its pipeline unless others are given.  ValueError: it
        was trained with another CLIP.
        """
        if isinstance(prior, (str, Path)):
            stored = checkpoint.open_pipeline(prior)
            load = _prior_of(stored, part, prior)
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
        made.device, made.dtype = self.device, self.dtype
        return made

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> UnCLIP:
        """Move all parts to a device; `dtype` is what networks compute in (autocast), weights stay float32."""
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"networks compute in {', '.join(map(str, DTYPES))}, not in {dtype}")
        target, dtype = torch.device(device or self.device), dtype or self.dtype
        if dtype == torch.float16 and target.type == "cpu":
            raise ValueError("a CPU computes float16 a hundred times slower than float32: use bfloat16 or float32")
        if self.offload is not None and target != self.offload.device:
            self.offload.to(target)
        for part in self.parts.values():
            if isinstance(part, nn.Module) and getattr(part, "offload", None) is None:
                part.to(target)
        self.device, self.dtype = target, dtype
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
        progress: Progress | None = None,
    ) -> Generation:
        """n pictures for each caption; an empty caption gives an unconditional picture.

        size: side length in pixels, one of `sizes`; None = the largest.  Picture k of the result (caption-major) is number
        first + k of the seed: `generate(its_caption, seed=seed, first=first + k)` makes it again alone.  `prior`, `decoder`
        and `upsamplers` replace the parts' own `Sampling` (`ARSampling` for an AR prior).  Returns images
        (len(captions) * n, 3, size, size) in [-1, 1].
        """
        captions = _checked([captions] if isinstance(captions, str) else list(captions))
        stages, seed = self.stages(size), whole_number("seed", seed)
        settings = self._settings(prior, decoder, upsamplers)
        if not captions or n < 1 or first < 0:
            raise ValueError(f"{len(captions)} captions, n={n}, first={first}: need a caption, n >= 1 and first >= 0")
        how = self.decoder.resolve(decoder)  # before anything is drawn: refuses steps that the schedule has not
        noise = Noise.of(seed, range(first, first + len(captions) * n))
        report = progress or (lambda stage, done, total: None)

        with self._autocast():
            text = move(self.clip.encode_text(captions), None, torch.float32).repeat(n)
            image_embed = self._embeddings(text, noise.at("prior"), prior, report)
            size_0 = self.decoder.image_size
            x_t = noise.at("decoder").at("x_T").normal((3, size_0, size_0))
            latent = Latent(image_embed, x_t, how, tuple(text.strings), self.models())
            small = self._decode(latent, text, noise.at("decoder"), how, report)
            images = self._enlarge(small, stages, noise, settings, report)
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
        self, latent: Latent, sampling: Sampling, noise: Noise, size: int | None = None, progress: Progress | None = None
    ) -> dict[int, Tensor]:
        """The pictures of latents at every size up to `size`, decoded in float32, where an inversion is exact."""
        stages = self.stages(size)
        report = progress or (lambda stage, done, total: None)
        text = self.clip.encode_text(list(latent.captions))
        small = self._decode(latent, text, noise.at("decoder"), sampling, report)
        with self._autocast():
            return self._enlarge(small, stages, noise, [None] * len(self.upsamplers), report)

    def condition(self, image_embed: Tensor, captions: Sequence[str]) -> Cond:
        """What this decoder takes of embeddings and captions."""
        text = self.clip.encode_text(list(captions)) if "text" in self.decoder.takes else None
        return self._offer(image_embed.to(self.device), text)

    def _offer(self, image_embed: Tensor, text: Text | None) -> Cond:
        offered = Cond(image_embed, text)
        return Cond(**{name: getattr(offered, name) for name in self.decoder.takes})

    def _settings(self, prior: Any, decoder: Any, upsamplers: Any) -> list[Sampling | None]:
        """The upsamplers' settings, one each; ValueError for settings of a wrong kind."""
        settings = [None] * len(self.upsamplers) if upsamplers is None else upsamplers
        if not isinstance(settings, Sequence) or len(settings) != len(self.upsamplers):
            told = f"{len(settings)} settings" if isinstance(settings, Sequence) else repr(settings)
            raise ValueError(f"{told} for {len(self.upsamplers)} upsamplers; give a list, one each (None = its own)")
        asked: list[tuple[str, Any, type]] = [("decoder", decoder, Sampling), *(("upsamplers", s, Sampling) for s in settings)]
        own = getattr(getattr(self.prior, "config", None), "sampling", None)
        if own is not None:  # a prior from outside may be told in its own way
            asked.append(("prior", prior, type(own)))
        for name, given, kind in asked:
            if not isinstance(given, (kind, Sampling, type(None))):
                raise ValueError(f"{name}: {given!r} is no {kind.__name__}, which tells how this part samples (None = its own)")
        return list(settings)

    invert = manipulate.invert
    reconstruct = manipulate.reconstruct
    vary = manipulate.vary
    interpolate = manipulate.interpolate
    text_diff = manipulate.text_diff
    reconstruct_pca = manipulate.reconstruct_pca

    def _embeddings(self, text: Text, noise: Noise, sampling: Config | None, report: Progress) -> Tensor:
        kept = []
        for rows in _chunks(len(noise), EMBEDDINGS_AT_ONCE):
            some = text.rows(rows)
            drawn = self.prior.sample(some, noise=noise[rows], n=self.candidates, sampling=sampling)
            self._check_drawn(drawn, len(some.strings))
            # Without a caption there is nothing to be near to: the first draw is the unconditional one.
            nearest, blank = best_of(drawn, some.z_t), some.blank.to(drawn.device)
            kept.append(torch.where(blank[:, None], drawn[:, 0], nearest).float().cpu())
            report("prior", rows.stop, len(noise))
        return torch.cat(kept)

    def _check_drawn(self, drawn: Any, count: int) -> None:
        """ValueError, where the prior is known, rather than a grey picture or a decoder that speaks of another CLIP."""
        expected = (count, self.candidates, self.clip.embed_dim)
        if not isinstance(drawn, Tensor):
            wrong = f"of type {type(drawn).__name__}"
        elif drawn.shape != expected:
            wrong = f"of shape {tuple(drawn.shape)}"
        else:
            broken = int((~drawn.isfinite()).sum())
            wrong = f"of which {broken} numbers are NaN or infinite" if broken else ""
        if wrong:
            name = type(self.prior).__name__
            raise ValueError(f"{name}.sample drew embeddings {wrong}; expected (captions, n, d) = {expected}, all finite")

    def _decode(self, latent: Latent, text: Text, noise: Noise, sampling: Sampling | None, report: Progress) -> Tensor:
        pictures = []
        for rows in self.chunks(len(latent), self.decoder.image_size):
            embed, x_t = (x[rows].to(self.device) for x in (latent.image_embed, latent.x_t))
            cond = self._offer(embed, text.rows(rows))
            x = self.decoder.sample(cond, noise=noise[rows], x_t=x_t, t=latent.t, sampling=sampling)
            pictures.append(x.float().cpu())
            report("decoder", rows.stop, len(latent))
        return torch.cat(pictures)

    def _enlarge(
        self,
        small: Tensor,
        stages: Sequence[int],
        noise: Noise,
        settings: Sequence[Sampling | None],
        report: Progress,
    ) -> dict[int, Tensor]:
        images = {stages[0]: small}
        for low, high, upsampler, sampling in zip(stages, stages[1:], self.upsamplers, settings):
            images[high] = self._upsample(upsampler, images[low], high, noise.at(f"upsampler_{high}"), sampling, report)
        return images

    def _upsample(
        self, upsampler: Upsampler, low: Tensor, size: int, noise: Noise, sampling: Sampling | None, report: Progress
    ) -> Tensor:
        pictures = []
        for rows in self.chunks(len(low), size):
            x = upsampler.sample(low[rows].to(self.device), noise=noise[rows], sampling=sampling)
            pictures.append(x.float().cpu())
            report(f"upsampler_{size}", rows.stop, len(low))
        return torch.cat(pictures)

    @staticmethod
    def chunks(count: int, size: int) -> Iterator[slice]:
        """Rows that go through a stage together, for pictures of `size` pixels a side."""
        return _chunks(count, max(1, PIXELS_AT_ONCE // size**2))

    def stages(self, size: int | None = None) -> tuple[int, ...]:
        """The sizes made on the way to `size`, which must be one of `sizes`; None = the largest."""
        if size is None:
            return self.sizes
        if size not in self.sizes:
            raise ValueError(f"size is {size!r}; this pipeline makes pictures of {', '.join(map(str, self.sizes))} pixels")
        return self.sizes[: self.sizes.index(size) + 1]

    def models(self) -> dict[str, str]:
        """What a latent belongs to, by name and by fingerprint."""
        return {"pipeline": self.name, "clip": self._clip_name(), "decoder": checkpoint.fingerprint(self.decoder)}

    def _clip_name(self) -> str:
        if isinstance(self.clip, nn.Module):  # by its weights: answers differ in the last digits from machine to machine
            return checkpoint.fingerprint(self.clip)
        return hashlib.blake2b(json.dumps(self.clip_identity, sort_keys=True).encode(), digest_size=8).hexdigest()

    def _autocast(self) -> Any:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None, ar_prior: checkpoint.Part[Any] | None = None
    ) -> None:
        """Write every part and the index into a new `folder`; parameters in `dtype`, when given (float16 halves the size).

        ar_prior: a second prior beside the own one, for `from_pretrained(folder, prior="ar_prior")`.
        """
        parts = self.parts if ar_prior is None else self.parts | {"ar_prior": ar_prior}

        def write(aside: Path) -> None:
            for name, part in parts.items():
                if not isinstance(part, checkpoint.Part):
                    raise ValueError(f"the {name}, a {type(part).__name__}, cannot be saved: it is no unclip.checkpoint.Part")
                part.write(aside / name, dtype)
            index = checkpoint.Index(
                name=self.name or Path(folder).name,
                candidates=self.candidates,
                parts={name: type(part).__name__ for name, part in parts.items()},
                clip_identity=self.clip_identity,
            )
            (aside / checkpoint.INDEX).write_text(index.to_json())
            if self.pca is not None:
                self.pca.save(aside / pca.FILE)
            (aside / checkpoint.PROVENANCE).write_text(json.dumps(self.provenance, indent=2) + "\n")

        write_folder(folder, write)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        classes: Mapping[str, type[checkpoint.Part[Any]]] | None = None,
        dtype: torch.dtype | None = None,
        prior: str = "prior",
        offload: bool = False,
    ) -> UnCLIP:
        """Load "emoji" (shipped with the package), a folder, or a Hugging Face hub id "owner/name"; also Karlo's weights.

        classes: what class names of the checkpoint mean that are not unclip's own, as {"MyPrior": MyPrior}.
        dtype: what the weights are held in, float32 when not given; half of it halves the memory.  Rounded to bfloat16 they are
        another decoder's to a latent, which only its own decoder leads back to its picture.
        prior: which of the parts draws the embeddings; "ar_prior" where there is one.
        offload: at most one part's weights are in memory, read from the files when it is used (see unclip.offload); the same
        pictures to the last bit.
        """
        stored = checkpoint.open_pipeline(source, classes, dtype)
        loads = {prior: _prior_of(stored, prior, source)}
        loads |= {name: load for name, load in stored.parts.items() if name not in (*checkpoint.PRIORS, "clip")}
        loads["clip"] = stored.parts["clip"]  # last, because it is asked at once which one it is
        keeper = Offload() if offload else None
        parts: dict[str, Any] = {name: keeper.add(load) if keeper else load() for name, load in loads.items()}
        pipe = cls(
            parts["clip"],
            parts[prior],
            parts["decoder"],
            [part for name, part in parts.items() if name.startswith("upsampler_")],
            candidates=stored.candidates if prior == checkpoint.PRIORS[0] else None,  # which it was stored for
            name=stored.name,
            provenance=stored.provenance,
            clip_identity=stored.clip_identity,
            components=pca.PCA.load(stored.folder / pca.FILE) if (stored.folder / pca.FILE).exists() else None,
        )
        for name in (prior, "decoder"):  # in a pipeline of other parts they still know their CLIP
            parts[name].clip_identity = pipe.clip_identity
        return pipe


def _prior_of(stored: checkpoint.Stored, part: str, source: str | Path) -> Callable[[], checkpoint.Part[Any]]:
    priors = [name for name in checkpoint.PRIORS if name in stored.parts]
    if part not in priors:
        raise ValueError(f"{source} has no part {part!r}; its priors: {', '.join(priors)}")
    return stored.parts[part]


def _checked(captions: list[str]) -> list[str]:
    for caption in captions:
        try:
            caption.encode()
        except (AttributeError, UnicodeEncodeError):  # half of a surrogate pair, or bytes of another encoding
            raise ValueError(f"a caption is text, not {caption!r}") from None
    return captions


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))

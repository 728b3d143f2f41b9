"""text -> embedding -> image -> upsample: P(x | y) = P(x | z_i, y) P(z_i | y) (unCLIP, section 2)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unclip import checkpoint
from unclip.clip.identity import identity, same_identity
from unclip.randomness import Noise
from unclip.results import Generation, Latent
from unclip.types import Cond, Decoder, ImageTextEncoder, Prior, Sampling, Text, Upsampler, best_of

Progress = Callable[[str, int, int], None]  # (stage, pictures done, pictures in all)
PIXELS_AT_ONCE = 512 * 512  # pictures go through a stage in chunks of about this size, which bounds memory


class UnCLIP:
    """A CLIP, a prior, a decoder and upsamplers that were trained with that CLIP's embeddings.

    Parts are anything that keeps the contracts of `unclip.types`.  `candidates`: how many embeddings are drawn per picture, of
    which the one nearest the caption is kept (unCLIP 2.2: two).  `clip_identity`: what the parts' own CLIP answers to fixed
    inputs; another CLIP is refused.
    """

    def __init__(
        self,
        clip: ImageTextEncoder,
        prior: Prior,
        decoder: Decoder,
        upsamplers: Sequence[Upsampler] = (),
        *,
        candidates: int = 2,
        name: str = "",
        provenance: Mapping[str, Any] | None = None,
        clip_identity: Mapping[str, Any] | None = None,
    ):
        kept = [(clip, ImageTextEncoder), (prior, Prior), (decoder, Decoder), *((u, Upsampler) for u in upsamplers)]
        for part, contract in kept:
            if not isinstance(part, contract):
                raise ValueError(f"{type(part).__name__} does not keep the contract {contract.__name__} of unclip.types")
        if candidates < 1:
            raise ValueError(f"candidates is {candidates}; at least one embedding must be drawn")
        self.clip, self.prior, self.decoder, self.upsamplers = clip, prior, decoder, tuple(upsamplers)
        self.candidates, self.name, self.provenance = candidates, name, dict(provenance or {})
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.clip_identity = dict(clip_identity) if clip_identity is not None else identity(clip)
        if clip_identity is not None:
            same_identity(clip_identity, identity(clip))

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
        parts = {"clip": self.clip, "prior": self.prior, "decoder": self.decoder}
        return parts | {f"upsampler_{size}": u for size, u in zip(self.sizes[1:], self.upsamplers)}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> UnCLIP:
        """Move all parts to a device; `dtype` is what networks compute in (autocast), weights stay float32."""
        if device is not None:
            self.device = torch.device(device)
            for part in self.parts.values():
                if isinstance(part, nn.Module):
                    part.to(self.device)
        self.dtype = dtype or self.dtype
        return self

    @torch.no_grad()
    def generate(
        self,
        captions: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        first: int = 0,
        size: int | None = None,
        prior: Sampling | None = None,
        decoder: Sampling | None = None,
        upsamplers: Sequence[Sampling | None] | None = None,
        progress: Progress | None = None,
    ) -> Generation:
        """n pictures for each caption; an empty caption gives an unconditional picture.

        size: side length in pixels, one of `sizes`; None = the largest.  Picture k of the result (caption-major) is number
        first + k of the seed: `generate(its_caption, seed=seed, first=first + k)` makes it again alone.  `prior`, `decoder`
        and `upsamplers` replace the parts' own `Sampling`.  Returns images (len(captions) * n, 3, size, size) in [-1, 1].
        """
        captions = [captions] if isinstance(captions, str) else list(captions)
        stages = self._stages(size)
        settings = list(upsamplers) if upsamplers is not None else [None] * len(self.upsamplers)
        if not captions or n < 1 or first < 0:
            raise ValueError(f"{len(captions)} captions, n={n}, first={first}: need a caption, n >= 1 and first >= 0")
        if len(settings) != len(self.upsamplers):
            raise ValueError(f"{len(settings)} settings for {len(self.upsamplers)} upsamplers; give one each (None = its own)")
        noise = Noise.of(seed, range(first, first + len(captions) * n))
        report = progress or (lambda stage, done, total: None)

        with self._autocast():
            text = self.clip.encode_text(captions).repeat(n)
            embeds = []
            for rows in _chunks(len(noise), 64):
                drawn = self.prior.sample(
                    text.rows(rows), noise=noise.at("prior")[rows], n=self.candidates, sampling=prior
                )
                embeds.append(best_of(drawn, text.embed[rows]))
                report("prior", rows.stop, len(noise))
            image_embed = torch.cat(embeds)
            latent = self._latent(image_embed, text, noise.at("decoder"), decoder)
            images = {stages[0]: self._decode(latent, text, noise.at("decoder"), decoder, report)}
            for low, high, upsampler, sampling in zip(stages, stages[1:], self.upsamplers, settings):
                images[high] = self._upsample(upsampler, images[low], high, noise.at(f"upsampler_{high}"), sampling, report)
        return Generation(
            images=images[stages[-1]],
            latent=latent,
            stages=images,
            captions=tuple(text.strings),
            seeds=tuple((seed, first + i) for i in range(len(noise))),
            model=self.name,
        )

    def _decode(self, latent: Latent, text: Text, noise: Noise, sampling: Sampling | None, report: Progress) -> Tensor:
        pictures = []
        for rows in _chunks(len(latent), max(1, PIXELS_AT_ONCE // self.decoder.image_size**2)):
            cond = Cond(latent.image_embed[rows], text.rows(rows) if "text" in self.decoder.takes else None)
            x = self.decoder.sample(cond, noise=noise[rows], x_t=latent.x_t[rows], t=latent.t, sampling=sampling)
            pictures.append(x.float().cpu())
            report("decoder", rows.stop, len(latent))
        return torch.cat(pictures)

    def _upsample(
        self, upsampler: Upsampler, low: Tensor, size: int, noise: Noise, sampling: Sampling | None, report: Progress
    ) -> Tensor:
        pictures = []
        for rows in _chunks(len(low), max(1, PIXELS_AT_ONCE // size**2)):
            x = upsampler.sample(low[rows].to(self.device), noise=noise[rows], sampling=sampling)
            pictures.append(x.float().cpu())
            report(f"upsampler_{size}", rows.stop, len(low))
        return torch.cat(pictures)

    def _latent(self, image_embed: Tensor, text: Text, noise: Noise, sampling: Sampling | None) -> Latent:
        """The latent pair before the picture is drawn: x_T is the noise that the decoder starts from."""
        timesteps = self.decoder.timesteps(sampling)
        x_t = noise.at("x_T").normal((3, self.decoder.image_size, self.decoder.image_size))
        return Latent(image_embed.float().cpu(), x_t, timesteps[0], timesteps, tuple(text.strings), {"pipeline": self.name})

    def _stages(self, size: int | None) -> tuple[int, ...]:
        size = size or self.sizes[-1]
        if size not in self.sizes:
            raise ValueError(f"size is {size}; this pipeline makes pictures of {', '.join(map(str, self.sizes))} pixels")
        return self.sizes[: self.sizes.index(size) + 1]

    def _autocast(self) -> Any:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write every part and the index into a new `folder`; parameters in `dtype`, when given (float16 halves the size)."""

        def write(aside: Path) -> None:
            for name, part in self.parts.items():
                if not isinstance(part, checkpoint.Part):
                    raise ValueError(f"the {name}, a {type(part).__name__}, cannot be saved: it is no unclip.checkpoint.Part")
                part.write(aside / name, dtype)
            index = checkpoint.Index(
                name=self.name or Path(folder).name,
                candidates=self.candidates,
                parts={name: type(part).__name__ for name, part in self.parts.items()},
                clip_identity=self.clip_identity,
            )
            (aside / checkpoint.INDEX).write_text(index.to_json())
            (aside / checkpoint.PROVENANCE).write_text(json.dumps(self.provenance, indent=2) + "\n")

        checkpoint.write_folder(folder, write)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> UnCLIP:
        """Load "emoji" (shipped with the package), a folder, or a Hugging Face hub id "owner/name"."""
        folder = checkpoint.find(source)
        index = checkpoint.Index.load(folder / checkpoint.INDEX)
        parts = {name: checkpoint.load_part(folder / name, kind) for name, kind in index.parts.items()}
        missing = [name for name in ("clip", "prior", "decoder") if name not in parts]
        if missing:
            raise ValueError(f"{folder / checkpoint.INDEX} names no {', '.join(missing)}")
        clip, prior, decoder = (parts.pop(name) for name in ("clip", "prior", "decoder"))
        about = folder / checkpoint.PROVENANCE
        return cls(
            clip,  # type: ignore[arg-type]
            prior,  # type: ignore[arg-type]
            decoder,  # type: ignore[arg-type]
            list(parts.values()),  # type: ignore[arg-type]
            candidates=index.candidates,
            name=index.name,
            provenance=json.loads(about.read_text()) if about.is_file() else None,
            clip_identity=index.clip_identity,
        )


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))

"""A decoder and upsamplers: pictures for captions, labels or embeddings, brought from size to size (GLIDE, ADM, cascades)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unclip import checkpoint
from unclip.checks import dtype_of
from unclip.contracts import keep_contract
from unclip.index import same_sizes
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.trees import move
from unclip.types import Callback, Cond, Decoder, Guide, GuideModel, Text, Upsampler

from . import store
from .generation import Generation
from .stage import (
    UNSTEERED,
    FormerNames,
    Progress,
    Steering,
    captions_of,
    check_callables,
    check_settings,
    check_way_in,
    chunks,
    cond_rows,
    labels_of,
    move_parts,
    names_of,
    negative_text,
    numbers_of,
    passes,
    run_stage,
    settle,
    takes_of,
    warn_inert,
)

PIXELS_AT_ONCE = 512 * 512  # pictures go through a stage in chunks of about this size, which bounds memory


class Cascade(FormerNames):
    """P(x | y): a decoder, then upsamplers, each `scale` times larger.  Components are anything that keeps the contracts.

    guide: a model whose gradient steers the decoder, at its low resolution; it sees the conditions (`GuideModel`).
    """

    def __init__(
        self,
        decoder: Decoder,
        upsamplers: Sequence[Upsampler] = (),
        *,
        guide: GuideModel | None = None,
        name: str = "",
        provenance: Mapping[str, Any] | None = None,
    ):
        self.decoder, self.upsamplers, self.guide = decoder, tuple(upsamplers), guide
        keep_contract(decoder, Decoder)
        for upsampler in self.upsamplers:
            keep_contract(upsampler, Upsampler)
            if upsampler.scale < 2:
                raise ValueError(f"an upsampler multiplies the resolution by 2 or more; this one's scale is {upsampler.scale}")
        if guide is not None:
            keep_contract(guide, GuideModel)
        self.name, self.provenance = name, dict(provenance or {})
        for component in (decoder, *self.upsamplers):
            if isinstance(component, checkpoint.Component):  # convolutions read their weights faster so
                component.to(memory_format=torch.channels_last)
        self.device, self.offload = settle(self.components)
        self.dtype = torch.float32

    @property
    def sizes(self) -> tuple[int, ...]:
        """Side lengths of the pictures that the stages make, in pixels."""
        sizes = [self.decoder.image_size]
        for upsampler in self.upsamplers:
            sizes.append(sizes[-1] * upsampler.scale)
        return tuple(sizes)

    @property
    def components(self) -> dict[str, Any]:
        """The components by the names they are stored under."""
        components: dict[str, Any] = {"decoder": self.decoder}
        components |= {f"upsampler_{size}": u for size, u in zip(self.sizes[1:], self.upsamplers)}
        return components if self.guide is None else components | {"guide": self.guide}

    def stages(self, size: int | None = None) -> tuple[int, ...]:
        """The sizes made on the way to `size`, which must be one of `sizes`; None = the largest."""
        if size is None:
            return self.sizes
        if isinstance(size, bool) or size not in self.sizes:
            raise ValueError(f"size is {size!r}; this pipeline makes pictures of {', '.join(map(str, self.sizes))} pixels")
        return self.sizes[: self.sizes.index(size) + 1]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None) -> Cascade:
        """Move all components to a device; `dtype` is what networks compute in (autocast), weights stay float32."""
        dtype = self.dtype if dtype is None else dtype_of(dtype)
        self.device, self.dtype = (
            move_parts(self.components, self.offload, self.device if device is None else device, dtype),
            dtype,
        )
        return self

    @torch.no_grad()
    def generate(
        self,
        captions: str | Sequence[str] | None = None,
        labels: int | str | Sequence[int | str] | Tensor | None = None,
        n: int = 1,
        seed: int = 0,
        first: int = 0,
        size: int | None = None,
        decoder: Sampling | None = None,
        upsamplers: Sequence[Sampling | None] | None = None,
        negative: str | Sequence[str] | None = None,
        guide: Guide | GuideModel | None = None,
        guide_scale: float = 1.0,
        callback: Callback | None = None,
    ) -> Generation:
        """n pictures for each caption or label, or for both where the decoder takes both; for neither, unconditional ones.

        size: side length in pixels, one of `sizes`; None = the largest.  Picture k of the result (caption-major) is number
        first + k of the seed.  labels: class numbers, or names where the decoder has them.  negative: captions, one or one
        each, that guidance leads away from.  guide: a log probability (x_t, t) -> (b), or a model that gives one for the
        conditions, of which it may know more than the decoder; its gradient times `guide_scale` steers the decoder (ADM 4.1).
        callback: told of every step; raising `Cancelled` in it ends the run.  Returns images (b, 3, size, size) in [-1, 1].
        """
        strings = None if captions is None else captions_of(captions)
        guide = self.guide if guide is None else guide
        names = names_of(self.decoder, guide)
        numbers = None if labels is None else labels_of(labels, names)
        counts = {len(values) for values in (strings, numbers) if values is not None} or {1}
        if len(counts) > 1:
            raise ValueError(
                f"{len(strings or [])} captions came with {len(numbers or [])} labels: give one label for each caption"
            )
        (count,) = counts
        stages, (n, seed, first) = self.stages(size), numbers_of(n, seed, first)
        for name, values in (("text", strings), ("label", numbers)):
            if values is not None and name not in self.decoder.takes and not isinstance(guide, GuideModel):
                takes = ", ".join(self.decoder.takes) or "nothing"
                refused = f"this decoder is not conditioned on {name!r}; it takes {takes}"
                raise ValueError(f"{refused}, and no guide model is there that could take it")
        settings = self.settings(decoder, upsamplers)
        sampling = self.decoder.resolve(decoder)  # before anything is drawn: refuses steps that the schedule has not
        noise = Noise.of(seed, range(first, first + count * n))
        text = None if strings is None else Text.of(strings).repeat(n)
        cond = Cond(text=text, label=None if numbers is None else torch.tensor(numbers).repeat_interleave(n))
        away = None if negative is None else negative_text(Text.of, negative, count, n)
        if away is not None and "text" not in self.decoder.takes:
            raise ValueError("negative is given, but this decoder reads no captions: there is nothing to lead away from")
        steering = self.steering(away, guide, guide_scale, callback, sampling.guidance)
        x_t = noise.at("decoder").at("x_T").normal((3, self.sizes[0], self.sizes[0]))
        with self.autocast():
            small = self.decode(cond, x_t, None, noise.at("decoder"), sampling, callback, steering)
            images = self.enlarge(small, stages, noise, settings, cond, callback)
        titles = strings or [names[k] if 0 <= k < len(names) else f"label {k}" for k in numbers or ()] or [""]
        return Generation(
            images=images[stages[-1]],
            latent=None,
            stages=images,
            captions=tuple(caption for caption in titles for _ in range(n)),
            seeds=tuple((seed, first + i) for i in range(len(noise))),
            model=self.name,
        )

    def decode(
        self,
        cond: Cond,
        x_t: Tensor,
        t: int | None,
        noise: Noise,
        sampling: Sampling | None,
        callback: Callback | None = None,
        steering: Steering = UNSTEERED,
    ) -> Tensor:
        """The decoder's pictures (b, 3, h, w) on the CPU, in chunks; x_t (b, 3, h, w) lives at t, None = where noise is pure."""
        total = len(x_t)
        if t is None:
            visited = self.decoder.resolve(sampling).steps
            assert isinstance(visited, tuple)
            t = visited[0]
        steps, images = passes(self.decoder, sampling, t), []
        for rows in self.chunks(total, self.decoder.image_size):
            chunk = cond_rows(cond, rows)
            conditions = self.offer(chunk, self.decoder.takes)
            away = None if steering.negative is None else self.offer(cond_rows(steering.negative, rows), self.decoder.takes)
            guide = steering.bound(move(chunk, self.device))  # which may know conditions that the decoder does not take
            options = {"noise": noise[rows], "x_t": x_t[rows].to(self.device), "t": t, "sampling": sampling}
            progress = Progress(callback, "decoder", steps, rows, total)
            x = run_stage(self.decoder.sample, [conditions], options, progress, away, guide)
            images.append(x.float().cpu())
        return torch.cat(images)

    def enlarge(
        self,
        small: Tensor,
        stages: Sequence[int],
        noise: Noise,
        settings: Sequence[Sampling | None],
        cond: Cond | None = None,
        callback: Callback | None = None,
    ) -> dict[int, Tensor]:
        """Pictures at every size of `stages`, the first being that of `small`."""
        images = {stages[0]: small}
        for low, high, upsampler, sampling in zip(stages, stages[1:], self.upsamplers, settings):
            stage, total = f"upsampler_{high}", len(small)
            steps, chunks = passes(upsampler, sampling), []
            for rows in self.chunks(total, high):
                seen = self.offer(cond_rows(cond or Cond(), rows), takes_of(upsampler))
                inputs = [images[low][rows].to(self.device), *([] if all(x is None for x in seen) else [seen])]
                options = {"noise": noise.at(stage)[rows], "sampling": sampling}
                x = run_stage(upsampler.sample, inputs, options, Progress(callback, stage, steps, rows, total))
                chunks.append(x.float().cpu())
            images[high] = torch.cat(chunks)
        return images

    def offer(self, cond: Cond, takes: Sequence[str]) -> Cond:
        """Of the conditions those that a component takes, on the device."""
        return move(Cond(**{name: getattr(cond, name) for name in takes}), self.device)

    def settings(self, decoder: Any, upsamplers: Any) -> list[Sampling | None]:
        """The upsamplers' settings, one each; ValueError for settings of a wrong kind."""
        settings = [None] * len(self.upsamplers) if upsamplers is None else upsamplers
        if not isinstance(settings, Sequence) or len(settings) != len(self.upsamplers):
            actual = f"{len(settings)} settings" if isinstance(settings, Sequence) else repr(settings)
            raise ValueError(f"{actual} for {len(self.upsamplers)} upsamplers; give a list, one each (None = its own)")
        for name, value in (("decoder", decoder), *(("upsamplers", s) for s in settings)):
            check_settings(name, value, Sampling)
        return list(settings)

    def steering(self, negative: Text | None, guide: Any, guide_scale: float, callback: Any, guidance: float) -> Steering:
        """What shall lead the decoder, a negative where it reads captions; ValueError, before any drawing, for what cannot."""
        check_callables(callback, guide, guide_scale)
        away = Cond(text=negative) if negative is not None and "text" in self.decoder.takes else None
        check_way_in(self.decoder.sample, "decoder", away, guide)
        if away is not None and guidance == 1:
            warn_inert("decoder")
        return Steering(away, guide, guide_scale)

    def autocast(self) -> Any:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @staticmethod
    def chunks(count: int, size: int) -> Iterator[slice]:
        """Rows that go through a stage together, for pictures of `size` pixels a side."""
        return chunks(count, max(1, PIXELS_AT_ONCE // size**2))

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes that the decoder draws, or the guide knows; () where there are none, or they have no names."""
        return names_of(self.decoder, self.guide)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | str | None = None, overwrite: bool = False) -> None:
        """Write every component and the index into a new `folder`, with `overwrite` in place of a pipeline that is there.

        Parameters are stored in `dtype`, when given.
        """

        def index(kinds: dict[str, str]) -> checkpoint.Index:
            return checkpoint.Index(kind="Cascade", name=self.name or Path(folder).name, components=kinds)

        store.save(folder, self.components, index, self.provenance, dtype, overwrite=overwrite)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        classes: Mapping[str, type[checkpoint.Component[Any]]] | None = None,
        dtype: torch.dtype | str | None = None,
        offload: bool = False,
        variant: str | None = None,
        revision: str | None = None,
    ) -> Cascade:
        """Load a folder or a Hugging Face hub id; the arguments are those of `UnCLIP.from_pretrained`."""
        stored = checkpoint.open_pipeline(source, classes, dtype, variant, revision)
        store.refuse_kind(stored, "Cascade", source)
        components = store.load(stored.components, offload)
        uppers = [component for name, component in components.items() if name.startswith("upsampler_")]
        made = cls(components["decoder"], uppers, guide=components.get("guide"), name=stored.name, provenance=stored.provenance)
        same_sizes(stored.components, made.components, str(source))
        return made

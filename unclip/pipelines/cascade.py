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
from unclip.editing.init_image import InitImages
from unclip.index import same_sizes
from unclip.progress import with_bars
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.trees import move
from unclip.types import Callback, Cond, Decoder, Guide, GuideModel, ImageTextEncoder, Text, Upsampler

from . import store
from .drawing import Drawing, Ranking, draws, ranking_of
from .generation import Generation
from .stage import (
    Progress,
    captions_of,
    chunks,
    labels_of,
    move_parts,
    names_of,
    numbers_of,
    passes,
    run_stage,
    settings_of,
    settle,
)
from .steering import Steering, check_guide, check_steering, init_rows, negative_text, takes_of
from .surface import Surface
from .verbs import ImageEdits

PIXELS_AT_ONCE = 512 * 512  # pictures go through a stage in chunks of about this size, which bounds memory


class Cascade(Surface, ImageEdits):
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
            check_guide(guide, decoder)
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

    @with_bars
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
        guide_scale: float | None = None,
        init: InitImages | None = None,
        best_of: int | None = None,
        clip: ImageTextEncoder | None = None,
        callback: Callback | None = None,
        progress: bool | None = None,
    ) -> Generation:
        """n pictures for each caption or label, or for both where the decoder takes both; for neither, unconditional ones.

        size: side length in pixels, one of `sizes`; None = the largest.  Picture k of the result (caption-major) is number
        first + k of the seed.  labels: class numbers, or names where the decoder has them.  negative: captions, one or one
        each, that guidance leads away from.  guide: a log probability (x_t, t) -> (b), or a model that gives one for the
        conditions, of which it may know more than the decoder; its gradient times `guide_scale` steers the decoder (ADM 4.1;
        None = the scale of the guide itself).
        init: pictures to start from or to draw around (see `img2img`, `inpaint`).  best_of: so many are drawn for each
        caption, of which the n that `clip` finds nearest to it go on to the upsamplers, the best first.  callback: told of
        every step; raising `Cancelled` in it ends the run.  progress: bars, None = where somebody watches.  Returns images
        (b, 3, size, size) in [-1, 1].
        """
        strings = None if captions is None else captions_of(captions)
        guide = self.guide if guide is None else guide
        names = names_of(self.decoder, guide)
        numbers = None if labels is None else labels_of(labels, names)
        counts = {len(values) for values in (strings, numbers) if values is not None} or {1 if init is None else len(init)}
        if len(counts) > 1:
            raise ValueError(
                f"{len(strings or [])} captions came with {len(numbers or [])} labels: give one label for each caption"
            )
        (count,) = counts
        stages, (n, seed, first) = self.stages(size), numbers_of(n, seed, first)
        each, ranking = draws(n, best_of), None if best_of is None else ranking_of(clip, strings, n)
        for name, values in (("text", strings), ("label", numbers)):
            if values is not None and name not in self.decoder.takes and not isinstance(guide, GuideModel):
                takes = ", ".join(self.decoder.takes) or "nothing"
                refused = f"this decoder is not conditioned on {name!r}; it takes {takes}"
                raise ValueError(f"{refused}, and no guide model is there that could take it")
        settings = settings_of(decoder, upsamplers, len(self.upsamplers))
        sampling = self.decoder.resolve(decoder)  # before anything is drawn: refuses steps that the schedule has not
        noise = Noise.of(seed, range(first, first + count * each))
        text = None if strings is None else Text.of(strings).repeat(each)
        cond = Cond(text=text, label=None if numbers is None else torch.tensor(numbers).repeat_interleave(each))
        away = None if negative is None else negative_text(Text.of, captions_of(negative), count, each)
        if away is not None and not any("text" in takes_of(stage) for stage in (self.decoder, *self.upsamplers)):
            raise ValueError("negative is given, but this decoder reads no captions: there is nothing to lead away from")
        steering = Steering(away, guide, guide_scale, init_rows(init, count, each))
        check_steering(steering, self, stages, sampling, settings, callback)
        x_t = noise.at("decoder").at("x_T").normal((3, self.sizes[0], self.sizes[0]))
        if steering.init is not None:
            x_t, sampling = steering.init.start(self.decoder, sampling, x_t)
        titles = strings or [names[k] if 0 <= k < len(names) else f"label {k}" for k in numbers or ()] or [""] * count
        titles = [title for title in titles for _ in range(each)]
        seeds = tuple((seed, first + i) for i in range(len(noise)))
        drawing = Drawing(cond, noise, x_t, sampling, steering, tuple(titles), seeds)
        with self.autocast():
            return self.finish(drawing, stages, settings, ranking, callback)

    def finish(
        self,
        drawing: Drawing,
        stages: Sequence[int],
        settings: Sequence[Sampling | None],
        ranking: Ranking | None,
        callback: Callback | None,
    ) -> Generation:
        """The pictures at every size of `stages`; where they are ranked, of those that are kept."""
        small = self.decode(drawing, callback)
        if ranking is not None:
            rows = ranking.rows(small)
            drawing, small = drawing.pick(rows), small[rows]
        images = self.enlarge(small, drawing, stages, settings, callback)
        return Generation(images[stages[-1]], drawing.latent, images, drawing.captions, drawing.seeds, self.name)

    def decode(self, drawing: Drawing, callback: Callback | None = None) -> Tensor:
        """The decoder's pictures (b, 3, h, w) on the CPU, in chunks."""
        size, steering, sampling, takes = self.decoder.image_size, drawing.steering, drawing.sampling, self.decoder.takes
        assert isinstance(sampling.steps, tuple)
        t, images = sampling.steps[0], []
        for rows in self.chunks(len(drawing), size):
            known = steering.known(size, rows)
            cond, away = drawing.cond.rows(rows)._replace(known=known), steering.away(takes, rows)
            # A guide may know conditions that the decoder does not take.
            steered = steering.around(self.decoder, known, self.device) + steering.guided(move(cond, self.device))
            options = {"noise": drawing.noise.at("decoder")[rows], "x_t": drawing.x_t[rows].to(self.device), "t": t}
            progress = Progress(callback, "decoder", passes(self.decoder, sampling, t), rows, len(drawing))
            negative = None if away is None else self.offer(Cond(text=away), takes)
            inputs, options = [self.offer(cond, takes)], options | {"sampling": sampling}
            x = run_stage(self.decoder.sample, inputs, options, progress, negative, steered)
            images.append(steering.pasted(size, rows, x.float().cpu()))
        return torch.cat(images)

    def enlarge(
        self,
        small: Tensor,
        drawing: Drawing,
        stages: Sequence[int],
        settings: Sequence[Sampling | None],
        callback: Callback | None = None,
    ) -> dict[int, Tensor]:
        """Pictures at every size of `stages`, the first being that of `small`."""
        images, steering = {stages[0]: small}, drawing.steering
        for low, high, upsampler, sampling in zip(stages, stages[1:], self.upsamplers, settings):
            stage, takes, chunks = f"upsampler_{high}", takes_of(upsampler), []
            for rows in self.chunks(len(small), high):
                known = steering.known(high, rows)
                cond, away = self.offer(drawing.cond.rows(rows)._replace(known=known), takes), steering.away(takes, rows)
                inputs = [images[low][rows].to(self.device), *([] if all(x is None for x in cond) else [cond])]
                options = {"noise": drawing.noise.at(stage)[rows], "sampling": sampling}
                progress = Progress(callback, stage, passes(upsampler, sampling), rows, len(small))
                negative = None if away is None else self.offer(Cond(text=away), takes)
                around = steering.around(upsampler, known, self.device)
                x = run_stage(upsampler.sample, inputs, options, progress, negative, around)
                chunks.append(steering.pasted(high, rows, x.float().cpu()))
            images[high] = torch.cat(chunks)
        return images

    def offer(self, cond: Cond, takes: Sequence[str]) -> Cond:
        """Of the conditions those that a component takes, on the device."""
        return move(Cond(**{name: getattr(cond, name) for name in takes}), self.device)

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
        progress: bool | None = None,
    ) -> Cascade:
        """Load a folder or a Hugging Face hub id; the arguments are those of `UnCLIP.from_pretrained`."""
        stored = checkpoint.open_pipeline(source, classes, dtype, variant, revision)
        store.refuse_kind(stored, "Cascade", source)
        components = store.load(stored, stored.components, offload, progress)
        uppers = [component for name, component in components.items() if name.startswith("upsampler_")]
        made = cls(components["decoder"], uppers, guide=components.get("guide"), name=stored.name, provenance=stored.provenance)
        same_sizes(stored.components, made.components, str(source))
        return made

"""Variations (unCLIP 3.1, Fig. 3): the same z_i over eta from the picture's own x_T, and from a fresh x_T.

    python -m experiments.figures.variations [MODEL] [--pictures FILE...] [-o FOLDER] [--n 12] [--draws 4]

Writes variations.png (the first --rows pictures), variations.json: over eta, CLIP's cosine to the source, the RMS pixel
difference among the variations and to the source.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from experiments.figures import common as figures
from experiments.figures.common import Drawn, Numbers, Run
from unclip.editing.latent import Latent
from unclip.editing.result import Edit

ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def draw(run: Run) -> Drawn:
    draws, settings = run.options.draws, [*run.options.eta, None]  # None = fresh x_T
    if draws < 2:
        raise ValueError(f"--draws is {draws}; a spread is that of at least 2 variations")
    if not all(0 <= eta <= 1 for eta in run.options.eta):
        raise ValueError(f"--eta {' '.join(map(str, run.options.eta))}: each lies in 0..1")
    chosen = run.pictures()
    sources = run.fitted(chosen.images)
    latents = run.invert(chosen.images)
    embeds = run.embed(sources)
    rows: list[list[Tensor]] = [[source] for source in sources[: run.options.rows]]
    compared: dict[str, dict[str, list[float]]] = {}
    with run.progress("varying", len(latents) * len(settings) * draws) as bar:
        for i, (latent, source, embed) in enumerate(zip(latents, sources, embeds)):
            for eta in settings:
                images, first = _vary(run, latent, eta, draws, i)
                if i < len(rows):
                    rows[i].append(first)
                values = compared.setdefault("fresh x_T" if eta is None else f"eta {eta:g}", {})
                cosines, same = run.embed(images) @ embed, source.expand_as(images)
                for name, value in {
                    "CLIP cosine to the source": float(cosines.mean()),
                    "RMS difference of the variations": figures.spread(images),
                    "RMS difference to the source": float(figures.rms(images, same).mean()),
                    "PSNR to the source, dB": float(figures.psnr(images, same).mean()),
                }.items():
                    values.setdefault(name, []).append(value)
                bar.update(draws)
    compared["other pictures"] = _strangers(sources, embeds)
    numbers: Numbers = {
        setting: {name: figures.mean(values) for name, values in by_name.items()}
        for setting, by_name in compared.items()
        if by_name
    }
    labels = [[caption, *list(compared)[: len(settings)]] for caption in chosen.captions[: len(rows)]]
    page = run.sheet(rows, labels, f"{run.pipe.name}: given, then one variation each")
    about = {"pictures": chosen.captions, "draws": draws, "inversion_timesteps": len(latents[0].timesteps)}
    return Drawn({".png": page}, numbers, about)


def _vary(run: Run, latent: Latent, eta: float | None, draws: int, i: int) -> tuple[Tensor, Tensor]:
    """All variations at the decoder's size, and the first as large as the sheet has it."""

    def one(n: int, first: int, size: int) -> Edit:
        x_t, eta_ = ("fresh", 1.0) if eta is None else ("kept", eta)
        return run.pipe.vary(latent, n=n, eta=eta_, x_t=x_t, seed=run.options.seed, first=first, size=size)  # type: ignore[arg-type]

    # Upsampling takes longer than decoding, so only what is shown is upsampled.
    head = one(1, i * draws, run.size if i < run.options.rows else run.small)
    tail = one(draws - 1, i * draws + 1, run.small)
    return torch.cat([head.stages[run.small], tail.images]), head.images[0]


def _strangers(sources: Tensor, embeds: Tensor) -> dict[str, list[float]]:
    """What the numbers are between one source and the next: the far end of the scale."""
    if len(sources) < 2:
        return {}
    others = sources.roll(1, dims=0)
    return {
        "CLIP cosine to the source": (embeds * embeds.roll(1, dims=0)).sum(1).tolist(),
        "RMS difference to the source": figures.rms(sources, others).tolist(),
        "PSNR to the source, dB": figures.psnr(sources, others).tolist(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.parser(__doc__, n=12)
    parser.add_argument("--eta", type=float, nargs="+", default=ETAS, help="default: 0 0.25 0.5 0.75 1")
    parser.add_argument("--draws", type=int, default=4, help="variations of each picture and setting (default: 4)")
    parser.add_argument("--rows", type=int, default=6, help="pictures in the sheet (default: 6)")
    figures.main("variations", parser, draw, arguments)


if __name__ == "__main__":
    main()

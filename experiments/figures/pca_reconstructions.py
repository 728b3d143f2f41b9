"""PCA reconstructions (unCLIP 4, Fig. 7): pictures drawn from the first k principal components of z_i, x_T fixed.

    python -m experiments.figures.pca_reconstructions [MODEL] [--pictures FILE...] [-o FOLDER] [--n 8]
        [--components 5 10 20 40 80]

The components are the checkpoint's own, those of --pca FILE (`unclip.editing.pca.PCA.save`), or are fitted to the training emoji.
Writes pca_reconstructions.png and pca_reconstructions.json: over k, the explained variance, cosine of the reduced to the full
z_i, how far picture and CLIP's view of it are from those of the full z_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from experiments.figures import common as figures
from experiments.figures.common import Drawn, Numbers, Run
from unclip.data.embeddings import precompute
from unclip.editing.pca import PCA

COMPONENTS = (5, 10, 20, 40, 80)  # of the shipped CLIP's 128; the paper lists 20 to 320 of its own


def draw(run: Run) -> Drawn:
    pca, origin = components(run)
    full = len(pca.mean)
    wanted = run.options.components or [k for k in COMPONENTS if k < full]
    if any(not 0 <= k <= full for k in wanted):
        raise ValueError(f"--components {' '.join(map(str, wanted))}: each lies in 0..{full}, the dimensions of this CLIP")
    ks = [*(k for k in wanted if k != full), full]
    chosen = run.pictures()
    sources = run.fitted(chosen.images)
    rows: list[list[Tensor]] = []
    results: dict[int, dict[str, list[float]]] = {k: {} for k in ks}
    with run.progress("drawing", len(chosen) * len(ks)) as bar:
        for i, (picture, source) in enumerate(zip(chosen.images, sources)):
            size = run.size if i < run.options.rows else run.small
            made = run.pipe.reconstruct_pca(picture, ks, pca, guidance=run.options.guidance, seed=run.options.seed, size=size)
            small, kept = made.stages[run.small], made.latent.image_embed
            seen = run.embed(small)
            values = {
                "cosine of the reduced to the full z_i": torch.cosine_similarity(kept, kept[-1:], dim=1),
                "RMS difference to the full picture": figures.rms(small, small[-1:].expand_as(small)),
                "RMS difference to the source": figures.rms(small, source.expand_as(small)),
                "CLIP cosine of the picture to the full one": seen @ seen[-1],
                "CLIP cosine of the picture to the source": seen @ run.embed(source[None])[0],
            }
            for j, k in enumerate(ks):
                for name, value in values.items():
                    results[k].setdefault(name, []).append(float(value[j]))
            if i < run.options.rows:
                rows.append([source, *made.images])
            bar.update(len(ks))
    explained = torch.cat([torch.zeros(1), pca.explained])
    numbers: Numbers = {
        f"{k} components": {"explained variance": {"share": float(explained[k])}}
        | {name: figures.mean(values) for name, values in by_name.items()}
        for k, by_name in results.items()
    }
    titles = [f"{k} components" if k != full else f"all {full}" for k in ks]
    labels = [[caption, *titles] for caption in chosen.captions[: len(rows)]]
    page = run.sheet(rows, labels, f"{run.pipe.name}: given, then of k components")
    return Drawn({".png": page}, numbers, {"pictures": chosen.captions, "components_from": origin})


def components(run: Run) -> tuple[PCA, str]:
    """Principal components of this pipeline's CLIP, and where they come from."""
    if run.options.pca is not None:
        return PCA.load(run.options.pca), str(run.options.pca)
    if run.pipe.pca is not None:
        return run.pipe.pca, "the checkpoint"
    if not figures.trained_on_emoji(run.pipe):
        raise ValueError(f"the model {run.pipe.name!r} came without principal components: name a file of them with --pca")
    return PCA.fit(precompute(run.pipe.clip, run.emoji("train")).image_embed), "fitted to the training emoji"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = figures.parser(__doc__, n=8)
    parser.add_argument("--components", type=int, nargs="+", metavar="K", help="all of them are always added")
    parser.add_argument("--pca", type=Path, metavar="FILE", help="principal components of other data")
    parser.add_argument("--rows", type=int, default=6, help="pictures in the sheet (default: 6)")
    parser.add_argument("--guidance", type=float, help="of the decoder; default: its own")
    figures.main("pca_reconstructions", parser, draw, arguments)


if __name__ == "__main__":
    main()

"""Re-ranking: the order is that of the cosines, and what is kept is what was drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from test_cli import call
from test_pipelines_cascade import adm, glide  # noqa: F401 (fixtures)

from unclip import Cascade, UnCLIP, rerank
from unclip.images import metadata
from unclip.randomness import Noise

CAPTIONS = tiny.CAPTIONS[:2]


@pytest.fixture(scope="module")
def pipe() -> UnCLIP:
    return tiny.pipeline()


def test_rerank_orders_by_cosine_and_a_blank_caption_not_at_all() -> None:
    clip, images = tiny.ForeignEncoder(), Noise.of(0, range(12)).normal((3, 4, 4))
    captions = ["a", "  ", "b"]
    ranked = rerank(clip, images, captions, k=3)
    text = clip.encode_text(captions).embed
    for c, caption in enumerate(captions):
        rows = range(4 * c, 4 * c + 4)
        cosines = [float(torch.cosine_similarity(clip.encode_image(images[i : i + 1]), text[c : c + 1])) for i in rows]
        assert ranked.scores[c].tolist() == pytest.approx(cosines, abs=1e-6)
        expected = sorted(rows, key=lambda i: -cosines[i - 4 * c]) if caption.strip() else list(rows)
        assert ranked.rows[c].tolist() == expected[:3]
    for count, k in ((12, 0), (12, 5), (11, 1)):
        with pytest.raises(ValueError, match="as many pictures for each caption"):
            rerank(clip, images[:count], captions, k)


def test_the_best_of_many_are_those_that_their_numbers_draw_again(pipe: UnCLIP) -> None:
    every = pipe.generate(CAPTIONS, n=6, seed=3, size=64)
    best = pipe.generate(CAPTIONS, n=2, best_of=6, seed=3, size=64)
    rows = rerank(pipe.clip, every.stages[16], CAPTIONS, 2).rows.flatten().tolist()
    assert best.seeds == tuple((3, i) for i in rows) and sorted(rows) != list(rows)[::-1]
    assert torch.equal(best.stages[16], every.stages[16][rows]) and (best.images - every.images[rows]).abs().max() < 0.02
    assert torch.equal(best.latent.x_t, every.latent.x_t[rows]) and best.captions == tuple(CAPTIONS[i // 6] for i in rows)
    alone = pipe.generate(best.captions[3], seed=3, first=best.seeds[3][1], size=64)
    assert (alone.images[0] - best.images[3]).abs().max() < 0.02
    same = pipe.generate(CAPTIONS, n=6, best_of=6, seed=3, size=16)
    assert sorted(same.seeds) == sorted(every.seeds)


def test_other_verbs_are_ranked_too(pipe: UnCLIP) -> None:
    picture = Noise.of(0).uniform((3, 64, 64))[0] - 0.5
    hole = torch.zeros(64, 64, dtype=torch.bool)
    hole[:, 30:] = True
    every = pipe.inpaint(picture, CAPTIONS[0], mask=hole, n=5, size=64)
    best = pipe.inpaint(picture, CAPTIONS[0], mask=hole, n=2, best_of=5, size=64)
    assert best.numbers is not None and torch.equal(best.stages[16], every.stages[16][list(best.numbers)])
    assert torch.equal(best.images[..., ~hole], picture[None, ..., ~hole].expand(2, -1, -1))


def test_a_cascade_needs_a_clip(glide: Cascade, adm: Cascade, pipe: UnCLIP, tmp_path: Path) -> None:  # noqa: F811
    every = glide.generate(CAPTIONS, n=4, seed=2)
    best = glide.generate(CAPTIONS, best_of=4, clip=pipe.clip, seed=2)
    rows = rerank(pipe.clip, every.stages[16], CAPTIONS).rows.flatten().tolist()
    assert (best.images - every.images[rows]).abs().max() < 0.02 and best.latent is None
    for call_, told in (
        (lambda: glide.generate("a", best_of=4), "best_of ranks pictures by their captions with a CLIP"),
        (lambda: adm.generate(labels=1, best_of=4, clip=pipe.clip), "best_of ranks pictures by their captions"),
        (lambda: pipe.generate("a", n=3, best_of=2), "best_of is 2; it must be a whole number of at least 3: how many"),
    ):
        with pytest.raises(ValueError, match=told):
            call_()
    for name, model in (("glide", glide), ("unclip", pipe)):
        model.save_pretrained(tmp_path / name)
    ask = ("generate", CAPTIONS[0], "--best-of", 4, "--seed", 2, "--model", tmp_path / "glide", "-o", tmp_path / "x.png")
    assert "give both, clip=..." in call(*ask).stderr
    assert call(*ask, "--clip", tmp_path / "unclip").exit_code == 0
    best = glide.generate(CAPTIONS[0], best_of=4, clip=pipe.clip, seed=2)
    assert metadata(tmp_path / "x.png")["index"] == str(best.seeds[0][1])
    assert (
        "--clip is for models that have none"
        in call(*ask[:6], "--model", tmp_path / "unclip", "--clip", "x", "-o", tmp_path / "y.png").stderr
    )

"""Precomputed embeddings: what CLIP says of the clean pictures, found again by key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unclip.data.embeddings import Embeddings, precompute
from unclip.randomness import Noise
from unclip.types import Batch, ImageTextEncoder, Text


class Clip(nn.Module):
    """A linear image tower with dropout, and a text tower that counts letters."""

    embed_dim, image_size = 4, 2

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(12, 4, generator=generator))
        self.drop = nn.Dropout(0.5)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.drop(images.flatten(1) @ self.weight)

    def encode_text(self, captions: list[str]) -> Text:
        lengths = torch.tensor([len(caption) for caption in captions])
        embed = torch.stack([lengths.float(), -lengths.float(), lengths**0.5, torch.ones(len(captions))], 1)
        mask = torch.arange(6) < lengths[:, None]
        return Text(captions, lengths[:, None].expand(-1, 6), embed @ self.weight[:4], embed[:, None].repeat(1, 6, 1), mask)


class Pictures:
    keys = [f"key{i}" for i in range(7)]

    def __len__(self) -> int:
        return 7

    def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
        images = torch.stack([torch.full((3, 2, 2), i / 7 - 0.5) for i in indices])
        images[:, 0, 0, 0] = 1
        if noise is not None:
            images = images + noise.normal((3, 2, 2))
        return Batch([self.keys[i] for i in indices], images, ["a" * (i + 1) for i in indices])


@pytest.fixture
def clip() -> Clip:
    clip = Clip()
    assert isinstance(clip, ImageTextEncoder)
    return clip


def test_precomputed_rows_are_clips_answers(clip: Clip, tmp_path: Path) -> None:
    data = Pictures()
    precompute(clip, data, tmp_path / "new" / "e.safetensors", batch=3)
    assert clip.training  # encoded without dropout, then put back
    clip.eval()
    loaded = Embeddings.load(tmp_path / "new" / "e.safetensors")

    batch = data.batch([5, 0, 5], Noise.of(0, range(3)))
    joined = loaded.join(batch)
    assert torch.equal(joined.images, batch.images)  # type: ignore[arg-type]
    clean = data.batch([5, 0, 5])
    torch.testing.assert_close(joined.image_embed, clip.encode_image(clean.images).detach())  # type: ignore[arg-type]
    expected = clip.encode_text(clean.captions)  # type: ignore[arg-type]
    assert joined.text is not None and joined.text.strings == expected.strings == joined.captions
    for ours, theirs in zip(joined.text[1:], expected[1:]):
        torch.testing.assert_close(ours, theirs)
    assert joined.text.mask.dtype == torch.bool and not joined.image_embed.requires_grad  # type: ignore[union-attr]


def test_rows_can_be_trained_on(clip: Clip) -> None:
    image_embed, _ = precompute(clip, Pictures()).rows(["key1"])
    (image_embed * torch.ones(4, requires_grad=True)).sum().backward()


def test_the_order_of_keys_does_not_matter(clip: Clip) -> None:
    whole = precompute(clip, Pictures())
    some = whole.select(["key6", "key2"])
    assert some.keys == ["key6", "key2"]
    assert torch.equal(some.rows(["key2"])[0], whole.rows(["key2"])[0])
    with pytest.raises(ValueError, match="1 of 2 keys have no embedding here, the first is 'nobody'"):
        some.rows(["key2", "nobody"])


def test_a_replaced_picture_comes_once(clip: Clip) -> None:
    class Broken(Pictures):
        def batch(self, indices: Sequence[int], noise: Noise | None = None) -> Batch:
            return super().batch([3 if i == 2 else i for i in indices], noise)

    embeddings = precompute(clip, Broken(), batch=2)
    assert embeddings.keys == [key for key in Pictures.keys if key != "key2"]
    right = precompute(clip, Pictures())
    assert torch.equal(embeddings.image_embed, right.select(embeddings.keys).image_embed)
    assert embeddings.text is not None and embeddings.text.strings[2] == "aaaa"


def test_another_clip_is_noticed(clip: Clip) -> None:
    embeddings = precompute(clip, Pictures())
    embeddings.check(clip, Pictures())
    with pytest.raises(ValueError, match="the stored image embeddings .* compute them again"):
        embeddings.check(Clip(seed=1), Pictures())


def test_another_clip_is_noticed_without_pictures(clip: Clip) -> None:
    embeddings = precompute(clip, Pictures())
    embeddings.check(clip)
    with pytest.raises(ValueError, match="the stored text embeddings .* compute them again"):
        embeddings.check(Clip(seed=1))
    wider = Clip(seed=1)
    wider.embed_dim = 5
    with pytest.raises(ValueError, match="have 4 numbers and this CLIP's 5"):
        Embeddings(embeddings.keys, embeddings.image_embed).check(wider)


def test_bad_files_are_named(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent.safetensors cannot be read"):
        Embeddings.load(tmp_path / "absent.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no embeddings"):
        Embeddings.load(tmp_path / "other.safetensors")
    path = tmp_path / "cut.safetensors"
    precompute(clip, Pictures(), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cannot be read"):
        Embeddings.load(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.safetensors", "other.safetensors"]


def test_keys_are_unique_and_complete() -> None:
    with pytest.raises(ValueError, match="of 2 keys only 1 differ"):
        Embeddings(["a", "a"], torch.zeros(2, 4))
    with pytest.raises(ValueError, match="2 keys came with"):
        Embeddings(["a", "b"], torch.zeros(3, 4))

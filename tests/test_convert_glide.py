"""GLIDE, number for number: the four networks, the base's chain and the upsampler's steps, the vocabulary, and refused files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import glide
import pytest
import torch
from torch import Tensor

import unclip
from unclip.convert import convert
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.types import Cond, Text

FLOAT = 1e-5  # of the output's root mean square
CAPTIONS = ["The cat, a loft!", "a cat's 12 hellos"]
ALL, SIZE = tuple(glide.ROUND), 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return glide.save(tmp_path_factory.mktemp("glide") / "glide", *ALL)


def small(pipe: unclip.Cascade | unclip.UnCLIP) -> unclip.Cascade:
    """In float64, with a base of 16 pixels, where GLIDE's 64 would take long."""
    assert isinstance(pipe, unclip.Cascade) and pipe.sizes == (64, 256)
    decoder = unclip.Decoder(pipe.decoder.config.replace(image_size=SIZE)).eval()
    decoder.load_state_dict(pipe.decoder.state_dict())
    return unclip.Cascade(decoder.double(), [upsampler.double() for upsampler in pipe.upsamplers])


@pytest.fixture(scope="module")
def plain(folder: Path) -> unclip.Cascade:
    return small(unclip.from_pretrained(folder))


@pytest.fixture(scope="module")
def inpaint(folder: Path) -> unclip.Cascade:
    return small(unclip.Cascade.from_pretrained(folder, variant="inpaint"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def close(ours: Tensor, theirs: Tensor, bound: float = FLOAT) -> None:
    assert ours.shape == theirs.shape
    error = float((ours - theirs).abs().max() / theirs.square().mean().sqrt())
    assert error < bound, error


def tokens(captions: list[str]) -> tuple[Tensor, Tensor]:
    """As the `tokenizers` library reads them with the same vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = glide.vocabulary()
    library = Tokenizer(models.BPE(vocab=words, merges=[tuple(merge.split(" ")) for merge in glide.MERGES]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ids = torch.full((len(captions), glide.CONTEXT), glide.VOCAB - 1)
    mask = torch.zeros(len(captions), glide.CONTEXT, dtype=torch.bool)
    for i, caption in enumerate(captions):
        row = library.encode(caption.lower()).ids[: glide.CONTEXT]
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row, dtype=torch.int64), True
    return ids, mask


def random(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_base_networks(plain, inpaint):
    x, t = random(2, 3, SIZE, SIZE), torch.tensor([3, 912])
    images, keep = random(2, 3, SIZE, SIZE, seed=6).clamp(-1, 1), random(2, 1, SIZE, SIZE, seed=7) > 0
    text = Text.of(CAPTIONS)
    for pipe, name, known in ((plain, "base", None), (inpaint, "base_inpaint", (images, keep))):
        network = pipe.decoder.network
        with torch.no_grad():
            ours = network(x, t + 1, network.encode(Cond(text=text, known=known), 2))
            null = network(x, t + 1, network.encode(Cond(known=known), 2))
            theirs = glide.Network(name)
            close(ours, theirs(x, t, *tokens(CAPTIONS), known=known))
            close(null, theirs(x, t, *tokens(["", ""]), known=known))
        assert (ours - null).abs().max() > 0.1


def test_upsampler_networks(plain, inpaint):
    x, low, t = random(2, 3, 32, 32), random(2, 3, 8, 8, seed=8).clamp(-1, 1), torch.tensor([0, 640])
    images, keep = random(2, 3, 32, 32, seed=6).clamp(-1, 1), random(2, 1, 32, 32, seed=7) > 0
    for pipe, name, known in ((plain, "upsample", None), (inpaint, "upsample_inpaint", (images, keep))):
        network = pipe.upsamplers[0].network
        with torch.no_grad():
            ours = network(x, t + 1, network.encode(low, Cond(text=Text.of(CAPTIONS), known=known)))
            close(ours, glide.Network(name)(x, t, *tokens(CAPTIONS), known=known, low=low))


@pytest.mark.parametrize("kind", ["plain", "inpaint"])
def test_whole_chain_of_the_base(kind, request):
    """From noise to the picture, at guidance and with the learned variance; around known pixels for inpainting."""
    pipe = request.getfixturevalue(kind)
    images, keep = random(1, 3, SIZE, SIZE, seed=6).clamp(-1, 1), random(1, 1, SIZE, SIZE, seed=7) > 0
    known = (images, keep) if kind == "inpaint" else None
    sampling = pipe.decoder.sampling.replace(steps=(751, 501, 251, 1, 0))
    assert (sampling.sampler, sampling.guidance) == ("ddpm", 5.0 if known else 3.0) and pipe.decoder.sampling.steps == 100
    decoder = pipe.decoder
    noise = Noise.of(3, range(1))
    wrap = None
    if known:
        from unclip.diffusion.guidance import keep_known

        wrap = lambda d: keep_known(d, decoder.schedule, images, keep)  # noqa: E731
    ours = decoder.sample(Cond(text=Text.of(CAPTIONS[:1]), known=known), noise=noise, sampling=sampling, wrap=wrap)

    noise = Noise.of(3, range(1))
    network = glide.Network("base_inpaint" if known else "base")
    diffusion = glide.Diffusion("cosine", [0, 250, 500, 750])
    x, drawn = noise.at("x_T").normal((3, SIZE, SIZE)), noise.at("steps")
    both = tokens([CAPTIONS[0], ""])
    twice = None if known is None else tuple(torch.cat([y, y]) for y in known)
    with torch.no_grad():
        for k in reversed(range(4)):
            out = network(torch.cat([x, x]), torch.full((2,), diffusion.times[k]), *both, known=twice)
            cond, null = out[:1, :3], out[1:, :3]
            eps = null + sampling.guidance * (cond - null)
            x0 = diffusion.x0(x, eps, k)
            x0 = x0 if known is None else torch.where(keep, images, x0)
            x = diffusion.p_sample(x, out[:1, 3:], k, x0, drawn)
    close(ours, x.clamp(-1, 1))
    if known:
        assert torch.equal(ours[keep.expand_as(ours)], images[keep.expand_as(images)])


def test_steps_of_the_upsampler(plain, inpaint):
    """8-bit low resolution, noise x 0.997, DDIM; for inpainting the learned variance."""
    low = random(1, 3, 8, 8, seed=8).clamp(-1, 1)
    images, keep = random(1, 3, 32, 32, seed=6).clamp(-1, 1), random(1, 1, 32, 32, seed=7) > 0
    for pipe, name, known in ((plain, "upsample", None), (inpaint, "upsample_inpaint", (images, keep))):
        upsampler = pipe.upsamplers[0]
        assert upsampler.sampling.steps == "fast27" and upsampler.sampling.guidance == 1
        assert upsampler.sampling.sampler == ("ddpm" if known else "ddim")
        cond, sampling = Cond(text=Text.of(CAPTIONS[:1]), known=known), upsampler.sampling.replace(steps=(801, 401, 1, 0))
        ours = upsampler.sample(low, cond, noise=Noise.of(4, range(1)), sampling=sampling)

        noise, network = Noise.of(4, range(1)), glide.Network(name)
        diffusion = glide.Diffusion("linear", [0, 400, 800])
        x, drawn = 0.997 * noise.at("x_T").normal((3, 32, 32)), noise.at("steps")
        rounded = ((low + 1) * 127.5).round() / 127.5 - 1
        with torch.no_grad():
            for k in reversed(range(3)):
                out = network(x, torch.tensor([diffusion.times[k]]), *tokens(CAPTIONS[:1]), known=known, low=rounded)
                x0 = diffusion.x0(x, out[:, :3], k)
                x = diffusion.p_sample(x, out[:, 3:], k, x0, drawn) if known else diffusion.ddim(x, k, x0)
        close(ours, x.clamp(-1, 1))


def test_fast27():
    listed = [999, 800, 799, 600, 599, 500, 400, *(399, 377, 355, 333, 311, 288, 266, 244, 222, 200)]
    listed = [997, *listed[1:], *(199, 177, 155, 133, 111, 88, 66, 44, 22, 0)]
    from unclip.diffusion.schedule import spaced

    assert [t - 1 for t in spaced(1000, "fast27")[:-1]] == listed and len(listed) == 27


def test_the_vocabulary(plain):
    read = plain.decoder.network.conditions.text.byte_pairs
    captions = [*CAPTIONS, "", " ", "café\n\t", " THE  the", "🎂 x²", "½ 東京", "I'll they're", "it's 3.14", "__a-b__"]
    ids, mask = read(captions)
    expected, real = tokens(captions)
    assert torch.equal(mask, real) and torch.equal(ids[mask], expected[real])
    assert read(["!"])[0][0, 0] == 0 and read(["A"])[0][0, 0] == 64 and read([" "])[0][0, 0] == 220
    with pytest.warns(UserWarning, match=r"longer than the 12 tokens that are read; dropped: 'zzz'"):
        ids, mask = read(["z" * 15])
    assert mask.all() and len(set(ids[0].tolist())) == 1


def test_convert_and_draw(folder, plain, tmp_path):
    with pytest.raises(ValueError, match="holds a pipeline of the kind Cascade"):
        unclip.UnCLIP.from_pretrained(folder)
    convert(folder, tmp_path / "made")
    loaded = unclip.from_pretrained(tmp_path / "made")
    assert loaded.provenance["family"].startswith("GLIDE")
    made = small(loaded)
    options: dict[str, Any] = {"decoder": plain.decoder.sampling.replace(steps=2), "seed": 1}
    options["upsamplers"] = [Sampling(sampler="ddim", steps=1, threshold="static")]
    ours, again = made.generate(CAPTIONS[0], **options), plain.generate(CAPTIONS[0], **options)
    assert ours.images.shape == (1, 3, 64, 64) and torch.equal(ours.images, again.images)
    other = plain.generate(CAPTIONS[1], **options)
    assert not torch.equal(other.stages[SIZE], ours.stages[SIZE])
    words = [pipe.decoder.network.conditions.text.byte_pairs.merges for pipe in (made, plain)]
    assert torch.equal(*words) and len(words[0]) == len(glide.MERGES)


def test_which_pair_is_taken(folder, copy):
    for variant, takes in ((None, ("text",)), ("text", ("text",)), ("inpaint", ("text", "known"))):
        pipe = unclip.Cascade.from_pretrained(folder, variant=variant)
        assert pipe.decoder.takes == takes and pipe.upsamplers[0].takes == takes
    (copy / "base.pt").unlink()
    assert unclip.Cascade.from_pretrained(copy).decoder.takes == ("text", "known")
    (copy / "upsample_inpaint.pt").unlink()
    assert unclip.Cascade.from_pretrained(copy).sizes == (64,)
    with pytest.raises(ValueError, match=r"no GLIDE of the variant 'text': base.pt is missing"):
        unclip.from_pretrained(copy, variant="text")
    with pytest.raises(ValueError, match=r"variant is 'fp16'; GLIDE has 'text' and 'inpaint'"):
        unclip.from_pretrained(copy, variant="fp16")
    (copy / "base_inpaint.pt").rename(copy / "clip_image_enc.pt")
    with pytest.raises(ValueError, match=r"no base of GLIDE.*base.pt \(text\).*clip_image_enc.pt, of GLIDE's noised CLIP"):
        unclip.from_pretrained(copy)


def test_files_that_do_not_fit(copy):
    whole = glide.state("base")
    cases = [
        ({"final_ln.bias": None}, r"1 missing: final_ln.bias"),
        ({"input_blocks.3.1.encoder_kv.bias": None}, r"1 missing: input_blocks.3.1.encoder_kv.bias"),
        ({"ema.weight": torch.zeros(3)}, r"1 unexpected: ema.weight"),
        ({"padding_embedding": torch.zeros(9, 128)}, r"padding_embedding \(9, 128\) \(config \(12, 128\)\)"),
        ({"token_embedding.weight": None}, r"no tensor token_embedding.weight"),
        ({"token_embedding.weight": torch.zeros(300, 128)}, r"makes 268 tokens, and its token_embedding.weight has 300"),
    ]
    for change, message in cases:
        state = {name: x for name, x in {**whole, **change}.items() if x is not None}
        torch.save(state, copy / "base.pt")
        with pytest.raises(ValueError, match=message):
            unclip.from_pretrained(copy)
    shutil.copy(copy / "base_inpaint.pt", copy / "base.pt")
    with pytest.raises(ValueError, match=r"has 7 channels in and 6 out.*this file of GLIDE has 3"):
        unclip.from_pretrained(copy)


def test_vocabularies_that_do_not_fit(copy):
    glide.save_ids(copy / "encoder.json")
    unclip.from_pretrained(copy)
    merges = glide.MERGES
    (copy / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges[:1], merges[2]]))
    with pytest.raises(ValueError, match=r"vocab.bpe, line 3: 'Ġc at' joins no two tokens that are there before it"):
        unclip.from_pretrained(copy)
    (copy / "vocab.bpe").write_text("\n".join([merges[4], *merges[:4], *merges[5:]]))
    with pytest.raises(ValueError, match=r"encoder.json gives the token 'or' the id 260, by vocab.bpe it is 256"):
        unclip.from_pretrained(copy)
    (copy / "vocab.bpe").rename(copy / "words.bpe")
    with pytest.raises(ValueError, match=r"has no vocabulary: put GPT-2's vocab.bpe"):
        unclip.from_pretrained(copy)


def test_a_network_without_its_vocabulary_says_so():
    from unclip.nn.byte_pairs import BytePairs, parse_merges

    read = BytePairs(vocab=259, context=4)
    with pytest.raises(ValueError, match="which it was not given"):
        read(["a"])
    with pytest.raises(ValueError, match="has 1 merges, so 258 tokens; the embedding has 259"):
        read.set_merges(parse_merges("h e"))
    with pytest.raises(ValueError, match="merge 1 of the vocabulary joins the tokens 300 and 2"):
        read.set_merges(torch.tensor([[1, 2], [300, 2]]))
    read.set_merges(parse_merges("#version: 0.2\nh e\nhe l\n"))
    assert read(["Hel"])[0].tolist() == [[257, 0, 0, 0]]
    other = BytePairs(vocab=259, context=4)
    other.set_merges(parse_merges("e l\nh el"))
    read.load_state_dict(other.state_dict())
    assert read(["he"])[1].sum() == 2

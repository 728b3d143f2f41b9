"""The emoji: the committed table, and a tiny set of drawings through the whole path from tarball to batch."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from typer.testing import CliRunner

from experiments.emoji import ship
from experiments.emoji.data import command as commands
from experiments.emoji.data import pictures, source
from experiments.emoji.data.emoji_data import EmojiData, embeddings_path
from experiments.emoji.data.paraphrase import Paraphrase, paraphrases
from unclip import UnCLIP
from unclip.cli import app
from unclip.data.embeddings import Embeddings
from unclip.data.order import Data, indices
from unclip.randomness import Noise
from unclip.types import Batch

DISC = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 36 36"><circle cx="18" cy="18" r="{}" fill="#{}"/></svg>'
SVGS = {
    "1f44b": DISC.format(9, "ff0000"),
    "1f44b-1f3fb": DISC.format(6, "00ff00"),
    "1f44b-1f3ff": DISC.format(12, "0000ff"),
    "e50a": DISC.format(3, "000000"),  # has no name, like Twemoji's own Shibuya
}
ROWS = [
    source.Row("1f44b", "waving hand", "train"),
    source.Row("1f44b-1f3fb", "waving hand light skin tone", "heldout"),
    source.Row("1f44b-1f3ff", "waving hand dark skin tone", "train"),
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The four drawings as the package, as a tarball and as a folder, and a table of three."""
    digest = hashlib.sha256(b"".join(f"{key}\0{svg}\0".encode() for key, svg in SVGS.items())).hexdigest()
    monkeypatch.setattr(source, "SVG_COUNT", 4)
    monkeypatch.setattr(source, "SVG_SHA256", digest)
    monkeypatch.setattr(source, "read_captions", lambda: ROWS)
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "svgs").mkdir()
    with tarfile.open(tmp_path / "svg.tgz", "w:gz") as tar:
        for key, svg in reversed(SVGS.items()):
            (tmp_path / "svgs" / f"{key}.svg").write_text(svg)
            member = tarfile.TarInfo(f"package/{key}.svg")
            member.size = len(svg)
            tar.addfile(member, io.BytesIO(svg.encode()))
    return tmp_path


@pytest.fixture
def prepared(small: Path) -> Path:
    source.prepare(source.cache_folder(), small / "svg.tgz")
    return small


def test_the_committed_table() -> None:
    rows = source.read_captions()
    assert len(rows) == 3664 and sum(row.split == "heldout" for row in rows) == 205
    assert len({row.caption for row in rows}) == len({row.key for row in rows}) == 3664
    assert [row.key for row in rows] == sorted(row.key for row in rows)
    for row in rows:
        assert (row.split == "heldout") == ("skin tone" in row.caption and sum(map(ord, row.caption)) % 10 == 0)
    assert ("1f600", "grinning face", "train") in rows


def test_captions_are_the_cldr_names() -> None:
    pytest.importorskip("emoji")
    rows = source.read_captions()
    made = source.make_captions([row.key for row in rows] + ["e50a"])
    assert [row.key for row in made] == [row.key for row in rows]
    # A later release of the package may rename a few; `python -m experiments.emoji.data captions` is the strict check.
    assert sum(a == b for a, b in zip(made, rows)) > 3600
    assert source.captions_text(rows) == source.CAPTIONS.read_text(encoding="utf-8")


def test_a_changed_table_is_refused(tmp_path: Path) -> None:
    lines = source.CAPTIONS.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "c.jsonl").write_text("".join(lines[1:]), encoding="utf-8")
    with pytest.raises(ValueError, match="has 3663 captions"):
        source.read_captions(tmp_path / "c.jsonl")


def test_tarball_and_folder_give_the_same_svgs(small: Path) -> None:
    one = source.prepare(small / "one", small / "svg.tgz")
    two = source.prepare(small / "two", small / "svgs")
    assert source.read_svgs(one) == source.read_svgs(two) == {key: svg.encode() for key, svg in SVGS.items()}
    assert source.prepare(small / "one") == one  # checked again, not downloaded
    assert [path.name for path in (small / "one").iterdir()] == ["svg"]


def test_a_wrong_or_broken_source_is_refused_and_leaves_nothing(small: Path) -> None:
    (small / "svgs" / "e50a.svg").write_text("changed")
    with pytest.raises(ValueError, match="has 4 SVGs with SHA-256"):
        source.prepare(small / "dest", small / "svgs")
    (small / "cut.tgz").write_bytes((small / "svg.tgz").read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read as a tarball"):
        source.prepare(small / "dest", small / "cut.tgz")
    with pytest.raises(ValueError, match="is neither"):
        source.prepare(small / "dest", small / "absent.tgz")
    assert not (small / "dest").exists()


def test_without_npm_the_message_says_what_to_do(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="no npm here.*--source"):
        source.prepare(small / "dest")


def test_splits(prepared: Path) -> None:
    train, heldout, everything = EmojiData("train"), EmojiData("heldout"), EmojiData("all")
    assert isinstance(train, Data)
    assert (len(train), len(heldout), len(everything)) == (2, 1, 3)
    assert heldout.batch([0]).captions == ["waving hand light skin tone"]
    assert train.keys == ["1f44b", "1f44b-1f3ff"] and train.captions[1] == "waving hand dark skin tone"
    assert train.batch([1]).keys == ["1f44b-1f3ff"]
    images = everything.batch(range(3)).images
    assert images is not None and torch.equal(images[2:], train.batch([1]).images)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [64, 256, 300])  # 300 takes the way of the large ones
def test_discs_are_where_and_what_they_should_be(prepared: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_draw_all", lambda draw, texts: map(draw, texts))  # no processes for three discs
    images = EmojiData("all", size).batch([2, 0]).images
    assert images is not None and images.shape == (2, 3, size, size) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(images[:, :, 0, 0], torch.ones(2, 3))  # white ground
    assert images[:, :, size // 2, size // 2].tolist() == [[-1, -1, 1], [1, -1, -1]]
    for image, radius in zip(images, (12, 9)):
        ink = (1 - image[1].double()) / 2
        assert ink.mean().item() == pytest.approx(np.pi * radius**2 / 36**2, rel=1e-2)
        assert ((ink > 0.1) & (ink < 0.9)).sum() > radius / 36 * size  # a rim of half tones: anti-aliased


def test_the_cache_is_used_and_whole(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(svg: str, size: int) -> np.ndarray:
        raise RuntimeError("must not render")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(pictures, "render", fails)
        EmojiData("all", 48)
    assert [path.name for path in source.cache_folder().iterdir()] == ["svg"]  # nothing half-written
    before = EmojiData("all", 48).batch([1]).images
    monkeypatch.setattr(pictures, "render", fails)
    data = EmojiData("all", 48)
    assert torch.equal(before, data.batch([1]).images)  # type: ignore[arg-type]
    assert torch.equal(before, pickle.loads(pickle.dumps(data)).batch([1]).images)  # type: ignore[arg-type]
    # Another table means other rows, so it must not read this file.
    monkeypatch.setattr(source, "read_captions", lambda: ROWS[::-1])
    with pytest.raises(RuntimeError):
        EmojiData("all", 48)


def test_moving_is_seeded_per_sample(prepared: Path) -> None:
    data = EmojiData("all", 64, shift=6, zoom=0.2)
    together = data.batch([0, 1, 2], Noise.of(0, range(3))).images
    assert together is not None
    assert torch.equal(together[1:2], data.batch([1], Noise.of(0, [1])).images)  # type: ignore[arg-type]
    clean = EmojiData("all", 64).batch([0, 1, 2], Noise.of(0, range(3))).images
    assert torch.equal(clean, data.batch([0, 1, 2]).images)  # type: ignore[arg-type]
    assert not torch.equal(together[0], clean[0])  # type: ignore[index]
    assert together.shape == (3, 3, 64, 64) and together.abs().max() <= 1
    assert torch.equal(together[:, :, 0, 0], torch.ones(3, 3))  # what comes in from outside is white


def test_shift_and_zoom_are_what_they_say(prepared: Path) -> None:
    axis = torch.arange(64.0) + 0.5
    areas, centres = [], []
    data = EmojiData("all", 64, shift=5, zoom=0.25)
    for i in range(60):
        ink = (1 - data.batch([0], Noise.of(1, [i])).images[0, 1]) / 2  # type: ignore[index]
        areas.append(ink.sum().item())
        centres.append([(ink.sum(d) * axis).sum().item() / ink.sum().item() - 32 for d in (0, 1)])
    scale = np.sqrt(np.array(areas) / (np.pi * (9 / 36 * 64) ** 2))
    assert 0.74 < scale.min() < 0.8 and 1.2 < scale.max() < 1.26
    assert np.abs(centres).max() < 5.6 and np.std(np.array(centres), axis=0).min() > 2.5


def test_embeddings_come_along_by_key(prepared: Path) -> None:
    stored = Embeddings(["1f44b-1f3ff", "1f44b-1f3fb", "1f44b"], torch.tensor([[2.0], [1.0], [0.0]]))
    stored.save(prepared / "e.safetensors")
    batch = EmojiData("train", 64, embeddings=prepared / "e.safetensors", shift=3).batch([0, 1], Noise.of(0, range(2)))
    assert batch.image_embed is not None and batch.image_embed.tolist() == [[0.0], [2.0]]
    assert batch.captions == ["waving hand", "waving hand dark skin tone"]
    with pytest.raises(ValueError, match="1 of 2 keys have no embedding"):
        EmojiData("train", 64, embeddings=stored.select(["1f44b"]))


def test_bad_arguments_are_refused(small: Path) -> None:
    with pytest.raises(ValueError, match="the split is 'test'"):
        EmojiData("test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shift=64"):
        EmojiData("train", 64, shift=64)
    with pytest.raises(ValueError, match="the size is 0"):
        commands.Pictures(small, ["a"], 0)
    with pytest.raises(ValueError, match="lacks 3 of 3 emoji .*data prepare"):
        EmojiData("train")


def test_balance_draws_rare_motifs_more_often(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [source.Row("e50a", "hut", "train"), source.Row("1f44b-1f3fb", "waving hand light skin tone", "train")]
    monkeypatch.setattr(source, "read_captions", lambda: [row for row in ROWS if row.split == "train"] + alone)
    assert EmojiData("train").weights is None
    for balance, hut in ((1.0, 1 / 2), (0.5, 1 / (1 + 3**0.5))):
        data = EmojiData("train", balance=balance)
        drawn = [i for k in range(10) for i in indices(len(data), 100, 0, k, data.weights)]
        counts = np.bincount(drawn, minlength=4) / 1000
        assert counts[data.keys.index("e50a")] == pytest.approx(hut, abs=0.03)
        assert counts.max() == counts[data.keys.index("e50a")]
    with pytest.raises(ValueError, match="balance=2, "):
        EmojiData("train", balance=2)


def test_other_words_for_a_caption() -> None:
    captions = ["red heart", "ninja medium skin tone", "couple with heart man man dark skin tone light skin tone"]
    noise = Noise.of(0, range(3))
    once = paraphrases(captions, noise)
    assert once == paraphrases(captions, Noise.of(0, range(3))) and paraphrases(captions[1:2], noise[1:2]) == once[1:2]
    many = paraphrases(captions * 300, Noise.of(1, range(900)))
    assert len(set(many[::3])) > 100 and all("red heart" in other for other in many[::3])
    assert np.mean(["ninja" in other for other in many[1::3]]) > 0.9  # a word of a long caption may be missing
    assert any("ninja with medium skin" in other for other in many[1::3])
    assert max(len(other.split()) for other in many) <= 24 - 2


def test_captions_in_other_words_are_read_by_a_clip(prepared: Path) -> None:
    texts = tiny.ForeignEncoder().encode_text(["waving hand", "waving hand dark skin tone"])
    known = Embeddings(["1f44b", "1f44b-1f3ff"], torch.zeros(2, 3), texts)
    data, noise = EmojiData("train", 64, embeddings=known, paraphrase=0.5), Noise.of(0, range(60))
    batch, bare = data.batch([0, 1] * 30, noise), data.batch([0, 1] * 30)
    assert batch.text is None and batch.image_embed is not None and bare.text is not None
    assert batch.captions is not None and bare.captions is not None
    changed = sum(a != b for a, b in zip(batch.captions, bare.captions))
    assert 15 < changed < 40 and all("hand" in caption for caption in batch.captions)
    assert data.batch([1], noise[1:2]).captions == batch.captions[1:2]
    assert EmojiData("train", 64, embeddings=known).batch([0, 1], Noise.of(0, range(2))).text is not None
    with pytest.raises(ValueError, match="paraphrase=1.5; .*a fraction of the captions"):
        EmojiData("train", paraphrase=1.5)


@pytest.mark.filterwarnings("ignore:the caption")  # the tiny tower reads ten tokens
def test_a_text_tower_learns_other_words_and_keeps_its_own() -> None:
    model = tiny.clip()
    captions = ["red heart", "cat hat", "two dogs", "heart", "red hat", "two cat"]
    with torch.no_grad():
        known = model.encode_text(captions)
    batch = Batch(keys=list("abcdef"), captions=captions, text=known)
    before = {name: x.clone() for name, x in model.named_parameters() if "visual" in name}
    task = Paraphrase(model)
    optimiser = torch.optim.Adam([p for name, p in model.named_parameters() if "visual" not in name], 3e-3)
    terms = []
    for step in range(60):
        losses = task(batch, Noise.of(step, range(6)))
        assert torch.allclose(losses.total, losses.terms["moved"] + losses.terms["kept"])
        optimiser.zero_grad()
        losses.total.mean().backward()
        optimiser.step()
        terms.append({name: float(x.detach().mean()) for name, x in losses.terms.items()})
    assert terms[0]["kept"] < 1e-9 < 0.2 < terms[0]["moved"]  # it starts as the one whose answers are known
    assert np.mean([t["moved"] for t in terms[-5:]]) < 0.5 * np.mean([t["moved"] for t in terms[:5]])
    assert terms[-1]["kept"] < 0.2 and all(torch.equal(x, model.state_dict()[name]) for name, x in before.items())


@pytest.mark.filterwarnings("ignore:the caption", "ignore:.*buckets.*")
def test_the_recipes_from_pictures_to_a_pipeline(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's commands in their order, small and with few steps."""
    monkeypatch.chdir(prepared)
    few = ["train.steps=2", "train.batch=2", "train.log_every=1", "train.precision=float32", "train.sample_every=null"]
    layers = ["model.architecture.vision.layers=1", "model.architecture.text.layers=1"]
    unet = ["model.unet.channels=64", "model.unet.depth=1"]
    told = ["data.paraphrase=0.5", "clip=runs/paraphrase"]

    def train(stage: str, *settings: str) -> None:
        done = CliRunner().invoke(app, ["train", f"emoji.{stage}", *settings, *few, "--run", f"runs/{stage}"])
        assert done.exit_code == 0, done.output + str(done.exception)

    train("clip", *layers)
    ship.main(["embed", "runs"])
    first = Embeddings.load(embeddings_path())
    train("paraphrase", *layers, "--start", "runs/clip")
    ship.main(["embed", "runs"])
    second = Embeddings.load(embeddings_path())
    assert torch.equal(first.image_embed, second.image_embed) and not torch.equal(first.text.embed, second.text.embed)
    train("prior", "model.network.transformer.layers=1", *told)
    train("ar_prior", "model.network.transformer.layers=1", "model.quantizer.dims=1", *told)
    train("decoder", *unet, "data.balance=0.5", "data.shift=2", *told)
    train("upsampler_256", *unet, "data.size=64")
    train("upsampler_1024", *unet, "data.size=64", "model.crop=1.0", "--start", "runs/upsampler_256")
    monkeypatch.setattr(ship, "measure", lambda prior: None)  # a thousand timesteps
    monkeypatch.setattr(ship, "components", lambda: None)  # of more than 128 pictures
    ship.main(["assemble", "runs", "mine"])
    pipe = UnCLIP.from_pretrained("mine")
    assert pipe.sizes == (64, 256, 1024) and pipe.decoder.config.unet.channels == 64
    settings = pipe.provenance["stages"]["decoder"]["training_runs"][0]["settings"]
    assert settings["data.balance"] == 0.5 and settings["model.unet.channels"] == 64 and "clip" not in settings


def test_commands(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.main(["prepare", "--source", str(small / "svgs"), "--sizes", "16"])
    assert [path.exists() for path in map(Path, capsys.readouterr().out.split())] == [True, True]
    with pytest.raises(SystemExit) as stop:
        commands.main(["prepare", "--source", str(small / "absent")])
    assert stop.value.code == 2 and "is neither a .tgz" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # three names are not the committed table
        commands.main(["captions"])
    assert "these differ from" in capsys.readouterr().err

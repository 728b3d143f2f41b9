"""The figure scripts, each from end to end on a tiny pipeline with pictures that nobody has seen, and the numbers they write."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor

from experiments.emoji import ship
from experiments.emoji.data import source
from experiments.figures import common as figures
from experiments.figures import interpolations, inversion, pca_reconstructions, text_diffs, typographic_attack, variations
from unclip import PCA, UnCLIP
from unclip.clip.encoder import CLIP
from unclip.clip.tokenizer import compact_token_ids
from unclip.data.embeddings import Embeddings
from unclip.images import metadata, sheet, to_pil
from unclip.randomness import Noise
from unclip.runs.recipes import find
from unclip.sampling import Inversion
from unclip.types import Batch
from upsamplers.filters import resize

pytestmark = pytest.mark.filterwarnings("ignore:.*cut to.*")

TONES = ("light", "medium-light", "medium", "dark")
FAST = ["--steps", "5", "--refine", "1", "--size", "16"]


class Data:
    """Forty smooth pictures of men and women in four tones, every fourth held out."""

    def __init__(self, split: str, size: int):
        rows = [i for i in range(40) if split == "all" or (i % 4 == 3) == (split == "heldout")]
        captions = [f"{who} {verb} {tone} skin tone" for verb in "abcde" for tone in TONES for who in ("man", "woman")]
        self.keys, self.captions = [f"k{i:02}" for i in rows], [captions[i] for i in rows]
        self.pictures = resize(Noise.of(1, rows).uniform((3, 4, 4)) * 1.6 - 0.8, (size, size), "bilinear")

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, rows: Sequence[int]) -> Batch:
        return Batch([self.keys[i] for i in rows], self.pictures[list(rows)], [self.captions[i] for i in rows])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tiny, with a CLIP that knows the captions' words, on disk."""
    folder, like = tmp_path_factory.mktemp("figures") / "model", tiny.clip().config
    text = like.architecture.text.replace(token_ids=compact_token_ids(Data("all", 4).captions))
    clip = tiny._build(CLIP, like.replace(architecture=like.architecture.replace(text=text)), 0)
    tiny.pipeline(clip=clip, provenance={"data": f"{source.PACKAGE}, or so they say"}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def emoji(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "EmojiData", Data)


def run(script: ModuleType, model: str, folder: Path, *arguments: str) -> dict[str, Any]:
    script.main([model, "-o", str(folder), *FAST, *arguments])
    name = script.__name__.rpartition(".")[2]
    return json.loads((folder / f"{name}.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} in the JSON"))


def leaves(numbers: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for setting, rows in numbers.items():
        for name, row in rows.items():
            yield from ((f"{setting}, {name}, {key}", value) for key, value in row.items())


def least(record: dict[str, Any], name: str, key: str = "mean") -> dict[str, float]:
    return {setting: rows[name][key] for setting, rows in record["numbers"].items() if name in rows}


INVERT = ["--few", "2", "--curve-steps", "4", "5", "--curve-refine", "0", "1", "--lowest", "20", "40"]
SCRIPTS: list[tuple[ModuleType, list[str], list[str]]] = [
    (variations, ["--n", "2", "--draws", "2"], [".png"]),
    (interpolations, ["--n", "2", "--frames", "3"], [".png", ".gif"]),
    (text_diffs, ["--n", "2", "--frames", "3"], [".png", ".gif"]),
    (pca_reconstructions, ["--n", "2", "--components", "2", "5"], [".png"]),
    (typographic_attack, ["--n", "2", "--draws", "2"], [".png"]),
    (inversion, ["--n", "3", *INVERT], [".png", "_curve.png", "_photograph.png"]),
]


@pytest.mark.parametrize(("script", "arguments", "files"), SCRIPTS, ids=[script.__name__ for script, _, _ in SCRIPTS])
def test_a_script_from_end_to_end(
    script: ModuleType, arguments: list[str], files: list[str], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(script, model, tmp_path, "--seed", "3", *arguments)
    name = script.__name__.rpartition(".")[2]
    numbers = dict(leaves(record["numbers"]))
    assert len(numbers) > 10 and all(math.isfinite(value) for value in numbers.values())
    assert record["seed"] == 3 and record["commit"] and set(record["versions"]) >= {"torch", "unclip"}
    assert record["model"] == "tiny" and set(record["weights"]) >= {"clip", "decoder"}
    assert record["command"].startswith(f"python -m experiments.figures.{name} ") and "--seed 3" in record["command"]
    printed = capsys.readouterr().out
    for suffix in files:
        path = tmp_path / f"{name}{suffix}"
        assert str(path) in printed
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) >= 20 and len(set(picture.convert("L").get_flattened_data())) > 20
        if path.suffix == ".png":
            assert metadata(path)["seed"] == "3" and metadata(path)["model"] == "tiny"
    assert {path.name for path in tmp_path.iterdir()} - {inversion.CHUNKS} == {f"{name}{end}" for end in (*files, ".json")}


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (variations, ["--draws", "2"]),
        (interpolations, ["--frames", "3"]),
        (text_diffs, ["--frames", "2", "--to", "a red heart", "--captions", "two dogs", "a cat"]),
        (typographic_attack, ["--draws", "1", "--captions", "two dogs", "a cat"]),
        (inversion, ["--only", "reconstructions", "--few", "1"]),
    ],
)
def test_any_pictures_of_any_model(script: ModuleType, arguments: list[str], tmp_path: Path) -> None:
    tiny.pipeline().save_pretrained(tmp_path / "model")
    files = []
    for i, (mode, size) in enumerate([("CMYK", (40, 24)), ("LA", (20, 30))]):
        pixels = np.random.default_rng(i).integers(0, 255, (len(mode), size[1], size[0]), dtype=np.uint8)
        image = Image.merge(mode, [Image.fromarray(band) for band in pixels])
        files.append(tmp_path / f"some_thing-{i}.{'tif' if mode == 'CMYK' else 'png'}")
        image.save(files[-1])
    record = run(script, str(tmp_path / "model"), tmp_path, *arguments, "--pictures", *map(str, files))
    assert all(math.isfinite(value) for _, value in leaves(record["numbers"]))


def test_bad_input_is_one_line(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.pipeline().save_pretrained(tmp_path / "model")
    other, file = str(tmp_path / "model"), str(tmp_path / "picture.png")
    to_pil(torch.zeros(3, 16, 16)).save(file)
    for script, arguments, told in [
        (variations, [other], "--pictures"),
        (variations, [model, "--n", "0"], "--n is 0"),
        (variations, [model, "--draws", "1"], "--draws is 1"),
        (variations, [model, "--size", "17"], "16, 64, 256"),
        (variations, [model, "--eta", "0", "1.5"], "--eta 0.0 1.5"),
        (variations, [model, "--captions", "a"], "--captions"),
        (variations, [model, "--pictures", file, "--captions", "a", "b"], "2 captions for 1"),
        (variations, [model, "--pictures", str(tmp_path / "none.png")], "none.png"),
        (interpolations, [model, "--n", "1"], "1 pictures"),
        (text_diffs, [model, "--pictures", file], "--to"),
        (text_diffs, [model, "--theta", "2"], "--theta is 2"),
        (pca_reconstructions, [other, "--pictures", file], "--pca"),
        (pca_reconstructions, [model, "--components", "13"], "0..12"),
        (typographic_attack, [model, "--pictures", file], "second picture"),
        (inversion, [model, "--merge"], "run without --merge"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            script.main([*arguments, "-o", str(tmp_path / "out"), "--steps", "4"])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1 and told in error, (arguments, error)
    assert not (tmp_path / "out").exists()


def test_emoji_that_are_not_there(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from experiments.emoji.data.emoji_data import EmojiData

    monkeypatch.setattr(figures, "EmojiData", EmojiData)
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path))
    with pytest.raises(SystemExit):
        variations.main([model, "-o", str(tmp_path)])
    error = capsys.readouterr().err
    assert "emoji.data prepare" in error and "--pictures" in error


def test_pictures_are_chosen_by_hash(model: str, tmp_path: Path) -> None:
    from experiments.emoji.evaluation.measure import by_hash

    data = Data("heldout", 16)
    record = run(variations, model, tmp_path, "--n", "3", "--draws", "2", "--eta", "1")
    assert record["pictures"] == [data.captions[i] for i in by_hash(data.keys, data.captions, 3)]


def test_variations_spread_with_eta(model: str, tmp_path: Path) -> None:
    record = run(variations, model, tmp_path, "--n", "3", "--draws", "3", "--eta", "0", "1")
    among, source_ = least(record, "RMS difference of the variations"), least(record, "RMS difference to the source")
    assert among["eta 0"] == pytest.approx(0, abs=1e-6) and among["eta 1"] > 0.01
    assert source_["eta 0"] < source_["eta 1"]
    assert set(record["numbers"]) == {"eta 0", "eta 1", "fresh x_T", "other pictures"}
    assert record["numbers"]["eta 1"]["CLIP cosine to the source"]["n"] == 3
    again = run(variations, model, tmp_path, "--n", "3", "--draws", "3", "--eta", "0", "1")
    other = run(variations, model, tmp_path, "--n", "3", "--draws", "3", "--eta", "0", "1", "--seed", "1")
    assert again["numbers"] == record["numbers"] != other["numbers"]


def chosen(model: str, n: int) -> tuple[UnCLIP, Tensor]:
    from experiments.emoji.evaluation.measure import by_hash

    data = Data("heldout", 16)
    images = data.batch(by_hash(data.keys, data.captions, n)).images
    assert images is not None
    return UnCLIP.from_pretrained(model), images


def test_interpolations_end_in_reconstructions(model: str, tmp_path: Path) -> None:
    record = run(interpolations, model, tmp_path, "--n", "5", "--frames", "3")
    assert len(record["pairs"]) == 2  # the fifth picture has no partner
    pipe, images = chosen(model, 4)
    made = pipe.reconstruct(images, size=16, inversion=Inversion(steps=5, refine=1)).images
    expected = figures.psnr(made, images).mean()
    found = least(record, "PSNR of the ends to the pictures, dB")
    assert found["slerped x_T"] == pytest.approx(float(expected), abs=0.05)
    assert found["fixed x_T"] < found["slerped x_T"]
    for rows in record["numbers"].values():
        assert rows["largest step / mean step"]["mean"] >= 1


def test_text_diffs_start_at_the_picture(model: str, tmp_path: Path) -> None:
    record = run(text_diffs, model, tmp_path, "--n", "2", "--frames", "3", "--theta", "0.4")
    assert len(record["diffs"]) == 4  # a tone and a gender each
    moved = least(record, "RMS difference to theta 0")
    assert list(moved)[:3] == [f"from its own caption, theta {theta}" for theta in ("0.00", "0.20", "0.40")]
    for setting, value in moved.items():
        assert (value == 0) == setting.endswith("theta 0.00"), setting
    # the first frame knows nothing of captions, so the baselines agree on it
    for name in ("CLIP cosine to the target", "RMS difference to the true target"):
        start = {round(value, 5) for setting, value in least(record, name).items() if setting.endswith("0.00")}
        assert len(start) == 1


@pytest.mark.parametrize(
    ("caption", "tone", "gender"),
    [
        ("woman running medium-light skin tone", "woman running dark skin tone", "man running medium-light skin tone"),
        ("waving hand medium-dark skin tone", "waving hand light skin tone", None),
        (
            "woman and man holding hands dark skin tone light skin tone",
            "woman and man holding hands light skin tone dark skin tone",
            None,
        ),
        ("men with bunny ears", None, "women with bunny ears"),
        ("Isle of Mankind", None, None),
    ],
)
def test_targets_are_read_off_captions(caption: str, tone: str | None, gender: str | None) -> None:
    assert text_diffs.other_tone(caption) == (tone or caption)
    assert text_diffs.other_gender(caption) == (gender or caption)


def test_heldout_captions_have_targets_that_exist() -> None:
    rows = source.read_captions()
    every = {row.caption for row in rows}
    heldout = [row.caption for row in rows if row.split == "heldout"]
    tones, genders = [text_diffs.other_tone(c) for c in heldout], [text_diffs.other_gender(c) for c in heldout]
    assert all(other != caption for other, caption in zip(tones, heldout))
    assert sum(other in every for other in tones) > 0.7 * len(heldout)
    changed = [other for other, caption in zip(genders, heldout) if other != caption]
    assert len(changed) > 50 and sum(other in every for other in changed) > 0.9 * len(changed)


def test_more_components_are_nearer(model: str, tmp_path: Path) -> None:
    record = run(pca_reconstructions, model, tmp_path, "--n", "4", "--components", "1", "6", "--rows", "2")
    assert list(record["numbers"]) == ["1 components", "6 components", "12 components"]
    explained = list(least(record, "explained variance", "share").values())
    cosines = list(least(record, "cosine of the reduced to the full z_i").values())
    away = list(least(record, "RMS difference to the full picture").values())
    assert explained == sorted(explained) and explained[-1] == pytest.approx(1)
    assert cosines == sorted(cosines) and cosines[-1] == pytest.approx(1)
    assert away[0] > away[-1] == 0
    assert record["components_from"] == "fitted to the training emoji"
    pipe = UnCLIP.from_pretrained(model)
    images = Data("train", 16).pictures
    pca = PCA.fit(torch.cat([pipe.clip.encode_image(image[None]).detach() for image in images]))
    assert explained[0] == pytest.approx(float(pca.explained[0]), abs=1e-5)
    pca.save(tmp_path / "other.safetensors")
    file = ["--pca", str(tmp_path / "other.safetensors")]
    given = run(pca_reconstructions, model, tmp_path, "--n", "4", "--components", "1", "6", *file)
    assert least(given, "RMS difference to the full picture")["1 components"] == pytest.approx(away[0], abs=1e-4)


def test_provenance_tells_every_training_run_and_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ship, "EmojiData", Data)
    row = {"step": 50, "samples": 1600, "loss": 0.5, "seconds": 60.0, "lr": 0.1}
    for folder in [*ship.STAGES, "decoder_1"]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "log.jsonl").write_text(json.dumps(row) + "\n")
    again = find("emoji.decoder").override("train.steps=7", "model.unet.channels=64", "data.balance=0.5")
    (tmp_path / "decoder" / "training.json").write_text(again.to_json())
    (tmp_path / "prior" / "training.json").write_text(find("emoji.prior").to_json())
    stages = ship.provenance(tmp_path)["stages"]
    told = {"step": 50, "samples": 1600, "loss": 0.5, "seconds": 60.0}
    unlike = {"train.steps": 7, "model.unet.channels": 64, "data.balance": 0.5}
    assert stages["decoder"]["training_runs"] == [told, {**told, "settings": unlike}]
    assert stages["prior"]["training_runs"] == [{**told, "settings": {}}]
    assert stages["upsampler_1024"]["started_from"] == "upsampler_256"


def test_the_recipe_ships_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, pipe = Data("all", 16), tiny.pipeline()
    embeds = Noise.of(0, range(len(data))).normal((tiny.EMBED,))
    Embeddings(data.keys, embeds).save(tmp_path / "embeddings.safetensors")
    monkeypatch.setattr(ship, "EmojiData", Data)
    monkeypatch.setattr(ship, "embeddings_path", lambda: tmp_path / "embeddings.safetensors")
    pca = ship.components()
    held = torch.tensor([i % 4 == 3 for i in range(40)])
    torch.testing.assert_close(pca.variances, PCA.fit(embeds[~held]).variances)
    tiny.pipeline(pca=pca).save_pretrained(tmp_path / "model")
    loaded = UnCLIP.from_pretrained(tmp_path / "model").pca
    assert loaded is not None and torch.equal(loaded.components, pca.components) and pipe.pca is None


def test_a_label_and_an_object_stay_where_they_are_put() -> None:
    picture = Image.new("RGB", (256, 256), "red")
    found = np.asarray(typographic_attack.labelled(picture, "backhand index pointing up")) != np.asarray(picture)
    rows = found.any(axis=(1, 2)).nonzero()[0]
    assert rows.min() >= 160 and rows.max() <= 224
    grey = np.asarray(typographic_attack.labelled(picture, "pizza").convert("L"))[164:220, 20:236]
    assert 0.02 < (grey < 100).mean() < 0.6  # letters on the strip
    pasted = np.asarray(typographic_attack.pasted(picture, Image.new("RGB", (256, 256), "blue")))
    assert (pasted[128:, 128:] == (0, 0, 255)).all() and (pasted[:128] == (255, 0, 0)).all()


def test_probabilities_are_clips_own(model: str, tmp_path: Path) -> None:
    import argparse

    pipe = UnCLIP.from_pretrained(model)
    some = figures.Run("x", argparse.Namespace(), pipe, {})
    captions, images = some.embed_text(["a red heart", "two dogs"]), some.embed(Data("all", 16).pictures[:3])
    found = typographic_attack.probabilities(some, images, captions)
    expected = (pipe.clip.logit_scale.exp() * images @ captions.T).softmax(-1)  # type: ignore[attr-defined]
    torch.testing.assert_close(found, expected.detach().double(), atol=1e-5, rtol=0)


def test_the_attack_is_told_by_the_pictures_themselves(model: str, tmp_path: Path) -> None:
    record = run(typographic_attack, model, tmp_path, "--n", "4", "--draws", "2", "--rows", "1")
    assert list(record["numbers"]) == ["clean", "label", "second object"]
    own, its = (least(record, f"CLIP's probability of the {whose}") for whose in ("own caption", "attacker's"))
    assert len({round(value, 6) for value in own.values()}) == 3  # CLIP saw three different pictures
    for attack in own:
        assert 0 <= own[attack] + its[attack] <= 1


def test_inversion_measures_what_the_pipeline_does(model: str, tmp_path: Path) -> None:
    record = run(inversion, model, tmp_path, "--n", "3", "--few", "2", "--only", "reconstructions")
    pipe, images = chosen(model, 3)
    latent = pipe.invert(images, Inversion(steps=5, refine=1))
    expected = figures.psnr(pipe.reconstruct(latent, size=16).images, images)
    whole, first = (rows["PSNR, dB"] for rows in record["numbers"].values())
    assert whole["median"] == pytest.approx(float(expected.median()), abs=0.05) and whole["n"] == 3
    assert first["median"] == pytest.approx(float(expected[:2].mean()), abs=0.05) and first["n"] == 2
    rows = record["numbers"]["5 steps, 1 refinements, the first 2 of them"]
    for worse in ("PSNR with a random x_T, dB", "PSNR with the next picture's z_i, dB"):
        assert rows[worse]["median"] < first["median"]
    std = least(record, "standard deviation of x_T")["5 steps, 1 refinements, 3 pictures"]
    assert std == pytest.approx(float(latent.x_t.flatten(1).std(1).mean()), abs=1e-3)


def test_parts_of_an_inversion_are_the_whole(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(figures, "AT_ONCE", 2)
    options = ["--n", "5", "--few", "3"]  # which the chunks of two do not divide
    options += ["--only", "reconstructions", "curve", "--curve-steps", "5", "--curve-refine", "0", "1"]
    whole = run(inversion, model, tmp_path / "whole", *options)
    parts = [model, "-o", str(tmp_path / "parts"), *FAST, *options]
    inversion.main([*parts, "--part", "1/2"])
    assert "left to the other parts" in capsys.readouterr().out
    assert not (tmp_path / "parts" / "inversion.json").exists()
    inversion.main([*parts, "--part", "2/2"])
    joined = json.loads((tmp_path / "parts" / "inversion.json").read_text())
    for (name, a), (_, b) in zip(leaves(whole["numbers"]), leaves(joined["numbers"])):
        assert a == pytest.approx(b, abs=0.02), name
    chunks = sorted(path.name for path in (tmp_path / "parts" / inversion.CHUNKS).glob("*.safetensors"))
    assert chunks == sorted(path.name for path in (tmp_path / "whole" / inversion.CHUNKS).glob("*.safetensors"))

    # A damaged chunk is computed again, the others are not.
    (tmp_path / "parts" / inversion.CHUNKS / chunks[0]).write_bytes(b"half a fi")
    inverted: list[int] = []
    plain = UnCLIP.invert

    def invert(pipe: UnCLIP, pictures: Any, *rest: Any) -> Any:
        inverted.append(len(pictures))
        return plain(pipe, pictures, *rest)

    monkeypatch.setattr(UnCLIP, "invert", invert)
    inversion.main(parts)
    assert len(inverted) == 1 and "1 to compute" in capsys.readouterr().out
    inversion.main([*parts, "--merge"])
    again = json.loads((tmp_path / "parts" / "inversion.json").read_text())
    assert len(inverted) == 1 and again["numbers"] == joined["numbers"]


def test_chunks_of_other_weights_are_left_alone(model: str, tmp_path: Path, capsys: Any) -> None:
    options = ["--n", "1", "--few", "1", "--only", "lowest", "--lowest", "30"]
    other = tiny.pipeline(decoder=tiny.decoder(text=False), provenance={"data": source.PACKAGE})
    other.save_pretrained(tmp_path / "other")
    run(inversion, model, tmp_path / "out", *options)
    run(inversion, str(tmp_path / "other"), tmp_path / "out", *options)
    assert "0 chunks are there, 1 to compute" in capsys.readouterr().out.split("part 1 of 1")[2]


def test_numbers_of_pictures() -> None:
    a, b = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)
    assert figures.rms(a, b).item() == 0.5
    assert figures.psnr(a, a).item() == figures.BEST
    assert figures.psnr(a, b).item() == pytest.approx(20 * math.log10(255 / 64), abs=0.2)
    assert figures.spread(torch.cat([a, b, a])) == pytest.approx(1 / 3)
    found = figures.median([3.0, 1.0, 2.0, 5.0, 4.0])
    assert found == {"median": 3, "quartile 1": 2, "quartile 3": 4, "least": 1, "n": 5}


def test_shown_pictures_fit_their_cells() -> None:
    assert figures.shown(torch.zeros(3, 256, 256)).size == (figures.CELL, figures.CELL)
    assert figures.shown(torch.zeros(3, 64, 64)).size == (64, 64)
    page = figures.mosaic([[Image.new("RGB", (8, 8), "red")] * 3] * 2)
    assert page.size == (40, 28) and sheet([[page]], [["x"]]).width > 40

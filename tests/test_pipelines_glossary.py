"""What a model says of the captions that it knows: in Python, and `unclip captions`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import unclip
from experiments.emoji import ship
from unclip.cli import app
from unclip.cli.generate import _tell_unknown
from unclip.pipelines.glossary import FILE, Glossary

SHIPPED = Path(unclip.__file__).parent / "assets" / "emoji"
LINES = ["birthday cake\tbday, Geburtstagskuchen, gâteau, 蛋糕", "cake", "racing car", "red heart", "", "cat face"]


def test_search() -> None:
    glossary = Glossary(LINES)
    assert glossary.captions == ("birthday cake", "cake", "racing car", "red heart", "cat face")
    assert glossary.search("cak") == ["cake", "birthday cake"]  # the shortest first
    assert glossary.search("CAKE birth") == glossary.search("gateau") == glossary.search("🎂") == ["birthday cake"]
    assert glossary.search("red car") == [] and glossary.search("a red car", every=False) == ["red heart", "racing car"]
    assert len(glossary.search("")) == 5


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("a red car", None),
        ("please draw a nice car", None),  # one known word is enough
        ("a picture of", None),  # nothing was asked for
        ("", None),
        ("mein Geburtstagskuchen", None),
        ("一个生日蛋糕", None),  # holds a known word
        ("🎂", None),
        ("une voiture", "the model knows no word of 'une voiture': une, voiture (unclip captions WORD searches what it knows)"),
        ("a nice caek", "the model knows no word of 'a nice caek': nice, caek; near: cake ("),
        ("汽车", "the model knows no word of '汽车': 汽车 ("),
    ],
)
def test_what_no_word_is_known_of_is_told(caption: str, told: str | None) -> None:
    found = Glossary(LINES).unknown(caption)
    assert found is None if told is None else (found or "").startswith(told)


def test_each_word_has_its_nearest_before_any_has_two() -> None:
    assert Glossary(LINES).near("rasing hart", n=2) == ["racing", "heart"]


def test_the_shipped_list_is_that_of_its_training() -> None:
    assert (SHIPPED / FILE).read_text(encoding="utf-8") == ship.captions_text()
    glossary = Glossary.of("emoji")
    assert glossary is not None and len(glossary.captions) > 1800 and "red heart" in glossary.captions
    assert not [caption for caption in glossary.captions if caption.endswith(" dark skin tone") and caption.count(" ") > 2]


def test_the_command(tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, ["captions", *arguments])
        return done.exit_code, done.stdout, done.stderr

    assert run("birthday") == (0, "birthday cake\n", "")
    code, out, told = run("red", "elephant")
    assert (
        code == 0 and "elephant" in out.split() and told == "no caption of emoji has all of 'red elephant'; with one of them:\n"
    )
    assert run("hart") == (2, "", "error: no caption of emoji has 'hart'; near: heart, chart, hat\n")
    shutil.copytree(SHIPPED, tmp_path / "mine")
    (tmp_path / "mine" / FILE).unlink()
    code, _, told = run("hart", "--model", str(tmp_path / "mine"))
    assert code == 2 and "does not tell its captions: there is no captions.txt" in told
    _tell_unknown(str(tmp_path / "mine"), ["hart"])  # says nothing


def test_generate_tells_it_before_it_draws() -> None:
    with pytest.warns(UserWarning, match="knows no word of 'une voiture'") as found:
        _tell_unknown("emoji", ["red heart", "une voiture", ""])
    assert len(found) == 1

"""The README's Python runs as printed, with the shipped weights."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(SNIPPETS[number], f"README.md, snippet {number}", "exec"), names)
    if "pictures" in SNIPPETS[number]:
        assert len(list((tmp_path / "pictures").glob("*.png"))) == 4


def test_there_are_snippets_and_one_test_command():
    assert len(SNIPPETS) >= 3
    assert README.count("<!-- test command -->") == 1 and "pip install -e '.[test]' && pytest" in README


def test_files_that_the_readme_names_exist():
    for path in re.findall(r"`((?:unclip|prior|decoder|upsamplers|experiments|benchmarks)/[\w/.]+)`", README):
        assert (Path(__file__).parents[1] / path).exists(), path

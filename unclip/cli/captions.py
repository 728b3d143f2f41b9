"""`unclip captions`."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import Errors, Model


def captions(
    words: Annotated[list[str] | None, typer.Argument(help="Words, or how they begin; without one all captions.")] = None,
    model: Model = "emoji",
) -> None:
    """Search the captions that a model was trained on: what it can draw best."""
    with Errors():
        from unclip.pipelines.glossary import FILE, Glossary

        glossary = Glossary.of(model)
        if glossary is None:
            raise ValueError(f"{model} does not tell its captions: there is no {FILE} in its folder")
        matches = glossary.search(text := " ".join(words or ()))
        if not matches and (matches := glossary.search(text, every=False)):
            typer.echo(f"no caption of {model} has all of {text!r}; with one of them:", err=True)
        if not matches:
            near = ", ".join(glossary.near(text))
            raise ValueError(f"no caption of {model} has {text!r}{f'; near: {near}' if near else ''}")
        for caption in matches:
            typer.echo(caption)

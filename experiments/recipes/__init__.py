"""Recipes by name: `emoji.decoder` is the function `decoder` of `experiments/recipes/emoji.py`, which returns a `Training`."""

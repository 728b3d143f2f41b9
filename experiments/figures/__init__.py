"""The papers' figures and tables, each a module run as `python -m experiments.figures.NAME`."""

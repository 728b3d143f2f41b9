"""Recipes, data and figures of this project; not installed."""

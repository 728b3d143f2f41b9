"""Faster inference on CPUs: the same numbers by other ways."""

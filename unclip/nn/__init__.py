"""Layers and networks that several stages share."""

"""Editing pictures through the latent pair (z_i, x_T)."""

"""Numbers and pictures of the shipped model."""

"""Captioned pictures, their embeddings and their order.  Import from the files; nothing is imported here."""

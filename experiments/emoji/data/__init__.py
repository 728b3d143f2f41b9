"""The emoji: captions, pictures, splits, other wordings."""

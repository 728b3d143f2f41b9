"""The emoji: captions, pictures, splits, paraphrases."""

"""`python -m experiments.emoji.data`."""

from .emoji_data import main

if __name__ == "__main__":
    main()

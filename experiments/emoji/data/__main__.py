"""`python -m experiments.emoji.data`."""

from .command import main

if __name__ == "__main__":
    main()

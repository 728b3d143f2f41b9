"""`python -m experiments.emoji.ablations`."""

from .ablations import main

if __name__ == "__main__":
    main()

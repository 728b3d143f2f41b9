"""`python -m experiments.emoji.evaluation`."""

from .evaluate import main

if __name__ == "__main__":
    main()

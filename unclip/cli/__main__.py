"""`python -m unclip.cli`."""

from . import main

main()

"""`python -m taskorch`."""

from taskorch.cli.start import main

main()

"""`python -m taskorch`."""

from taskorch.cli import main

main()

"""`python -m taskorch`."""

from taskorch.cli.main import main

main()

"""The command line, and what it does to hosts and state folders."""

"""The running side: the pool, the kinds of work, their output, and other servers on the same file."""

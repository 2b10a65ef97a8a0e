"""The SQLite file: what it holds, how it is changed, what can be asked of it."""

"""The schema and its version: what a file must be before it is used, and how it becomes so."""

import os
import sqlite3
from importlib import resources
from pathlib import Path

from taskorch.errors import StoreError

VERSION = 1
PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",  # NORMAL loses acknowledged rows in a power cut
    "foreign_keys=ON",
    "trusted_schema=OFF",
    "temp_store=MEMORY",
    "cache_size=-16384",
    "mmap_size=0",  # an I/O error under mmap is a signal, not an error
    "journal_size_limit=67108864",
    "fullfsync=ON",  # macOS: fsync alone does not reach the platter
)


def make_private(path: Path) -> None:
    """Make folder and file for this user alone; `-wal` and `-shm` inherit the file's mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        path.chmod(0o600)


def refuse_newer(connection: sqlite3.Connection) -> int:
    """The file's version, 0 for a new one. Raises StoreError when it is newer than ours; nothing is written before."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise StoreError(
            f"The store was written by a newer taskorch (schema {version}; this one knows {VERSION}). "
            "It was left unharmed. Upgrade taskorch, or name another TASKORCH_STATE_DIR."
        )
    return version


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file up to our version, inside the caller's transaction."""
    if refuse_newer(connection) == 0:
        for statement in _statements(resources.files("taskorch").joinpath("schema.sql").read_text("utf-8")):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={VERSION}")


def _statements(script: str) -> list[str]:
    """The script's statements; `executescript` would commit the transaction we are in."""
    found: list[str] = []
    current = ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            found.append(current)
            current = ""
    return found

"""Whether the files that a server has open still bear the database's names, and what is kept when they do not.

SQLite goes on with files that somebody removed or replaced: what it writes there is found by nobody, and its locks are
seen by nobody. So each transaction looks at the names first; a look takes 10 µs.
"""

import logging
import os
import sqlite3
from pathlib import Path

from taskorch.domain.errors import StoreError, TaskError
from taskorch.storage import backup, place

log = logging.getLogger(__name__)


class Displaced(Exception):
    """A file was removed or replaced under us; nothing was changed."""


class Originals:
    """Make it while the database is open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names = [str(file) for file in place.files(path)]
        self._copy: Path | None = None
        self.renew()

    def renew(self) -> None:
        """The files that bear the names now are those that are open."""
        self._known = self._look()

    @property
    def displaced(self) -> bool:
        return self._look() != self._known

    def check(self) -> None:
        """Raise Displaced when a file is not the one that was opened."""
        if self.displaced:
            raise Displaced(f"a file of {self._path} was removed")

    def save(self, connection: sqlite3.Connection) -> None:
        """Bring what was committed to where it is found; afterwards the database may be opened anew. Blocks.

        Raises StoreError when it must not be: the database itself is gone, or is still being read.
        """
        database, wal, _ = self._look()
        if database != self._known[0]:
            kept = self._keep(connection)
            raise StoreError(
                f"The database file {self._path} was removed or replaced while the server runs. Nothing was changed; "
                f"restart the server.{f' What it held is kept in {kept}.' if kept else ''}"
            )
        if wal == self._known[1]:
            log.error("%s was removed while the server runs: it is made anew", self._names[2])
            return  # all that was committed is in the `-wal`
        log.error("%s was removed while the server runs: it is made anew", self._names[1])
        with place.held(self._path.parent):  # no server opens it meanwhile
            if self._look()[2] not in (None, self._known[2]):
                log.error("what it held may not all have been saved; a copy is %s", self._keep(connection))
            elif not place.has_wal(self._path):  # else another server has saved it, and gone on
                blocked, frames, saved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if blocked or saved < frames:
                    raise StoreError(
                        f"The file {self._names[1]} was removed while the server runs, and what it held is still being "
                        "saved. Nothing was changed; call again in a moment, and do not kill the server."
                    )

    def _keep(self, connection: sqlite3.Connection) -> Path | None:
        """A copy of what the connection still sees, made once; None when there cannot be one."""
        try:
            self._copy = self._copy or backup.rescue(connection, self._path)
        except (TaskError, OSError, sqlite3.Error) as error:
            log.error("what the database held could not be copied: %s", error)
        return self._copy

    def _look(self) -> tuple[tuple[int, int] | None, ...]:
        return tuple(map(_identity, self._names))


def _identity(name: str) -> tuple[int, int] | None:
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_dev, found.st_ino

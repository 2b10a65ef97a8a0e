"""The SQLite file for those who only look: it is neither made nor converted, and nothing is stored.

While a server has it open it is read as every file that others write to. When none has, there is no `-wal`, and opening
the file in the ordinary way would make one: then it is read as a file that stands still, once more if it did not.
"""

import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from taskorch.domain.errors import StoreError
from taskorch.storage import place, schema
from taskorch.storage.connection import store_error
from taskorch.storage.database import Database

T = TypeVar("T")

TRIES = 5  # a server that starts or stops is in between for a moment
SETTINGS = (
    "PRAGMA busy_timeout=1000",  # a reader waits only while a crashed server's WAL is recovered
    "PRAGMA trusted_schema=OFF",
)
LIVE = "SELECT status, sum(tasks) FROM counts WHERE status IN ('waiting', 'working') GROUP BY status"
READY = "SELECT count(*) FROM tasks WHERE ready = 1"

Which = tuple[int, int]  # a file: device and inode
Stand = tuple[int, ...] | None  # how a file that stands still is: time of its last change, size; None: it is shared


class NoStore(StoreError):
    """There is no database in the state folder."""


class Reader(Database):
    """A database that refuses to write; see `open_reader`. It blocks the event loop: it belongs in no server."""

    def __init__(self, path: Path) -> None:  # without the connections and the queue of one that writes
        self._path = path
        self._kept: tuple[Which, sqlite3.Connection] | None = None
        self._seen: tuple[Any, ...] = ()
        self._changes = 0

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` on one snapshot. Raises StoreError."""
        for _ in range(TRIES - 1):
            before = self._found()
            try:
                result = self._look(function, *before)
            except sqlite3.Error as error:
                if before == self._found():
                    raise store_error(error) from error
            else:
                if before[1] is None or before == self._found():
                    return result
        try:
            return self._look(function, *self._found())
        except sqlite3.Error as error:
            raise store_error(error) from error

    async def foreign_version(self) -> int:
        version = await self.read(lambda db: db.execute("PRAGMA data_version").fetchone()[0])
        if (seen := (*self._found(), version)) != self._seen:
            self._seen = seen
            self._changes += 1
        return self._changes

    def close(self) -> None:
        if self._kept is not None:
            self._kept[1].close()
            self._kept = None

    async def _put(self, function: Callable[..., Any], *items: Any) -> Any:
        raise StoreError("The store was opened only to be read. Nothing was changed.")

    def _look(self, function: Callable[[sqlite3.Connection], T], which: Which, stand: Stand) -> T:
        with self._connection(which, stand) as connection:
            connection.execute("BEGIN")
            try:
                self._refuse_other_versions(connection)
                return function(connection)
            finally:
                connection.execute("ROLLBACK")

    @contextmanager
    def _connection(self, which: Which, stand: Stand) -> Generator[sqlite3.Connection]:
        """To a shared file one that stays as long as it is that file; else one for this look alone."""
        if stand is not None or (self._kept and self._kept[0] != which):
            self.close()
        if stand is not None:
            connection = _connect(self._path, "mode=ro&immutable=1")
            try:
                yield connection
            finally:
                connection.close()
            return
        if self._kept is None:
            self._kept = which, _connect(self._path, "mode=ro")
        yield self._kept[1]

    def _found(self) -> tuple[Which, Stand]:
        """Raises StoreError."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            raise missing(self._path) from None
        except OSError as error:
            raise StoreError(f"The store {self._path} cannot be read: {error.strerror}.") from None
        shared = self._path.with_name(f"{self._path.name}-wal").exists()
        return (found.st_dev, found.st_ino), None if shared else (found.st_mtime_ns, found.st_size)

    def _refuse_other_versions(self, connection: sqlite3.Connection) -> None:
        found = schema.refuse_newer(connection)
        if found == 0:
            raise NoStore(f"The store {self._path} is empty: a server that starts fills it.")
        if found < schema.version():
            raise StoreError(
                f"The store {self._path} was written by an older taskorch (schema {found}; this one reads "
                f"{schema.version()}). It was left as it is: a server of this version that starts converts it, and "
                "keeps a copy."
            )


def depth(path: Path) -> dict[str, int] | None:
    """The `waiting`, `working` and `ready` tasks of a database that this process has open; None: it has it no more.

    From any thread: it blocks, by a connection of its own.
    """
    if not path.with_name(f"{path.name}-wal").exists():  # nobody has it open: to open it would make one
        return None
    try:
        with closing(_connect(path, "mode=ro")) as connection:
            connection.execute("BEGIN")
            return {**dict(connection.execute(LIVE)), "ready": connection.execute(READY).fetchone()[0]}
    except sqlite3.Error:  # who collects asks again
        return None


def missing(path: Path) -> NoStore:
    """What to raise where there is no database."""
    return NoStore(
        f"There is no store in {path.parent}: no task was ever created there. If your servers keep theirs elsewhere, "
        "name that folder by --state-dir or TASKORCH_STATE_DIR."
    )


@contextmanager
def open_reader(path: Path, allow_network: bool = False) -> Generator[Reader]:
    """Look into the database that is there, if one is; whether one is is seen when it is read. Raises StoreError."""
    if not allow_network:
        place.refuse_network(path.parent)
    reader = Reader(path)
    try:
        yield reader
    finally:
        reader.close()


def _connect(path: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None)
    for statement in SETTINGS:
        connection.execute(statement)
    return connection

"""The schema and its version: what a file must be before it is used, and how it becomes so."""

import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from importlib import resources
from pathlib import Path

from taskorch.domain.errors import StoreError
from taskorch.storage import backup, place
from taskorch.storage.busy import begin, patiently

Step = Callable[[sqlite3.Connection], None]

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
OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
log = logging.getLogger(__name__)


def run_script(name: str) -> Step:
    """A step of the ladder: the statements of a file of this package."""

    def run(connection: sqlite3.Connection) -> None:
        for statement in _statements(resources.files("taskorch.storage").joinpath(name).read_text("utf-8")):
            connection.execute(statement)

    return run


# Each brings a file from the version that is its place to the next.
STEPS: Sequence[Step] = (
    run_script("schema.sql"),
    *(run_script(f"migrations/{number:03}.sql") for number in range(2, 6)),
)


def version() -> int:
    """The version that this taskorch writes."""
    return len(STEPS)


def make_ready(path: Path, alone: Callable[[], bool] = lambda: False, allow_network: bool = False) -> None:
    """Make the file ours, whole and up to date, or leave it as it is. Blocks, and so belongs in a thread.

    A damaged file is moved aside when no other server is `alone` to mind, and a new one begun. Raises StoreError.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise StoreError(
            f"SQLite {sqlite3.sqlite_version} is too old; 3.37 or newer is needed. Run taskorch with a Python whose "
            "sqlite3 module brings one."
        )
    place.own_folder(path.parent, allow_network)
    with place.held(path.parent):
        place.save_orphans(path)
        place.own_file(path)
        unclean = place.has_wal(path)  # a crash, if nobody else runs: the time to look for what it broke
        try:
            if unclean and alone():
                _refuse_damaged(path)
            _bring_up(path)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise explained(path, error) from error
            if not alone():
                raise _damaged(path, error) from error
            log.error("the database was damaged (%s) and is kept as %s", error, place.set_aside(path))
            place.own_file(path)
            _bring_up(path)


def refuse_newer(connection: sqlite3.Connection) -> int:
    """The file's version, 0 for a new one. Raises StoreError when it is newer than ours; nothing is written before."""
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > version():
        raise StoreError(
            f"The store was written by a newer taskorch (schema {found}; this one knows {version()}). "
            "It was left unharmed. Upgrade taskorch, or name another TASKORCH_STATE_DIR."
        )
    return found


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file up to our version, step by step, inside the caller's transaction: all of it or nothing."""
    for number in range(refuse_newer(connection), version()):
        STEPS[number](connection)
        connection.execute(f"PRAGMA user_version={number + 1}")


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file is no database, or a broken one."""
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def explained(path: Path, error: sqlite3.Error) -> StoreError:
    """What keeps the file from being opened, and what to do about it."""
    match _code(error):
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
            text = f"cannot be written ({error}). Make it and its folder writable for you, or name another"
        case sqlite3.SQLITE_FULL:
            text = "cannot be opened: its disk is full. Free some space, or name another"
        case sqlite3.SQLITE_IOERR:  # what a full disk says of the -shm file
            text = f"cannot be opened ({error}): its disk is full or failing. See the system's log, or name another"
        case _:
            text = f"cannot be opened ({error}). `taskorch doctor` looks into it; or name another"
    return StoreError(f"The store {path} {text} TASKORCH_STATE_DIR.")


def _refuse_damaged(path: Path) -> None:
    """Raise sqlite3.DatabaseError for a broken structure. Reads only: else closing merges the `-wal` into the file."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=0)) as connection:
        patiently(connection, partial(refuse_newer, connection))
        if found := backup.damage(connection):
            error = sqlite3.DatabaseError(found)
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error


def _bring_up(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        patiently(connection, partial(refuse_newer, connection))
        set_up(connection)
        before = refuse_newer(connection)
        if 0 < before < version():
            backup.before_migration(connection, path, before)
        begin(connection)
        try:
            migrate(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def set_up(connection: sqlite3.Connection) -> None:
    """How each connection that writes must behave."""
    for pragma in PRAGMAS:
        patiently(connection, partial(connection.execute, f"PRAGMA {pragma}"))


def _damaged(path: Path, error: sqlite3.Error) -> StoreError:
    return StoreError(
        f"The database file {path} is damaged ({error}). It was left as it is, because another server may use it. Stop "
        "all taskorch servers and start one: it moves the file aside, deletes nothing, and begins an empty one. "
        f"Backups are in {path.parent / backup.FOLDER}."
    )


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code, 0 where Python raised the error by itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


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

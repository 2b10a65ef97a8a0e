"""Copies of the database that are whole, made while servers run."""

import os
import sqlite3
import stat
import time
from contextlib import closing, suppress
from pathlib import Path

from taskorch.domain.errors import StoreError
from taskorch.storage import place
from taskorch.storage.busy import patiently

FOLDER = "backups"
KEPT = 3  # automatic copies; those that were asked for are never removed
BEFORE = "before-migration-from-"
NO_DAMAGE = ("ok", "CHECK constraint failed", "NULL value in")  # what quick_check says of files that are whole


def backup_database(database: Path, target: Path | None = None) -> Path:
    """Copy the database to `target`, or to backups/taskorch-<UTC time>.db beside it; the copy's path. Blocks.

    Servers go on meanwhile; the copy is the state of one moment. Raises StoreError.
    """
    if not database.exists():
        raise StoreError(
            f"There is no database at {database}, so there is nothing to copy. Name the folder that your server uses "
            "with TASKORCH_STATE_DIR."
        )
    target = target or _new_name(_folder(database), "")
    try:
        with closing(_open(database)) as connection:
            copy(connection, target)
    except sqlite3.Error as error:
        raise StoreError(f"The database {database} could not be copied: {error}. Nothing was left behind.") from error
    return target


def before_migration(connection: sqlite3.Connection, database: Path, version: int) -> Path:
    """Keep what a file of that version holds, and only the newest three such copies. Raises StoreError."""
    folder = _folder(database)
    _sweep(folder)
    target = _new_name(folder, f"-{BEFORE}{version}")
    try:
        copy(connection, target)
    except (sqlite3.Error, StoreError) as error:
        raise StoreError(
            f"The store was written by an older taskorch (schema {version}) and was left as it is, because it could "
            f"not be copied before it is converted: {str(error).rstrip('.')}. Free space in {folder}, and start again."
        ) from error
    for old in automatic(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return target


def rescue(connection: sqlite3.Connection, database: Path) -> Path:
    """Keep what an open connection still sees of a database that was removed. Raises StoreError, sqlite3.Error."""
    target = _new_name(_folder(database), "-rescued")
    copy(connection, target)
    return target


def automatic(folder: Path) -> list[Path]:
    """The copies made before conversions, oldest first."""
    return sorted(folder.glob(f"taskorch-*-{BEFORE}*.db"), key=lambda path: (path.stat().st_mtime_ns, path.name))


def copy(connection: sqlite3.Connection, target: Path) -> None:
    """Write what the connection sees to a new file (0600), complete or not at all.

    Raises StoreError when the file exists or cannot be written, sqlite3.Error when the database cannot be read.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600))  # nobody else's from now
    except FileExistsError:
        raise StoreError(f"{target} exists already and was left as it is. Name another file.") from None
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror}. Name a file in a folder of yours.") from error
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600))
        patiently(connection, lambda: connection.execute("VACUUM INTO ?", (str(part),)))
        _check(part)
        _to_disk(part)
        part.replace(target)
        place.sync_folder(target.parent)
    except BaseException as error:
        for name in (part, target):
            with suppress(OSError):
                name.unlink()
        if isinstance(error, OSError):
            raise StoreError(f"{target} cannot be written: {error.strerror}. Name another file.") from error
        raise


def damage(connection: sqlite3.Connection) -> str | None:
    """What is wrong with the file's structure, None when it is whole. Reads all of it: about 1 s a GiB."""
    said = [row[0] for row in connection.execute("PRAGMA quick_check(10)")]
    return next((line for line in said if not line.startswith(NO_DAMAGE)), None)


def _new_name(folder: Path, ending: str) -> Path:
    moment = time.time()
    while (path := folder / f"taskorch-{place.utc(moment)}{ending}.db").exists():
        moment += 1
    return path


def _sweep(folder: Path) -> None:
    """Remove what a copy left that was killed: an empty file that kept the name, and the part beside it."""
    for part in folder.glob(".taskorch-*.part"):
        target, pid = part.name[1:].removesuffix(".part").rsplit(".", 1)
        if pid.isdecimal() and not _runs(int(pid)):
            part.unlink(missing_ok=True)
            if (folder / target).exists() and not (folder / target).stat().st_size:
                (folder / target).unlink()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _folder(database: Path) -> Path:
    folder = database.parent / FOLDER
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise StoreError(f"The folder {folder} cannot be made: {error.strerror}. Name a file for the copy.") from error
    return folder


def _open(database: Path) -> sqlite3.Connection:
    """Not to be made if it is gone meanwhile, nor changed."""
    connection = sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=0)
    connection.execute("PRAGMA trusted_schema=OFF")
    return connection


def _check(part: Path) -> None:
    """Raises StoreError for a copy that nobody could use."""
    with closing(sqlite3.connect(f"{part.as_uri()}?mode=ro", uri=True, isolation_level=None)) as connection:
        said = damage(connection)
    if said:
        raise StoreError(f"The database is damaged: its copy says {said!r}. `taskorch doctor` tells more.")


def _to_disk(part: Path) -> None:
    """VACUUM INTO does not sync. No connection has this file open any more."""
    fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

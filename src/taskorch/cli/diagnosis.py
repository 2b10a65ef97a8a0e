"""What a state folder tells from outside: the database, the servers on it, supervisors.

Nothing is changed. SQLite is asked read-only, and `-wal` and `-shm` are never opened here: closing such a descriptor
drops this process's locks.
"""

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskorch.storage import backup, schema
from taskorch.work import peers, supervised

WAL_HEADER = 2  # in byte 18 of the file
SERVERS = "SELECT uuid, pid, started_at, version FROM servers"


@dataclass(slots=True)
class Store:
    """A database as it was found; `problem` and `mend` when it cannot be used."""

    exists: bool = False
    version: int = 0
    bytes: int = 0
    journal_mode: str = ""
    left_wal: bool = False
    in_use: bool = False
    problem: str = ""
    mend: str = ""
    servers: dict[str, tuple[int, int, str]] = field(default_factory=dict[str, tuple[int, int, str]])


@dataclass(frozen=True, slots=True)
class Server:
    """A server process: age in seconds and version where the database knows them."""

    pid: int
    alive: bool
    age: float | None
    version: str
    elsewhere: bool = False  # on another machine: whether it lives cannot be told from here

    def __str__(self) -> str:
        of = f", taskorch {self.version}" if self.version else ""
        since = f", {_span(self.age)} old" if self.age is not None else ""
        return f"pid {self.pid}{of}{since}{' on another machine' if self.elsewhere else ''}"


def look(path: Path) -> Store:
    """Read the database: its version, mode, integrity and the servers that it notes."""
    store = Store(exists=path.exists())
    if not store.exists:
        return store
    try:
        store.bytes = path.stat().st_size
        store.left_wal = path.with_name(f"{path.name}-wal").exists()
        _read(path, store)
    except (OSError, sqlite3.Error) as error:
        damaged = isinstance(error, sqlite3.Error) and schema.is_damage(error)
        _fail(store, f"{path} {'is damaged' if damaged else 'cannot be read'}: {error}", damaged)
    return store


def servers(folder: Path, store: Store) -> list[Server]:
    """Those that the database notes or that left a lock file; notes in `store` whether one is alive."""
    probe = peers.Peers(folder)
    found: list[Server] = []
    for uuid in sorted({path.stem for path in folder.glob("*.lock")} | store.servers.keys()):
        pid, started_at, version = store.servers.get(uuid, (0, 0, ""))
        record = peers.read(folder / f"{uuid}.lock")
        age = max(0.0, time.time() - started_at / 1000) if started_at else None
        alive = not probe.is_dead(uuid, pid, started_at)
        elsewhere = record is not None and record.is_foreign
        found.append(Server(pid or (record.pid if record else 0), alive, age, version, elsewhere))
    store.in_use = any(server.alive for server in found)
    return found


def shims(output: Path) -> list[str]:
    """The commands that run now, whether or not a server does."""
    found = ((lock.parent, supervised.holder(lock.parent)) for lock in sorted(output.glob("*/*/shim.lock")))
    return [f"task {f.parent.name}, attempt {f.name}, pid {pid}" for f, pid in found if pid is not None]


def _read(path: Path, store: Store) -> None:
    # Without a `-wal` nobody has it open; then read-only would make one, and `immutable` makes none.
    if not store.left_wal:
        with path.open("rb") as file:
            header = file.read(20)
        store.journal_mode = "wal" if not header or header[18:19] == bytes([WAL_HEADER]) else "rollback"
    how = "mode=ro" if store.left_wal else "mode=ro&immutable=1"
    with closing(sqlite3.connect(f"{path.as_uri()}?{how}", uri=True, isolation_level=None, timeout=1)) as connection:
        connection.execute("PRAGMA trusted_schema=OFF")
        store.version = connection.execute("PRAGMA user_version").fetchone()[0]
        if store.version > schema.version():
            _newer(store)
        if store.left_wal:
            store.journal_mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        if found := backup.damage(connection):
            _fail(store, f"{path} is damaged: {found}", damaged=True)
        if store.version and not store.problem:
            rows: list[tuple[Any, ...]] = connection.execute(SERVERS).fetchall()
            store.servers = {uuid: (pid, started_at, version) for uuid, pid, started_at, version in rows}


def _newer(store: Store) -> None:
    store.problem = f"written by a newer taskorch (schema {store.version}; this one knows {schema.version()})"
    store.mend = "Upgrade taskorch, or set another TASKORCH_STATE_DIR."


def _fail(store: Store, problem: str, damaged: bool) -> None:
    store.problem = problem
    if damaged:
        store.mend = (
            "Stop all servers and start one: it moves the file aside, deletes nothing, and begins an empty one. A file "
            f"of {backup.FOLDER}/ can be put in its place instead."
        )
    else:
        store.mend = "See to it that the file is yours and can be read (ls -l), or set another TASKORCH_STATE_DIR."


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"

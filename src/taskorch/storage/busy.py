"""Waiting while another process holds SQLite's lock: on the connection's own thread, with a deadline, and who it is."""

import os
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from taskorch.domain.errors import StoreError

BUSY_SECONDS = 10.0  # how long before it gives up
LOCKS = Path("/proc/locks")
WRITE_LOCK = 120  # the byte of the `-shm` file that stands for SQLite's write lock in WAL mode
STOPPED = (b"T", b"t")  # by a signal, by a debugger


class Busy(StoreError):
    """Another process was in the way for too long; nothing was changed."""


def begin(
    connection: sqlite3.Connection, stopping: Callable[[], bool] = lambda: False, until: float | None = None
) -> None:
    """BEGIN IMMEDIATE. Raises Busy: see `patiently`."""
    patiently(connection, lambda: connection.execute("BEGIN IMMEDIATE"), stopping, until)


def patiently(
    connection: sqlite3.Connection,
    step: Callable[[], object],
    stopping: Callable[[], bool] = lambda: False,
    until: float | None = None,
) -> None:
    """Take a step on the connection until no other process is in its way, with a flat, jittered pause.

    SQLite's own pause grows, which starves one of several writers. Raises Busy after 10 s (or at `until`, by the
    monotonic clock), or as soon as `stopping` says so.
    """
    until = until or deadline()
    while True:
        try:
            step()
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error):
                raise
        if stopping() or time.monotonic() >= until:
            raise Busy(f"The store is busy: {_reason(connection)}")
        time.sleep(0.001 + 0.004 * random.random())  # on the connection's own thread; nothing tells of a freed lock


def deadline() -> float:
    """When somebody who begins to wait now gives up, by the monotonic clock."""
    return time.monotonic() + BUSY_SECONDS


def lock_holder(path: Path, locks: Path = LOCKS) -> int | None:
    """The pid that holds a database's write lock, 0 or less if it lives in another container; None: nobody, or unknown.

    The `-shm` file is not opened: closing it would drop this process's locks.
    """
    try:
        inode = path.with_name(f"{path.name}-shm").stat().st_ino
        lines = locks.read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(words[4]) for words in map(str.split, lines) if _is_write_lock(words, inode)), None)


def is_stopped(pid: int) -> bool:
    """Whether a process was halted (SIGSTOP, Ctrl-Z, a debugger); False where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in STOPPED
    except (OSError, IndexError):
        return False


def _reason(connection: sqlite3.Connection) -> str:
    """Who is in the way, and what to do about it."""
    path: str = connection.execute("PRAGMA database_list").fetchone()[2]  # takes no lock
    pid = lock_holder(Path(path))
    if pid is None or pid == os.getpid():
        return "another process holds its write lock. Nothing was changed; call again in a moment."
    if pid <= 0:
        return (
            "a process of another container holds its write lock. Nothing was changed; call again in a moment. If it "
            "stays so, end the taskorch of that container."
        )
    if is_stopped(pid):
        return (
            f"process {pid} holds its write lock and is stopped. Nothing was changed. Resume that process "
            f"(kill -CONT {pid}) or end it (kill -KILL {pid}); then call again."
        )
    return (
        f"process {pid} holds its write lock. Nothing was changed; call again in a moment. If it stays so, end that "
        f"process (kill {pid})."
    )


def _is_write_lock(words: list[str], inode: int) -> bool:
    """`1: POSIX ADVISORY WRITE pid major:minor:inode first last`. Some file systems tell another device in `stat`."""
    if len(words) != 8 or words[1] != "POSIX" or words[3] != "WRITE" or not words[5].endswith(f":{inode}"):
        return False
    return int(words[6]) <= WRITE_LOCK and (words[7] == "EOF" or int(words[7]) >= WRITE_LOCK)


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

"""Waiting while another process holds SQLite's lock: on the connection's own thread, with a deadline."""

import random
import sqlite3
import time
from collections.abc import Callable

from taskorch.errors import StoreError

BUSY_SECONDS = 10.0  # how long before it gives up


def begin(connection: sqlite3.Connection, stopping: Callable[[], bool] = lambda: False) -> None:
    """BEGIN IMMEDIATE. Raises StoreError after 10 s, or as soon as `stopping` says so."""
    patiently(lambda: connection.execute("BEGIN IMMEDIATE"), stopping)


def patiently(step: Callable[[], object], stopping: Callable[[], bool] = lambda: False) -> None:
    """Take a step until no other process is in its way, with a flat, jittered pause.

    SQLite's own pause grows, which starves one of several writers. Raises StoreError after 10 s, or when `stopping`.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            step()
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error):
                raise
        if stopping() or time.monotonic() > deadline:
            raise StoreError(
                "The store is busy: another process holds its write lock. Nothing was changed; call again in a moment."
            )
        time.sleep(0.001 + 0.004 * random.random())  # on the connection's own thread; nothing tells of a freed lock


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

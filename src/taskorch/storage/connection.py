"""aiosqlite, in one place: a connection and its thread, and a function run there in one hop."""

import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import aiosqlite
import anyio

from taskorch.domain.errors import StoreError, TaskError

T = TypeVar("T")


async def hop(opened: aiosqlite.Connection, function: Callable[..., T], *args: Any) -> T:
    """Run function(raw connection, *args) on the connection's thread. The one use of aiosqlite's private executor.

    Raises StoreError for what SQLite refuses.
    """
    run = cast(Any, opened)._execute
    try:
        return cast(T, await run(function, opened._conn, *args))  # pyright: ignore[reportPrivateUsage]
    except sqlite3.Error as error:
        raise store_error(error) from error


@asynccontextmanager
async def connection(path: Path, factory: type[sqlite3.Connection]) -> AsyncGenerator[aiosqlite.Connection]:
    """Open a connection with a thread of its own, and close it for certain. Raises StoreError."""
    try:
        opened = await aiosqlite.connect(path, **_options(factory))
    except sqlite3.Error as error:
        raise store_error(error) from error
    try:
        yield opened
    finally:
        with anyio.CancelScope(shield=True):  # its thread is no daemon: left open, the process would never end
            await opened.close()


async def close(opened: aiosqlite.Connection) -> None:
    """Close its file, but not its thread: `reopen` it there. Raises StoreError."""
    await hop(opened, sqlite3.Connection.close)


async def reopen(opened: aiosqlite.Connection, path: Path, factory: type[sqlite3.Connection]) -> None:
    """Open its file again, by its name. Raises StoreError."""

    def replace(_: sqlite3.Connection) -> None:
        cast(Any, opened)._connection = sqlite3.connect(path, **_options(factory))

    await hop(opened, replace)


def _options(factory: type[sqlite3.Connection]) -> dict[str, Any]:
    return {"isolation_level": None, "timeout": 0, "cached_statements": 256, "factory": factory}


def store_error(error: BaseException) -> TaskError:
    """What the caller is told of a failure of the file."""
    if isinstance(error, TaskError):
        return error
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            text = (
                "The disk that holds the state folder is full. Nothing was changed. Free some space on it, then call "
                "again: the server need not be restarted."
            )
        case sqlite3.SQLITE_IOERR:
            text = (
                f"The store cannot be read or written ({error}): the disk that holds the state folder is full or "
                "failing. Nothing was changed. Free some space on it, or see the system's log; then call again."
            )
        case _:
            text = f"The store failed: {error}. Nothing was changed; see the server's log and the state folder."
    return StoreError(text)

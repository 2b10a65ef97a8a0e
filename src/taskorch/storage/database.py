"""The SQLite file: one write connection with group commit, one read connection, and the schema's version.

A transaction is one synchronous function that runs in one hop on aiosqlite's thread. No await ever stands between
BEGIN and COMMIT, so a cancelled caller cannot leave a transaction open, and callers that come together share a commit.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import aiosqlite
import anyio
import anyio.to_thread

from taskorch.domain.errors import StoreError
from taskorch.storage import schema
from taskorch.storage.busy import Busy, begin, deadline, patiently
from taskorch.storage.connection import close, connection, hop, reopen, store_error
from taskorch.storage.originals import Displaced, Originals

T = TypeVar("T")
Item = TypeVar("Item")
Done = tuple[list[Any], list[Callable[[], None]]]  # of a transaction: what it changed, and what is to be called
NOTHING: Done = ([], [])
log = logging.getLogger(__name__)


class Transaction(sqlite3.Connection):
    """What a transaction function gets: the connection, and lists of what it did.

    `changed` is told to listeners after the commit; `moved` is what `before_commit` goes by. `afterwards` is called in
    the event loop, once all of it is on disk.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.changed: list[Any] = []
        self.moved: list[Any] = []
        self.afterwards: list[Callable[[], None]] = []


@dataclass(slots=True, eq=False)
class _Write:
    function: Callable[..., Any]
    items: tuple[Any, ...]  # of a write that goes together with others of its function: one
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None
    until: float = field(default_factory=deadline)  # then its caller has waited long enough for other processes


class Database:
    """Open it with `open_database`.

    `before_commit` runs inside each transaction that moved something, last. In the event loop, when that is on disk,
    `on_commit` is called with what was changed, and each of `on_moves` with the moves, in their order.
    """

    def __init__(self, path: Path, writer: aiosqlite.Connection, reader: aiosqlite.Connection) -> None:
        self._path = path
        self._originals = Originals(path)
        self._is_closed = False
        self.before_commit: Callable[[Transaction], None] = _ignore
        self.on_commit: Callable[[list[Any]], None] = _ignore
        self.on_moves: list[Callable[[list[Any]], None]] = []
        self._writer = writer
        self._reader = reader
        self._queue: list[_Write] = []
        self._bell = asyncio.Event()
        self._closing = False

    async def write(self, function: Callable[[Transaction], T]) -> T:
        """Run `function` in a transaction and return its result once that is on disk.

        What it raises undoes its own changes alone and is raised here. A cancelled caller does not withdraw it: the
        change may be made or not, but never half. Raises StoreError when the file is busy for 10 s, full or broken.
        """
        return await self._put(function)

    async def write_together(self, function: Callable[[Transaction, Sequence[Item]], Sequence[T]], item: Item) -> T:
        """Like `write`; the function gets the items of all callers that come together, and gives a result for each.

        If it raises, it is called again with each item by itself.
        """
        return await self._put(function, item)

    async def _put(self, function: Callable[..., Any], *items: Any) -> Any:
        if self._closing:
            raise StoreError("The store is closing. Nothing was changed; call again when the server runs.")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append(_Write(function, items, future))
        self._bell.set()
        return await future

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` on the read connection, in one hop; it never waits for writers. Raises StoreError."""
        if self._is_closed:  # between the files that somebody removed and the new ones
            await self.write(_nothing)
        return cast(T, await hop(self._reader, _read, function))

    async def foreign_version(self) -> int:
        """A number that changes when another process has committed (own commits do not count)."""
        if self._is_closed or self._originals.displaced:  # noticed soon where nobody writes, too
            await self.write(_nothing)
        return await hop(self._writer, _data_version)

    async def serve(self) -> None:
        """The writer: takes all that is queued, commits it together, answers each caller. Ends after `close`."""
        with anyio.CancelScope(shield=True):  # a batch whose callers wait is never dropped
            while not (self._closing and not self._queue):
                if not self._queue:
                    self._bell.clear()
                    await self._bell.wait()
                    continue
                batch, self._queue = self._queue, []
                changed, afterwards = await self._commit(batch)
                for write in batch:
                    _answer(write)
                for call in (*afterwards, partial(self.on_commit, changed)) if changed else afterwards:
                    _call(call)

    def close(self) -> None:
        """Let the writer end once the queue is empty."""
        self._closing = True
        self._bell.set()

    async def _commit(self, batch: list[_Write]) -> Done:
        try:
            try:
                if self._is_closed:
                    await self._open_anew()
                return await hop(self._writer, self._run, batch)
            except Displaced:
                await self._open_anew()
                return await hop(self._writer, self._run, batch)
        except Exception as error:
            if isinstance(error, Busy) and not self._closing:
                now = time.monotonic()  # what came while the first of them waited has more time
                self._queue[:0] = [write for write in batch[1:] if write.until > now]
                batch[1:] = [write for write in batch[1:] if write.until <= now]
            failure = store_error(error)
            for write in batch:
                write.error = failure
            return NOTHING

    def _run(self, tx: Transaction, batch: list[_Write]) -> Done:
        """On the connection's thread: one BEGIN, all functions, one COMMIT.

        If one of them is refused, all is undone and done once more, each in a savepoint, which costs two statements.
        """
        try:
            return self._transact(tx, batch, _all)
        except _Refused as refused:
            if len(batch) > 1:
                return self._transact(tx, batch, _each)
            batch[0].error = _refusal(refused.reason)
            return NOTHING

    def _transact(self, tx: Transaction, batch: list[_Write], do: Callable[[Transaction, list[_Write]], None]) -> Done:
        tx.changed, tx.moved, tx.afterwards = [], [], []
        begin(tx, lambda: self._closing, batch[0].until)
        try:
            self._originals.check()
            schema.refuse_newer(tx)  # a newer taskorch may have converted the file under us
            do(tx, batch)
            if tx.moved:
                self.before_commit(tx)
                tx.afterwards += [partial(told, tx.moved) for told in self.on_moves]
            tx.execute("COMMIT")
        except BaseException:
            if tx.in_transaction:  # a full disk or an I/O error may have rolled back already
                tx.execute("ROLLBACK")
            raise
        return tx.changed, tx.afterwards

    async def _open_anew(self) -> None:
        """Somebody removed a file that is open: save what was committed, and go on with the files of those names."""
        if not self._is_closed:
            await hop(self._writer, self._originals.save)
        self._is_closed = True  # if this fails: the next write tries again
        await close(self._reader)
        await close(self._writer)
        for opened, prepare in ((self._writer, _prepare), (self._reader, _prepare_reader)):
            await reopen(opened, self._path, Transaction)
            await hop(opened, prepare)
        self._originals.renew()
        self._is_closed = False


class _Refused(Exception):
    """A function of a batch raised."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(reason)
        self.reason = reason


@asynccontextmanager
async def open_database(
    path: Path, alone: Callable[[], bool] = lambda: False, allow_network: bool = False
) -> AsyncGenerator[Database]:
    """Open (or make) the file, bring its schema up to date, serve it until the block ends, then close both connections.

    A damaged file is moved aside if `alone` says that no other server runs. `allow_network`: also on a network file
    system. Raises StoreError when the file is newer than this version, damaged, or cannot be opened.
    """
    await anyio.to_thread.run_sync(schema.make_ready, path, alone, allow_network)
    async with connection(path, Transaction) as writer:
        await hop(writer, _prepare)
        async with connection(path, Transaction) as reader:
            await hop(reader, _prepare_reader)
            database = Database(path, writer, reader)
            async with anyio.create_task_group() as group:
                group.start_soon(database.serve)
                try:
                    yield database
                finally:
                    database.close()


def _all(tx: Transaction, batch: list[_Write]) -> None:
    """Once for each function that callers share. Raises _Refused."""
    shared: dict[Callable[..., Any], list[_Write]] = {}
    try:
        for write in batch:
            if write.items:
                shared.setdefault(write.function, []).append(write)
            else:
                write.result = write.function(tx)
        for function, writes in shared.items():
            results = function(tx, [item for write in writes for item in write.items])
            for write, result in zip(writes, results, strict=True):
                write.result = result
    except Exception as error:
        raise _Refused(error) from error


def _each(tx: Transaction, batch: list[_Write]) -> None:
    """Each for itself: what one raises undoes its own changes alone."""
    for write in batch:
        told, moved, after = len(tx.changed), len(tx.moved), len(tx.afterwards)
        tx.execute("SAVEPOINT one")
        try:
            write.result = write.function(tx, write.items)[0] if write.items else write.function(tx)
        except Exception as error:
            if not tx.in_transaction:  # SQLite has rolled back everything: no neighbour can be kept
                raise
            tx.execute("ROLLBACK TO one")
            write.error = _refusal(error)
            del tx.changed[told:], tx.moved[moved:], tx.afterwards[after:]
        tx.execute("RELEASE one")


def _refusal(error: Exception) -> Exception:
    return store_error(error) if isinstance(error, sqlite3.Error) else error


def _call(listener: Callable[[], None]) -> None:
    try:
        listener()
    except Exception:  # a broken listener must not end the writer
        log.exception("a listener failed")


def _answer(write: _Write) -> None:
    if write.future.done():  # the caller was cancelled; the change stands
        return
    if write.error is not None:
        write.future.set_exception(write.error)
    else:
        write.future.set_result(write.result)


def _prepare(connection: sqlite3.Connection) -> None:
    patiently(connection, lambda: schema.refuse_newer(connection))
    schema.set_up(connection)


def _prepare_reader(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA query_only=ON")
    connection.execute("PRAGMA busy_timeout=1000")  # a reader waits only while a crashed server's WAL is recovered
    connection.execute("PRAGMA trusted_schema=OFF")


def _read(connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """One snapshot for all of the function's statements."""
    connection.execute("BEGIN")
    try:
        return function(connection)
    finally:
        connection.execute("ROLLBACK")


def _data_version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA data_version").fetchone()[0]


def _ignore(_: Any) -> None:
    """Nobody listens."""


def _nothing(_: Transaction) -> None:
    """A transaction that only looks whether one can be made."""

"""Servers on one file, in one event loop, for tests that are not coroutines; and all that the file holds."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal
from fakes import Clock
from twin import LIMITS, Row

from taskorch.domain.task import Error
from taskorch.storage.database import Database, open_database
from taskorch.storage.outside import OutsideStore
from taskorch.storage.rows import SELECT, from_row
from taskorch.storage.store import Store

KINDS = ("echo", "sleep")


class World:
    """Two connections to one file in one event loop, and the owner numbers of the servers on them."""

    def __init__(self, portal: BlockingPortal, databases: Sequence[Database]) -> None:
        self.clock = Clock()
        self._portal = portal
        self._databases = databases
        self.stores = [Store(database, self.clock, limits=LIMITS) for database in databases]
        self.desks = [OutsideStore(database, self.clock, LIMITS) for database in databases]
        self.owners = [self.run(store.register, str(n), n, "1", KINDS) for n, store in enumerate(self.stores)]

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return self._portal.call(call, *arguments)

    def read(self, query: Callable[[sqlite3.Connection], Any]) -> Any:
        return self.run(self._databases[0].read, query)

    def clear(self) -> None:
        """Nothing is left of the run before, neither in the file nor in the stores."""
        self.clock.now = Clock().now
        self.run(self._databases[0].write, lambda tx: tx.execute("DELETE FROM tasks"))
        self.run(self._databases[0].write, lambda tx: tx.execute("UPDATE counts SET tasks = 0"))
        self.run(self._databases[0].write, lambda tx: tx.execute("DELETE FROM removed"))
        self.stores = [Store(database, self.clock, limits=LIMITS) for database in self._databases]


@contextmanager
def opened(path: Path, servers: int) -> Iterator[World]:
    with start_blocking_portal() as portal, ExitStack() as stack:
        databases = [portal.wrap_async_context_manager(open_database(path)) for _ in range(servers)]
        yield World(portal, [stack.enter_context(database) for database in databases])


def everything(db: sqlite3.Connection) -> tuple[dict[str, Row], dict[int, Any], dict[int, Any], dict[Any, int]]:
    """All rows by id (of an error its reason alone), the attempts and events of each, and the counts."""
    starts, events = dict[int, Any](), dict[int, Any]()
    for seq, *start in db.execute("SELECT task, attempt, owner, outcome, reason FROM attempts ORDER BY 1, 2"):
        starts.setdefault(seq, []).append(start)
    for seq, event in db.execute("SELECT task, event FROM events ORDER BY id"):
        events.setdefault(seq, []).append(event)
    counts = {(status, priority): n for status, priority, n in db.execute("SELECT * FROM counts WHERE tasks <> 0")}
    return {row["id"]: row for row in map(_as_row, db.execute(SELECT))}, starts, events, counts


def _as_row(values: Sequence[Any]) -> Row:
    row = dict(vars(from_row(values)))
    error: Error | None = row["error"]
    return row | {"status": str(row["status"]), "error": error and str(error.reason)}

"""A pool under test: a real store, workers on it, and handlers that say where they are."""

import io
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import anyio
from fakes import Clock

from taskorch import logs
from taskorch.domain.task import NewTask, Outcome, Status, Task
from taskorch.storage.database import open_database
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store
from taskorch.work.attempt import Attempt, Remains
from taskorch.work.handlers import Handler
from taskorch.work.peers import Peers
from taskorch.work.worker import Worker

Payload = dict[str, Any]


class Pool:
    """A store, the workers on it, and what a test asks of them."""

    def __init__(self, store: Store, queries: Queries, clock: Clock, folder: Path) -> None:
        self.store = store
        self.queries = queries
        self.clock = clock
        self.folder = folder

    @asynccontextmanager
    async def running(
        self, slots: int = 2, *, others: Any = None, room: Callable[[], bool] = lambda: True, **kinds: Any
    ) -> AsyncIterator[Worker]:
        """A worker with handlers (functions or kinds) until the block ends; then it has stopped in good order."""
        known = {name: kind if hasattr(kind, "run") else Handler(kind) for name, kind in kinds.items()}
        with Peers(self.folder / "servers") as peers:
            owner = await self.store.register(peers.uuid, os.getpid(), "0", sorted(known))
            pool = Worker(self.store, peers, owner, known, slots, others, room)
            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    await group.start(pool.run)
                    try:
                        yield pool
                    finally:
                        pool.stop()
            await self.store.leave(owner)

    async def add(self, kind: str = "work", payload: Payload | None = None, **fields: Any) -> Task:
        fields = {"max_attempts": 3, "timeout_seconds": 60} | fields
        return await self.store.add(NewTask(kind, payload or {}, **fields))

    async def get(self, task: Task) -> Task:
        return await self.queries.get(task.id)

    async def seen(self, task: Task, wanted: Callable[[Task], bool]) -> Task:
        """The task as soon as `wanted` holds for it."""
        changed = anyio.Event()
        with self.store.listening(lambda _: changed.set()), anyio.fail_after(5):
            while not wanted(found := await self.get(task)):
                await changed.wait()
                changed = anyio.Event()
        return found

    async def ended(self, task: Task) -> Task:
        return await self.seen(task, lambda task: task.ended)

    async def backing_off(self, task: Task) -> Task:
        return await self.seen(task, lambda task: task.status is Status.WAITING and task.attempt > 0)

    async def pass_backoff(self) -> None:
        self.clock.advance(300)
        await self.store.promote()

    async def attempts(self, task: Task) -> list[tuple[int, str, str | None]]:
        history = await self.queries.history(task)
        return [(row["attempt"], row["outcome"], row["reason"]) for row in history.attempts]

    async def held(self) -> list[Task]:
        peers = await self.store.others(0)
        return [task for peer in peers for task in await self.store.held_by(peer.owner)]


class Gate:
    """A handler that says that it has begun, and goes on when it is let."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.open = anyio.Event()

    async def __call__(self, payload: Payload) -> Any:
        self.begun.set()
        await self.open.wait()
        return payload.get("result", "done")

    @property
    def kind(self) -> Handler:
        async def gate(payload: Payload) -> Any:
            return await self(payload)

        return Handler(gate)


class Loose:
    """A kind like a command that outlives its server: when the gate opens it lets go, and nothing is settled."""

    in_process = False
    max_attempts = 1

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.open = anyio.Event()

    def check(self, payload: Mapping[str, Any]) -> None: ...

    async def inspect(self, task: Task) -> Remains:
        return Remains.UNKNOWN

    async def run(self, attempt: Attempt) -> Outcome | None:
        self.begun.set()
        await self.open.wait()
        return None


class Told(logging.Handler):
    """The worker's log lines, and an event for each new one."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._news = anyio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._news.set()

    async def line(self, part: str) -> str:
        with anyio.fail_after(5):
            while not (found := [line for line in self.lines if part in line]):
                self._news = anyio.Event()
                await self._news.wait()
        return found[0]


@asynccontextmanager
async def other_process(folder: Path, clock: Clock) -> AsyncIterator[Store]:
    """A second store on the same file: what another server does is not told to this one."""
    async with open_database(folder / "state" / "taskorch.db") as database:
        yield Store(database, clock)


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Another process that holds the write lock, as a stopped one may."""
    connection = sqlite3.connect(folder / "state" / "taskorch.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


async def ok(payload: Payload) -> Any:
    return payload


async def broken(payload: Payload) -> Any:
    raise ValueError(payload.get("text", "as the test wants it"))


@contextmanager
def written_log(form: str = "text") -> Iterator[io.StringIO]:
    """What a server's log writes to stderr while the block lasts, from DEBUG on."""
    written, root = io.StringIO(), logging.getLogger()
    kept, level = root.handlers[:], root.level
    root.handlers[:] = []
    with redirect_stderr(written):
        logs.start("DEBUG", form)
    try:
        yield written
    finally:
        root.handlers[:] = kept
        root.setLevel(level)


@contextmanager
def log_lines() -> Iterator[Told]:
    """What the worker logs while the block lasts."""
    handler = Told()
    log = logging.getLogger("taskorch")
    log.addHandler(handler)
    try:
        yield handler
    finally:
        log.removeHandler(handler)
